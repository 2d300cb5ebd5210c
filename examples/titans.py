"""Titans (arXiv 2501.00663): a network M per layer, trained by every token; the `lora` reader reads M(q)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memwrite.inference import online
from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite.plugins.builtin.readers import NoParams
from memwrite.protocols import Backbone, Granularity, LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateKind, StateSpec

N = 4  # the width of keys, values and the hidden layer


def recall(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return M(q) = W₂ tanh(W₁ q) for queries (B, T, H, Dk)."""
    first, second = tensors["W"].to(queries.dtype).mT.unbind(1)
    return ((queries.transpose(1, 2) @ first).tanh() @ second).transpose(1, 2)


class TitansWriter(nn.Module):
    reserved_positions = 0
    granularity: Granularity = "token"

    def __init__(self, config: NoParams, backbone: Backbone) -> None:
        super().__init__()
        self._backbone, info = backbone, backbone.info
        shape, dtype = (info.layers, 2, 1, N, N), info.state_dtype
        self.spec = StateSpec("titans", {"W": shape, "S": shape}, tuple(range(info.layers)), dtype)
        self.start = nn.Parameter(torch.randn(shape, dtype=dtype) / N**0.5)
        self.maps = nn.Parameter(torch.randn(info.layers, info.hidden_size, 2 * N + 3, dtype=dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        start = self.start.expand(batch_size, *self.start.shape).clone()
        return MemoryState(self.spec, {"W": start, "S": torch.zeros_like(start)})

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return online.run(self._backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        mapped = step.hidden.to(self.spec.dtype) @ self.maps[step.layer] / 8
        keys, values = nn.functional.normalize(mapped[..., :N], dim=-1), mapped[..., N:-3].tanh()
        gates = mapped[..., -3:].sigmoid() * mapped.new_tensor([1.0, 0.5, 0.01])
        mask = torch.ones_like(mapped[..., 0]).bool() if step.mask is None else step.mask
        reads, w, s = [], state["W"], state["S"]
        for t in range(keys.shape[1]):
            if step.queries is not None:
                reads.append(recall({"W": w}, step.queries[:, t : t + 1]))
            theta, eta, alpha, real = (
                gate[:, None, None, None, None] for gate in (*gates[:, t].unbind(1), mask[:, t])
            )
            k, v = keys[:, t, None, :, None], values[:, t, None, :, None]
            hidden = (w[:, 0] @ k).tanh()
            error = (w[:, 1] @ hidden - v) * 2 / N
            first = w[:, 1].mT @ error * (1 - hidden**2) @ k.mT
            new = eta * s - theta * torch.stack([first, error @ hidden.mT], 1)
            w, s = ((1 - alpha) * w + new).where(real & write, w), new.where(real & write, s)
        return ScanOutput(torch.cat(reads, 1) if reads else None, {"W": w, "S": s})


PROMISED = Capabilities(streaming=True, chunk_exact=True, differentiable=True, online=True)
TITANS = WriterPlugin(
    api=2, name="small-titans", summary="a network per layer, trained as it reads", config=NoParams,
    build=TitansWriter, emits="titans", capabilities=PROMISED,
)  # fmt: skip
memwrite_writers = hookimpl(lambda: [TITANS])
KIND = StateKind("titans", dict.fromkeys("WS", "L 2 H Dv Dk"), recall=recall)
memwrite_kinds = hookimpl(lambda: [KIND])
