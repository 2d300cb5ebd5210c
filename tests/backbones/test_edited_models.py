"""A corrected read is a read of a model whose weights were edited by hand for that row."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import tolerance
from support import MODELS, described, each_backbone, reader_only
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.decoder_layers import attention_modules
from memwrite.backbones.loading import load_backbone
from memwrite.protocols import Conditioning, ProjectionDeltas, StaticAdapter

LAYERS, WIDTH, RANK, SLOTS = 2, 32, 2, 2
END = 257


def outputs(family: str) -> dict[str, int]:
    """Output widths of q, k, v, o; Llama's queries share keys and values in pairs."""
    shared = WIDTH if family == "gpt2" else WIDTH // 2
    return {"q": WIDTH, "k": shared, "v": shared, "o": WIDTH}


class LowRankReader(nn.Module):
    """Adds B A x to each projection that the state has matrices for, and the memory before the query."""

    accepts = frozenset({"pair"})

    def condition(self, state: MemoryState, /) -> Conditioning:
        names = sorted(name for name in state.tensors if name != "memory")
        corrections = {
            layer: StaticAdapter({name: state[name][:, layer] for name in names}, _add)
            for layer in state.spec.layers
        }
        return Conditioning(prefix=state.tensors.get("memory"), corrections=corrections)


def _add(tensors: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
    def product(name: str, inputs: Tensor) -> Tensor:
        return inputs @ tensors[f"A.{name}"].mT @ tensors[f"B.{name}"].mT

    present = {name[2:] for name in tensors}
    additions: dict[str, Any] = {name: product(name, hidden) for name in present & set("qkv")}
    if "o" in present:
        additions["o"] = lambda inputs: product("o", inputs)
    return additions


def states(
    family: str,
    rows: int,
    seed: int = 0,
    names: str = "qkvo",
    layers: tuple[int, ...] = (0, 1),
    prefix: bool = True,
) -> MemoryState:
    """Random corrections, others in every row."""
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"memory": (SLOTS, WIDTH)} if prefix else {}
    for name in names:
        shapes[f"A.{name}"] = (LAYERS, RANK, WIDTH)
        shapes[f"B.{name}"] = (LAYERS, outputs(family)[name], RANK)
    tensors = {
        name: 0.3 * torch.randn(rows, *shape, dtype=torch.float64, generator=draw)
        for name, shape in shapes.items()
    }
    return MemoryState(StateSpec("pair", shapes, layers, torch.float64), tensors)


@cache
def corrected(family: str, attention: str) -> Memory:
    return reader_only(LowRankReader(), described(family, attention))


@cache
def pristine(family: str, attention: str) -> Any:
    return load_backbone(described(family, attention)).model


class Edited:
    """The plain model with one row's corrections worked into its weights, until the block is left."""

    def __init__(self, family: str, attention: str, state: MemoryState, row: int) -> None:
        self.model = pristine(family, attention)
        self.edits: list[tuple[Tensor, Tensor]] = []
        for layer in state.spec.layers:
            module: Any = attention_modules(self.model)[layer]
            for name in "qkvo":
                if f"A.{name}" not in state.tensors:
                    continue
                change = state[f"B.{name}"][row, layer] @ state[f"A.{name}"][row, layer]
                if family != "gpt2":
                    weight = getattr(module, f"{name}_proj").weight.data
                elif name == "o":
                    weight, change = module.c_proj.weight.data, change.T
                else:
                    place = "qkv".index(name) * WIDTH
                    weight = module.c_attn.weight.data[:, place : place + WIDTH]
                    change = change.T
                self.edits.append((weight, weight + change))

    def __enter__(self) -> Any:
        self.kept = [weight.clone() for weight, _ in self.edits]
        for weight, edited in self.edits:
            weight.copy_(edited)
        return self.model

    def __exit__(self, *_: object) -> None:
        for (weight, _), kept in zip(self.edits, self.kept, strict=True):
            weight.copy_(kept)


def inputs(model: Any, state: MemoryState, row: int, ids: list[int]) -> Tensor:
    embeddings: Tensor = model.get_input_embeddings()(torch.tensor([ids], dtype=torch.int64))
    if "memory" in state.tensors:
        embeddings = torch.cat([state["memory"][row][None], embeddings], 1)
    return embeddings


LISTS = st.lists(st.lists(st.integers(0, 257), min_size=1, max_size=5), min_size=1, max_size=3)
NAMES = st.sampled_from(["qkvo", "q", "k", "v", "o", "kv", "qo"])
WHERE = st.sampled_from([(0, 1), (0,), (1,)])


@each_backbone
@settings(max_examples=20)
@given(lists=LISTS, names=NAMES, layers=WHERE, prefix=st.booleans(), seed=st.integers(0, 9))
def test_every_row_reads_with_its_own_corrections(
    family: str,
    attention: str,
    lists: list[list[int]],
    names: str,
    layers: tuple[int, ...],
    prefix: bool,
    seed: int,
) -> None:
    """Any projections, any layers, with and without a prefix, which they correct too."""
    memory = corrected(family, attention)
    state = states(family, len(lists), seed, names, layers, prefix)
    output = memory.read(state, Tokens.from_rows(lists))
    assert (output.first_logits is not None) == prefix
    for row, ids in enumerate(lists):
        with Edited(family, attention, state, row) as model:
            expected = model(inputs_embeds=inputs(model, state, row, ids)).logits[0]
        torch.testing.assert_close(
            output.logits[row, : len(ids)], expected[-len(ids) :], **tolerance(family)
        )
        if output.first_logits is not None:
            torch.testing.assert_close(
                output.first_logits[row], expected[SLOTS - 1], **tolerance(family)
            )


