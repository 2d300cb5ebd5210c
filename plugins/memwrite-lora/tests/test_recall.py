"""The reader `lora` with a kind of state that is declared outside of the core, whose recall is not S q."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from memwrite_lora import LORA, LoraConfig
from memwrite_specs.testing import families, plain_generate
from torch import Tensor

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.decoder_layers import attention_modules
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.errors import ContractViolation
from memwrite.plugins import hookimpl, register, registry
from memwrite.plugins.pairs import reads_kind
from memwrite.state import KINDS, StateKind, TensorSpec

KIND, LAYERS = "rectified-test", (0, 2)


def rectified(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """r = Vᵀ relu(K q): a fast-weight MLP."""
    active = torch.einsum("bhmk,bthk->bthm", tensors["K"], queries).relu()
    return torch.einsum("bhmv,bthm->bthv", tensors["V"], active)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    axes = {"K": "L H M Dk", "V": "L H M Dv"}
    return [StateKind(KIND, axes, recall=rectified, summary="a fast-weight MLP")]


@pytest.fixture(autouse=True)
def kind() -> Iterator[None]:
    module: Any = ModuleType("memwrite_rectified_test")
    module.memwrite_kinds = memwrite_kinds
    register(module)
    yield
    KINDS.pop(KIND)
    registry().kinds.entries.pop(KIND)


def states() -> MemoryState:
    """Two memories; `latent.count` is the writer's own, and no reader sees it."""
    shapes = {
        "K": TensorSpec((2, 2, 5, 4)),
        "V": TensorSpec((2, 2, 5, 3)),
        "latent.count": TensorSpec((7,), per_layer=False),
    }
    spec = StateSpec(KIND, shapes, LAYERS, torch.float64)
    draw = torch.Generator().manual_seed(0)
    return MemoryState(
        spec,
        {
            name: torch.randn(2, *tensor.shape, dtype=torch.float64, generator=draw)
            for name, tensor in shapes.items()
        },
    )


def expected(memory: Memory, model: Any, state: MemoryState, row: int, ids: list[int]) -> Any:
    """Logits and greedy continuation of the plain model under hooks that do the same head by head."""
    handles = []
    for index, layer in enumerate(LAYERS):
        weights = dict(memory.reader.layers[str(layer)].named_parameters())
        reads: list[Tensor] = []

        def look(
            _: Any,
            args: Any,
            kwargs: Any,
            index: int = index,
            weights: Any = weights,
            reads: Any = reads,
        ) -> None:
            hidden, heads = (args[0] if args else kwargs["hidden_states"])[0], []
            for head in range(2):
                query = (hidden @ weights["query"][head * 4 : head * 4 + 4].T).tanh()
                query = query / query.norm(dim=-1, keepdim=True)
                active = (query @ state["K"][row, index, head].T).clamp(min=0)
                heads.append(active @ state["V"][row, index, head])
            reads[:] = [torch.cat(heads, -1)]

        def add(
            _: Any, __: Any, output: Tensor, weights: Any = weights, reads: Any = reads
        ) -> Tensor:
            return output + 6.0 / 4 * reads[0] @ weights["delta.q"].T

        attention: Any = attention_modules(model)[layer]
        handles.append(attention.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(attention.q_proj.register_forward_hook(add))
    try:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits, plain_generate(model, {}, input_ids=torch.tensor([ids]))[0, len(ids) :]
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_a_kind_from_outside_is_read_by_its_own_recall() -> None:
    described = BackboneConfig(**families.model("llama"))
    params: dict[str, Any] = {"projections": ["q"], "alpha": 6.0, "init": "random", "gain": 2.0}
    backbone, state = load_backbone(described), states()
    torch.manual_seed(1)
    reader: Any = LORA.build(LoraConfig(**params), backbone, state.spec)
    memory = Memory(backbone, None, reader, Config(described, reader=PartConfig("lora", params)))
    model, lists = load_backbone(described).model, [[1, 2, 3, 4, 5], [8, 9]]
    memory.eval()
    read = memory.read(state, Tokens.from_rows(lists)).logits
    new = memory.generate(state, Tokens.from_rows(lists), max_new_tokens=5)
    for row, ids in enumerate(lists):
        logits, more = expected(memory, model, state, row, ids)
        torch.testing.assert_close(read[row, : len(ids)], logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(new[row, : len(more)], more)
        plain = model(torch.tensor([ids]), use_cache=False).logits[0]
        assert (logits - plain).abs().max() > 0.05


def test_only_kinds_with_a_recall_are_read() -> None:
    assert reads_kind(LORA.accepts, KIND)
    assert reads_kind(LORA.accepts, "matrix")
    assert not reads_kind(LORA.accepts, "lowrank")
    backbone = load_backbone(BackboneConfig(**families.model("llama")))
    with pytest.raises(ContractViolation, match="does not answer queries"):
        LORA.build(LoraConfig(), backbone, StateSpec("prefix", {"memory": (2, 32)}))
