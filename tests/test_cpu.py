"""How long work is done on CPU."""

import subprocess
import sys

import pytest
import torch

from memwrite.cpu import tuned_cpu

FAULTS = """
import resource
for _ in range(32):  # the heap grows until it has room for every alignment
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Pages faulted in for 64 MiB that are freed and asked for again, four times, once the heap has settled."""


def below() -> float:
    """A product below float32's normal numbers."""
    return float(torch.tensor([1e-30]) * 1e-10)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor has no such mode")
def test_numbers_below_the_normal_ones_are_zero_meanwhile() -> None:
    with tuned_cpu():
        assert below() == 0
        with tuned_cpu():
            pass
        assert below() == 0
    assert below() > 0
    with pytest.raises(ZeroDivisionError), tuned_cpu():
        raise ZeroDivisionError
    assert below() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator only")
def test_freed_memory_is_used_again() -> None:
    """With a mapping for each block, every one of its pages is faulted in anew; each in a process of its own."""

    def faults(code: str) -> int:
        code = f"import torch; from memwrite.cpu import tuned_cpu; torch.set_num_threads(1); {code}"
        command = [sys.executable, "-c", code + FAULTS]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("tuned_cpu().__enter__()") < 100 < faults("")
