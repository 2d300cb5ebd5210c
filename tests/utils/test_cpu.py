"""How long work is done on CPU."""

import subprocess
import sys

import pytest
import torch

from memwrite.utils.cpu import tuned_cpu

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
KEPT = """
import ctypes
sbrk = ctypes.CDLL(None).sbrk
sbrk.restype = ctypes.c_void_p
before = sbrk(0)
torch.empty(3 << 28)
print(sbrk(0) - before)
"""
"""Bytes by which the heap has grown after 3 GiB, none of which was touched, are freed."""


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
@pytest.mark.parametrize(("code", "least", "most"), [(FAULTS, 0, 100), (KEPT, 3 << 30, 4 << 30)])
def test_freed_memory_is_used_again(code: str, least: int, most: int) -> None:
    """With a mapping for each block, every one of its pages is faulted in anew; each in a process of its own."""

    def printed(enter: str) -> int:
        start = f"import torch; from memwrite.utils.cpu import tuned_cpu; torch.set_num_threads(1); {enter}"
        command = [sys.executable, "-c", start + code]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert least <= printed("tuned_cpu().__enter__()") < most
    assert not least <= printed("") < most