@each_backbone
def test_queries_of_one_row_share_its_corrections(family: str, attention: str) -> None:
    memory, state = corrected(family, attention), states(family, 2)
    ids = torch.tensor([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]])
    logits = memory.read(state, Tokens(ids, torch.ones_like(ids, dtype=torch.bool))).logits
    for query in range(3):
        one = Tokens(ids[:, query], torch.ones(2, 2, dtype=torch.bool))
        torch.testing.assert_close(
            logits[:, query], memory.read(state, one).logits, **tolerance(family)
        )


@each_backbone
@settings(max_examples=8)
@given(
    lists=LISTS,
    prefix=st.booleans(),
    options=st.sampled_from(
        [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"num_beams": 2}]
    ),
    names=NAMES,
)
def test_generation_is_that_of_the_edited_model(
    family: str,
    attention: str,
    lists: list[list[int]],
    prefix: bool,
    options: dict[str, Any],
    names: str,
) -> None:
    """Beams reorder each row's corrections with its keys and values."""
    memory = corrected(family, attention)
    state = states(family, len(lists), names=names, prefix=prefix)
    options = {**options, "max_new_tokens": 5}
    new = memory.generate(state, Tokens.from_rows(lists), **options)
    rows = new.reshape(len(lists), -1, new.shape[-1])
    for row, ids in enumerate(lists):
        with Edited(family, attention, state, row) as model:
            before = inputs(model, state, row, ids)
            expected = model.generate(
                inputs_embeds=before,
                attention_mask=torch.ones(before.shape[:2], dtype=torch.int64),
                do_sample=False,
                eos_token_id=END,
                pad_token_id=END,
                **options,
            )
        missing = new.shape[-1] - expected.shape[-1]
        assert torch.equal(rows[row], F.pad(expected, (0, missing), value=END))


@each_backbone
def test_an_empty_query_is_continued_under_corrections(family: str, attention: str) -> None:
    memory, state = corrected(family, attention), states(family, 2)
    new = memory.generate(state, max_new_tokens=5)
    for row in range(2):
        with Edited(family, attention, state, row) as model:
            expected = model.generate(
                inputs_embeds=state["memory"][row][None],
                attention_mask=torch.ones(1, SLOTS, dtype=torch.int64),
                do_sample=False,
                eos_token_id=END,
                pad_token_id=END,
                max_new_tokens=5,
            )[0].tolist()
        assert new[row].tolist()[: len(expected)] == expected


@pytest.mark.filterwarnings("ignore")
@each_backbone
def test_checkpointing_changes_no_gradient(family: str, attention: str) -> None:
    """To the corrections, the prefix and the weights; two calls in one graph keep theirs apart."""
    found = []
    for checkpointing in (False, True):
        memory = reader_only(LowRankReader(), described(family, attention, trainable=True)).train()
        if checkpointing:
            memory.model.gradient_checkpointing_enable()
        query = Tokens.from_rows([[1, 2, 3], [4, 5]])
        leaves, loss = list(memory.model.parameters()), torch.zeros((), dtype=torch.float64)
        for seed in (1, 2):
            state = states(family, 2, seed)
            leaves += [tensor.requires_grad_() for tensor in state.tensors.values()]
            output = memory.read(state, query)
            assert output.first_logits is not None
            loss = loss + output.logits.sin().sum() + output.first_logits.cos().sum()
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    scale = {"atol": 1e-8, "rtol": 1e-8} if family == "gpt2" else {"atol": 1e-3, "rtol": 1e-3}
    for plain, checked in zip(*found, strict=True):
        torch.testing.assert_close(plain, checked, **scale)
    assert all(gradient.abs().sum() > 0 for gradient in found[0][-18:])


@each_backbone
def test_reads_leave_the_plain_model_as_it_was(family: str, attention: str) -> None:
    """Weights, mode, and its own output, also after a correction that raised."""
    memory, state = corrected(family, attention), states(family, 2)
    ids = torch.tensor([[1, 2, 3]])
    weights = {name: weight.clone() for name, weight in memory.model.state_dict().items()}
    before = memory.model(ids).logits
    memory.read(state, Tokens.from_rows([[1], [2, 3]]))
    memory.generate(state, num_beams=2, max_new_tokens=3)

    def fails(tensors: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
        def late(inputs: Tensor) -> Tensor:
            raise RuntimeError("in the middle of a layer")

        return {"q": torch.ones_like(hidden), "o": late}

    memory.reader.condition = lambda _: Conditioning(corrections={0: StaticAdapter({}, fails)})
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            memory.read(state, Tokens.from_rows([[1], [2]]))
    finally:
        del memory.reader.condition
    assert torch.equal(memory.model(ids).logits, before)
    assert not memory.model.training
    for name, weight in memory.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("family", MODELS)
def test_threads_never_meet(family: str) -> None:
    """Reads, beams and plain runs of one model at once: each gets what it gets alone, every time."""
    memory = corrected(family, "sdpa")
    query = Tokens.from_rows([[1, 2, 3], [4, 5]])
    held = [states(family, 2, seed) for seed in range(3)]
    jobs: list[Any] = [lambda s=state: memory.read(s, query).logits for state in held]
    jobs.append(lambda: memory.generate(held[0], query, num_beams=2, max_new_tokens=3))
    jobs.append(lambda: memory.model(query.ids).logits)
    with torch.no_grad():
        alone = [job() for job in jobs]
    assert not torch.equal(alone[0], alone[1])
    wrong: list[int] = []
    start = threading.Barrier(len(jobs))

    @torch.no_grad()
    def work(index: int) -> None:
        start.wait()
        for _ in range(60 if index != 3 else 6):
            if not torch.equal(jobs[index](), alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
