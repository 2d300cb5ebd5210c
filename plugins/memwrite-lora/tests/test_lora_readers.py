"""The reader `lora` against plain hooks that compute δ-mem's read side row by row, head by head."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_lora import LORA, LoraConfig
from memwrite_specs.testing import (
    FAMILIES,
    Rows,
    end_padded,
    families,
    padded_rows,
    plain_generate,
    plain_logits,
    query_batches,
    tolerance,
)
from torch import Tensor, nn

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.decoder_layers import attention_modules
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.errors import InputError

HEADS, VALUES, KEYS = 2, 3, 4
ALL: dict[str, Any] = {
    "projections": ["o", "k", "q", "v"],
    "init": "random",
    "gain": 2.0,
    "alpha": 6.0,
    "o_norm": True,
    "scale": "projection",
    "scale_init": 0.7,
}
FEW: dict[str, Any] = {
    "projections": ["q", "o"],
    "init": "random",
    "gain": 1.0,
    "normalize": False,
    "scale": "layer",
}
BEAMS = {"num_beams": 4, "num_return_sequences": 2}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def spec_of(layers: tuple[int, ...] = (0, 1), dtype: torch.dtype = torch.float64) -> StateSpec:
    return StateSpec("matrix", {"S": (len(layers), HEADS, VALUES, KEYS)}, layers, dtype)


def states(rows: int, seed: int = 0, spec: StateSpec | None = None) -> MemoryState:
    """Random matrices, others in every row."""
    spec = spec or spec_of()
    draw = torch.Generator().manual_seed(seed)
    matrices = torch.randn(rows, *spec.shapes["S"], dtype=torch.float64, generator=draw)
    return MemoryState(spec, {"S": matrices.to(spec.dtype)})


def build(backbone: dict[str, Any], spec: StateSpec | None = None, **params: Any) -> Memory:
    """A memory that reads, its learned weights no longer where they start."""
    described = BackboneConfig(**backbone)
    loaded = load_backbone(described)
    torch.manual_seed(1)
    reader: Any = LORA.build(LoraConfig(**params), loaded, spec or spec_of())
    with torch.no_grad():
        for name, weight in reader.named_parameters():
            if name.endswith(("o_norm", "scale")):
                weight.add_(0.3 * torch.randn_like(weight))
    part = PartConfig("lora", params)
    return Memory(loaded, None, reader, Config(described, reader=part)).eval()


@cache
def corrected(family: str, attention: str, everything: bool = True) -> Memory:
    return build(families.model(family, attention), **(ALL if everything else FEW))


@cache
def untrained(family: str) -> Memory:
    return build(families.model(family))


@cache
def pristine(family: str, attention: str) -> Any:
    return load_backbone(BackboneConfig(**families.model(family, attention))).model


# ---- the oracle --------------------------------------------------------------------------------


def reads(memory: Memory, layer: int, matrices: Tensor, hidden: Tensor) -> Tensor:
    """(T, H·Dv) from S (H, Dv, Dk) and x (T, D): arXiv 2605.12357, section 3."""
    weight, found = memory.reader.layers[str(layer)].query, []
    for head in range(HEADS):
        query = hidden @ weight[head * KEYS : (head + 1) * KEYS].T
        if LoraConfig(**memory.config.reader.params).normalize:
            query = query.tanh()
            query = query / query.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        found.append(query @ matrices[head].T)
    return torch.cat(found, -1)


def delta(memory: Memory, layer: int, name: str, read: Tensor) -> Tensor:
    """(T, width) from reads (T, H·Dv), with the extras of the official code."""
    config = LoraConfig(**memory.config.reader.params)
    weights = dict(memory.reader.layers[str(layer)].named_parameters())
    found = read @ weights[f"delta.{name}"].T * config.alpha / KEYS
    if config.scale == "layer":
        found = found * config.scale_max * weights["scale"][0].sigmoid()
    if config.scale == "projection":
        place = [n for n in "qkvo" if n in config.projections].index(name)
        found = found * config.scale_max * weights["scale"][place].sigmoid()
    if config.o_norm and name == "o":
        found = found / (found.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights["o_norm"]
    return found


def place(attention: Any, name: str) -> tuple[nn.Module, slice]:
    """The module that computes a projection, and which of its outputs."""
    if hasattr(attention, f"{name}_proj"):
        return getattr(attention, f"{name}_proj"), slice(None)
    if name == "o":
        return attention.c_proj, slice(None)
    if hasattr(attention, "c_attn"):
        start = "qkv".index(name) * 32
        return attention.c_attn, slice(start, start + 32)
    return attention.qkv_proj, {"q": slice(0, 32), "k": slice(32, 48), "v": slice(48, 64)}[name]


@contextmanager
def hooked(model: nn.Module, memory: Memory, state: MemoryState, row: int) -> Iterator[None]:
    """The plain model under one row's corrections, until the block is left."""
    handles, found = [], {}
    for index, layer in enumerate(state.spec.layers):
        attention, matrices = attention_modules(model)[layer], state["S"][row, index]

        def look(
            _: Any, args: Any, kwargs: Any, layer: int = layer, matrices: Tensor = matrices
        ) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            found[layer] = reads(memory, layer, matrices, hidden)

        handles.append(attention.register_forward_pre_hook(look, with_kwargs=True))
        for name in memory.config.reader.params["projections"]:
            module, columns = place(attention, name)

            def add(
                _: Any, __: Any, output: Tensor,
                layer: int = layer, name: str = name, columns: slice = columns,
            ) -> Tensor:  # fmt: skip
                more = output.clone()
                more[..., columns] += delta(memory, layer, name, found[layer])
                return more

            handles.append(module.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expected(memory: Memory, model: Any, state: MemoryState, row: int, ids: list[int]) -> Tensor:
    with hooked(model, memory, state, row):
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


# ---- reads -------------------------------------------------------------------------------------


@each_family
@settings(max_examples=4, deadline=None)
@given(
    queries=query_batches(), attention=st.sampled_from(["eager", "sdpa"]), every=st.booleans(), seed=st.integers(0, 9)
)  # fmt: skip
@torch.no_grad()
def test_every_row_reads_its_own_matrices(
    family: str, attention: str, queries: tuple[Rows, Tokens], every: bool, seed: int
) -> None:
    """B states with Q queries each, padded anyhow."""
    memory, model = corrected(family, attention, every), pristine(family, attention)
    lists, query = queries
    batch, each, _ = query.ids.shape
    state = states(batch, seed)
    logits = memory.read(state, query).logits
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        if ids:
            wanted = expected(memory, model, state, b, ids)
            torch.testing.assert_close(logits[b, q][query.mask[b, q]], wanted, **tolerance(family))


@each_family
@pytest.mark.parametrize(("attention", "options"), [("eager", {}), ("sdpa", BEAMS)])
@torch.no_grad()
def test_generation_carries_every_rows_matrices_along(
    family: str, attention: str, options: dict[str, Any]
) -> None:
    """Greedy, and through beams, which reorder rows."""
    memory, model = corrected(family, attention), pristine(family, attention)
    lists, state = [[1, 2, 3, 4, 5, 6, 7], [8, 9]], states(2)
    new = memory.generate(state, Tokens.from_rows(lists), max_new_tokens=5, **options)
    for row, ids in enumerate(lists):
        with hooked(model, memory, state, row):
            whole = plain_generate(model, options, input_ids=torch.tensor([ids]))
        own = new.reshape(2, -1, new.shape[-1])[row]
        assert torch.equal(own, end_padded(whole[:, len(ids) :], new.shape[-1]))
        unlike = expected(memory, model, state, row, ids) - plain_logits(memory, ids)
        assert unlike.abs().max() > 0.1


@each_family
@given(drawn=padded_rows())
@settings(max_examples=3, deadline=None)
@torch.no_grad()
def test_nothing_written_or_nothing_learnt_changes_no_bit(
    family: str, drawn: tuple[Rows, Tokens]
) -> None:
    lists, query = drawn
    bare = families.built(family, "sdpa", "no-memory", "no-memory")
    alone = bare.read(bare.write(query).state, query).logits
    empty = states(len(lists)).map(torch.zeros_like)
    assert torch.equal(corrected(family, "sdpa").read(empty, query).logits, alone)
    assert torch.equal(untrained(family).read(states(len(lists)), query).logits, alone)


@pytest.mark.filterwarnings("ignore")
@each_family
@each_attention
def test_checkpointing_changes_no_gradient(family: str, attention: str) -> None:
    """To the matrices and every learned weight; two reads in one graph keep theirs apart."""
    found = []
    for checkpointing in (False, True):
        memory = build(families.model(family, attention), **ALL).train()
        if checkpointing:
            memory.model.gradient_checkpointing_enable()
        leaves, loss = list(memory.reader.parameters()), torch.zeros((), dtype=torch.float64)
        for seed in (1, 2):
            state = states(2, seed)
            leaves.append(state["S"].requires_grad_())
            loss = (
                loss + memory.read(state, Tokens.from_rows([[1, 2, 3], [4, 5]])).logits.sin().sum()
            )
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
        assert other.abs().sum() > 0


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_bfloat16_model_keeps_states_and_reads_in_float32(family: str) -> None:
    spec = spec_of(dtype=torch.float32)
    memory = build({**families.model(family), "dtype": "bfloat16"}, spec, **ALL)
    assert {p.dtype for p in memory.reader.parameters()} == {torch.float32}
    state, hidden = states(2, spec=spec), torch.randn(2, 3, 32).bfloat16()
    assert memory.reader.queries(1, hidden).dtype == torch.float32
    corrections = memory.reader.condition(state).corrections or {}
    for name, addition in corrections[1](hidden).items():
        assert isinstance(addition, Tensor)
        assert addition.dtype == torch.float32
        for row in range(2):
            wanted = delta(
                memory, 1, name, reads(memory, 1, state["S"][row, 1], hidden[row].float())
            )
            torch.testing.assert_close(addition[row], wanted, atol=1e-4, rtol=1e-4)
    assert memory.read(state, Tokens.from_rows([[1, 2], [3]])).logits.isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_threads_never_meet(family: str) -> None:
    memory, query = corrected(family, "sdpa"), Tokens.from_rows([[1, 2, 3], [4, 5]])
    held = [states(2, seed) for seed in range(2)]
    with torch.no_grad():
        alone = [memory.read(state, query).logits for state in held]
    wrong: list[int] = []
    begin = threading.Barrier(2)

    @torch.no_grad()
    def work(index: int) -> None:
        begin.wait()
        for _ in range(20):
            if not torch.equal(memory.read(held[index], query).logits, alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not torch.equal(*alone)


def test_a_state_file_brings_the_reader_back(tmp_path: Path) -> None:
    model = {**families.model("phi3"), "dtype": "float32"}
    memory, state = (
        build(model, spec_of((0, 2), torch.float32), **ALL),
        states(2, spec=spec_of((0, 2), torch.float32)),
    )
    memory.save(state, tmp_path / "memory.st")
    fresh, same = Memory.load(tmp_path / "memory.st")
    assert same.spec == state.spec
    query = Tokens.from_rows([[1, 2, 3], [4]])
    found = fresh.read(same, query).logits
    assert torch.equal(found, memory.read(state, query).logits)
    assert (found - fresh.read(same.map(torch.zeros_like), query).logits).abs().max() > 1e-3


def test_another_state_than_it_was_built_for() -> None:
    with pytest.raises(InputError, match=r"at layers \[0, 1\], but this one"):
        corrected("llama", "sdpa").read(states(1, spec=spec_of((0, 2))), Tokens.from_rows([[1]]))
