"""Gist tokens (Mu et al. 2023, arXiv 2304.08467): learnt tokens read a context; their keys and values are the memory."""

import torch
from torch import Tensor, nn

from memwrite.inference.positions import rewind
from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite.plugins.builtin.readers import NoParams
from memwrite.protocols import Backbone, KeyValues, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec

M = 4  # gist tokens


class GistWriter(nn.Module):
    reserved_positions = 2 * M  # the memory before the context and the gist tokens behind it

    def __init__(self, config: NoParams, backbone: Backbone) -> None:
        super().__init__()
        self._backbone, info = backbone, backbone.info
        slots = (info.layers, info.kv_heads, M, info.head_dim)
        shapes = {"keys": slots, "values": slots, "mask": (M,), "next_position": ()}
        self.spec = StateSpec("keyvalue", shapes, tuple(range(info.layers)), info.dtype)
        self.tokens = nn.Parameter(torch.randn(M, info.hidden_size, dtype=info.state_dtype) / 8)

    def init(self, batch_size: int, /) -> MemoryState:
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        past = KeyValues(*(state[name] for name in ("keys", "values", "mask", "next_position")))
        read = self._run(self._backbone.embed(context.ids), past)
        mask = torch.cat([past.mask, context.mask], 1)
        ends = past.next_position + context.lengths
        past = KeyValues(read.keys, read.values, mask, ends)
        gists = self._run(self.tokens.expand(len(mask), -1, -1), past)
        real = mask.new_ones(len(mask), M)
        gist = KeyValues(gists.keys[..., -M:, :], gists.values[..., -M:, :].clone(), real, ends + M)
        positions = ends[:, None] + torch.arange(M, device=ends.device)
        gist = rewind(self._backbone, gist, positions)
        tensors = (gist.keys, gist.values, gist.mask, gist.next_position)
        return WriteOutput(
            MemoryState(self.spec, dict(zip(self.spec.tensors, tensors, strict=True)))
        )

    def _run(self, embeddings: Tensor, past: KeyValues) -> KeyValues:
        cache = self._backbone.forward(embeddings, past=past, use_cache=True).key_values
        assert cache is not None
        return cache


GIST = WriterPlugin(
    api=2, name="small-gist", summary="keys and values of learnt tokens", config=NoParams,
    build=GistWriter, emits="keyvalue", capabilities=Capabilities(differentiable=True),
)  # fmt: skip
memwrite_writers = hookimpl(lambda: [GIST])
