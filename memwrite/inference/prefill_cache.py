"""A cache of the keys and values of memories that are asked again and again, so that each goes through the model once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from memwrite.build import Components
from memwrite.protocols import KeyValues
from memwrite.state import MemoryState
from memwrite.utils.hashing import exact_digest_of, versions_of


@dataclass(frozen=True)
class PrefillOutput:
    """What a model makes of a memory before any query.

    Attributes:
        key_values: of every position of the memory; None where it has none.
        first_logits: (B, V) logits at its last position; None where there is no prefix.
    """

    key_values: KeyValues | None
    first_logits: Tensor | None

    def row(self, index: int) -> PrefillOutput:
        """Return a copy of one row."""
        at = torch.tensor([index])
        first, past = self.first_logits, self.key_values
        return PrefillOutput(
            None if past is None else past.rows(at), None if first is None else first[at]
        )

    @property
    def nbytes(self) -> int:
        """Return the number of bytes held."""
        tensors = [self.first_logits] if self.first_logits is not None else []
        if self.key_values is not None:
            tensors += self.key_values.tensors()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PrefillCache:
    """The latest memories that were read, as the model sees them, up to so many bytes.

    `Memory.generate` and `ask` use it, and `Memory.read` where grad mode is off, so that no gradient is lost in it.
    A memory is known by its numbers, so whoever finds one here has it already. Threads may share a cache. What a
    memory became stays until it is pushed out or the cache is cleared, also when its state is deleted elsewhere.

    Args:
        max_bytes: the least recently read are dropped beyond it.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, max_bytes: int = 1 << 28) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._lock = Lock()
        self._held: OrderedDict[str, PrefillOutput] = OrderedDict()
        self._versions: object = None

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        """Forget every memory."""
        with self._lock:
            self._held.clear()
            self.nbytes = 0

    def rows(
        self,
        memory: Components,
        state: MemoryState,
        prefill: Callable[[MemoryState], PrefillOutput],
    ) -> PrefillOutput | None:
        """Return `prefill(state)`, but run it only for rows that are not at hand.

        All is forgotten when the memory's weights have changed, or whatever else changes its numbers.

        Args:
            memory: whose model and reader `prefill` runs.
            state: B memories of a bounded kind.
            prefill: of any rows.

        Returns:
            None where gradients or dropout would be lost in it.
        """
        versions = _versions(memory)
        if versions is None:
            return None
        keys = [_key(state, row) for row in range(state.batch_size or 0)]
        with self._lock:
            if versions != self._versions:
                self._held.clear()
                self.nbytes, self._versions = 0, versions
            cached = {key: self._held[key] for key in keys if key in self._held}
        new = {key: row for row, key in enumerate(keys) if key not in cached}
        if new:
            made = prefill(state.rows(torch.tensor([*new.values()])))
            cached |= {key: made.row(index) for index, key in enumerate(new)}
        with self._lock:
            if versions == self._versions:
                for key in keys:
                    self._keep(key, cached[key])
        return _stacked([cached[key] for key in keys])

    def _keep(self, key: str, one: PrefillOutput) -> None:
        if key not in self._held:
            self._held[key] = one
            self.nbytes += one.nbytes
        self._held.move_to_end(key)
        while self.nbytes > self.max_bytes:
            _, old = self._held.popitem(last=False)
            self.nbytes -= old.nbytes


def _versions(memory: Components) -> object:
    """Return what tells whether a memory still prefills as it did; None while it trains."""
    model, device = memory.backbone.model, memory.backbone.info.device.type
    modules = [*model.modules(), *memory.reader.modules()]
    if torch.is_grad_enabled() or any(module.training for module in modules):
        return None
    weights = [t for module in modules for t in module._parameters.values() if t is not None]
    weights += [t for module in modules for t in module._buffers.values() if t is not None]
    settings = (
        repr(memory.config.reader),
        model.config._attn_implementation,
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.get_float32_matmul_precision(),
    )
    return settings, versions_of(weights)


def _key(state: MemoryState, row: int) -> str:
    tensors = {name: tensor[row] for name, tensor in state.tensors.items()}
    return exact_digest_of(repr(state.spec), tensors)


def _stacked(parts: list[PrefillOutput]) -> PrefillOutput:
    if len(parts) == 1:
        return parts[0]
    pasts = [part.key_values for part in parts if part.key_values is not None]
    firsts = [part.first_logits for part in parts if part.first_logits is not None]
    past = KeyValues.stack(pasts) if pasts else None
    return PrefillOutput(past, torch.cat(firsts) if firsts else None)
