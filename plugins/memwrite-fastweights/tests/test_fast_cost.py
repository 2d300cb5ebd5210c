"""What the scans must not cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fast_problems import MECHANISMS, Problem, made
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Cost(TorchDispatchMode):
    """Counts the operations under it, and the most bytes that tensors made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[StorageWeakRef, int] = {}
        self.operations = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        storages = [x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._sizes |= {StorageWeakRef(storage): storage.nbytes() for storage in storages}
        if sum(self._sizes.values()) > self.bytes:
            self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
            self.bytes = max(self.bytes, sum(self._sizes.values()))
        return result


def cost(mechanism: str, length: int) -> Cost:
    case = made(Problem(mechanism, 1, length, 1, 15, 16, chunk=16)).map(lambda x: x.float())
    with torch.no_grad(), Cost() as found:
        case.scanned()
    return found


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_time_and_memory_are_linear(mechanism: str) -> None:
    short, long = cost(mechanism, 256), cost(mechanism, 1024)
    assert long.operations <= 4.1 * short.operations
    assert long.bytes <= 4.2 * short.bytes


def test_tokens_take_few_times_the_memory_of_their_keys() -> None:
    assert cost("titans", 4096).bytes < 14 * 4096 * 16 * 4
