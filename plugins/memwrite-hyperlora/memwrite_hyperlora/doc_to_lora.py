"""Doc-to-LoRA's writer: a hypernetwork makes low-rank weights of each chunk of a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ConfigError, InputError
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import LATENT, MemoryState, PackedTokens, StateSpec, TensorSpec
from memwrite_hyperlora.blocks import Blocks, cut, gathered, joined, without
from memwrite_hyperlora.config import DocToLoraConfig
from memwrite_hyperlora.hypernetwork import Hypernetwork
from memwrite_hyperlora.stream import received_up_to_the_norm, windows

#: How many chunks a memory has read.
COUNT = f"{LATENT}chunks"


class DocToLoraWriter(nn.Module):
    """Makes A and B of rank r of every chunk, and keeps those of all chunks side by side, a learned bias before them.

    Charakorn et al. 2026 (arXiv 2602.15902). What a chunk adds depends on nothing else, and a memory is a set of what its
    chunks add, kept in an order of its own: contexts may come in any order, two memories merge, and a context is taken out
    again whole: a `MergingWriter` and a `DeletingWriter`. A memory that has read nothing has no bias either. Where there are
    more chunks than it holds, it keeps the best approximation of their sum, and from then on cannot forget.

    Args:
        config: see `DocToLoraConfig`.
        backbone: the model that reads the context; never changed.

    Raises:
        ConfigError: the backbone has no such projection, or its layers differ in it.
    """

    reserved_positions = 0

    def __init__(self, config: DocToLoraConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        if not info.layers:
            raise ConfigError(f"this {info.architecture} model has no attention layers to correct")
        self.config, self._backbone = config, backbone
        shapes = {name: _shape(backbone, name) for name in sorted(config.projections)}
        self.network = Hypernetwork(config, info.hidden_size, info.layers, shapes).to(
            info.state_dtype
        )
        rank = (config.chunks + 1) * config.rank
        tensors: dict[str, TensorSpec | tuple[int, ...]] = {
            f"A.{n}": (info.layers, rank, inputs) for n, (_, inputs) in shapes.items()
        }
        tensors |= {f"B.{n}": (info.layers, outputs, rank) for n, (outputs, _) in shapes.items()}
        tensors[COUNT] = TensorSpec((), torch.int64, per_layer=False)
        self.spec = StateSpec("lowrank", tensors, tuple(range(info.layers)), info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return memories of nothing: zeros."""
        return self.spec.zeros(batch_size, next(self.network.parameters()).device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add a block for each chunk of the context."""
        return WriteOutput(self._state([self._blocks(state), self._made(context)]))

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Take out the blocks of the context's chunks.

        Raises:
            InputError: there are no such blocks.
        """
        tolerance = 1e3 * torch.finfo(state.spec.dtype).eps
        left, found = without(self._blocks(state), self._made(context), tolerance)
        if not bool(found.all()):
            rows = (~found).nonzero().flatten().tolist()
            raise InputError(
                f"the memory of row(s) {rows} has not read this context, or not as one write of its own, or has read more "
                f"than {self.config.chunks} chunks in all, so that they cannot be told apart any more"
            )
        return WriteOutput(self._state([left]))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Keep the blocks of both."""
        return self._state([self._blocks(first), self._blocks(second)])

    def _made(self, context: PackedTokens) -> Blocks:
        """Return the blocks of the chunks of each row."""
        ids, mask, rows = windows(context, self.config.chunk)
        features = received_up_to_the_norm(self._backbone, ids).to(self.spec.dtype)
        counts = rows.bincount(minlength=len(context.ids))
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = len(counts), int(counts.max())
        tensors = {
            name: block.new_zeros(*shape, *block.shape[1:]).index_put((rows, place), block)
            for name, block in self.network(features, mask).items()
        }
        return Blocks(tensors, _first(counts, shape[1]))

    def _blocks(self, state: MemoryState) -> Blocks:
        """Return the blocks of a state but for the bias."""
        tensors = {name: tensor for name, tensor in state.tensors.items() if name != COUNT}
        blocks = cut(tensors, self.config.chunks + 1)
        used = _first(state[COUNT], self.config.chunks)
        return Blocks({name: block[:, 1:] for name, block in blocks.items()}, used)

    def _state(self, parts: list[Blocks]) -> MemoryState:
        blocks = gathered(parts, self.config.chunks)
        empty = F.pad(~blocks.used, (1, 0))
        empty[:, 0] = empty[:, 1]  # whoever has read nothing has no bias either
        bias = {
            name: tensor.expand(len(empty), 1, *tensor.shape)
            for name, tensor in self.network.bias.items()
        }
        whole = {
            name: torch.cat([bias[name], block], 1).masked_fill(empty[..., None, None, None], 0)
            for name, block in blocks.tensors.items()
        }
        return MemoryState(self.spec, {**joined(whole), COUNT: blocks.counts})


def _first(counts: Tensor, size: int) -> Tensor:
    """Return which of `size` places (B, size) are among the first `counts` (B,)."""
    return torch.arange(size, device=counts.device) < counts[:, None]


def _shape(backbone: Backbone, name: str) -> tuple[int, int]:
    """Return the (out, in) of a projection in every layer.

    Raises:
        ConfigError: layers differ.
    """
    shapes = {tuple(backbone.projection(n, name).shape) for n in range(backbone.info.layers)}
    if len(shapes) > 1:
        raise ConfigError(
            f"the layers of this model have '{name}' of different sizes {sorted(shapes)}: correct another projection"
        )
    outputs, inputs = shapes.pop()
    return outputs, inputs
