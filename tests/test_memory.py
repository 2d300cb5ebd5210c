"""Memory with throw-away writers: chunks, contracts, isolation, training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import Build
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.config import Config, PartConfig
from memwrite.errors import ContractViolation, DivergenceError, IncompatiblePair, InputError
from memwrite.memory import Batch
from memwrite.protocols import Written
from memwrite.readers import PrefixReader


class Pool(nn.Module):
    """Adds the sum of the context's embeddings, through a learned matrix, to every slot."""

    reserve = 4

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.embed = backbone.embed
        self.spec = StateSpec("prefix", {"memory": (2, 32)}, dtype=torch.float64)
        self.matrix = nn.Parameter(torch.eye(32, dtype=torch.float64))

    def init(self, batch_size: int, /) -> MemoryState:
        return MemoryState(
            self.spec, {"memory": torch.zeros(batch_size, 2, 32, dtype=torch.float64)}
        )

    def write(self, state: MemoryState, context: Tokens, /) -> Written:
        total = (self.embed(context.ids) * context.mask[..., None]).sum(1) @ self.matrix
        memory = 0.5 * state["memory"] + total[:, None]
        memory = torch.where(context.mask.any(1)[:, None, None], memory, state["memory"])
        size = context.lengths.double()
        trace = {"size": size[None]}
        return Written(MemoryState(self.spec, {"memory": memory}), {"size": size}, trace)


@pytest.fixture
def memory(build: Build) -> Memory:
    backbone = build().backbone
    parts = PartConfig("pool"), PartConfig("prefix")
    config = Config(build().config.backbone, *parts)
    return Memory(backbone, Pool(backbone), PrefixReader(), config).eval()


def test_a_long_context_is_written_in_chunks_with_the_state_carried_over(memory: Memory) -> None:
    """64 positions less the writer's 4: chunks of 60; losses are weighted by tokens, traces follow on."""
    rows = [list(range(100)) + list(range(50)), list(range(70)), [3]]
    written = memory.write(Tokens.from_rows(rows))
    state = memory.writer.init(3)
    for start in (0, 60, 120):
        part = Tokens.from_rows([row[start : start + 60] for row in rows])
        state = memory.writer.write(state, part).state
    assert torch.equal(written.state["memory"], state["memory"])
    assert written.losses["size"].tolist() == pytest.approx([(3600 * 2 + 900) / 150, 3700 / 70, 1])
    assert written.trace["size"].tolist() == [[60, 60, 1], [60, 10, 0], [30, 0, 0]]


def test_padding_neighbours_and_later_changes_do_not_matter(memory: Memory) -> None:
    """Left and inner padding, other rows, and overwriting the context afterwards change nothing."""
    ids = torch.tensor([[9, 1, 9, 2], [3, 4, 5, 6]])
    context = Tokens(ids, torch.tensor([[False, True, False, True], [True] * 4]))
    state = memory.write(context).state
    kept = state["memory"].clone()
    ids.fill_(0)
    assert torch.equal(state["memory"], kept)
    for row, tokens in enumerate(([1, 2], [3, 4, 5, 6])):
        alone = memory.write(Tokens.from_rows([tokens])).state["memory"]
        torch.testing.assert_close(alone[0], kept[row], atol=1e-12, rtol=0)


def test_a_write_starts_from_the_state_it_is_given_and_leaves_it(memory: Memory) -> None:
    first = memory.write(Tokens.from_rows([[1, 2]])).state
    before = first["memory"].clone()
    second = memory.write(Tokens.from_rows([[3]]), first).state
    assert torch.equal(first["memory"], before)
    expected = 0.5 * before + memory.writer.embed(torch.tensor([3]))
    torch.testing.assert_close(second["memory"], expected)


def test_texts_are_closed_and_must_not_be_empty(memory: Memory) -> None:
    tokens = memory.encode(["ab", "c"])
    assert tokens.ids.tolist() == [[97, 98, 257], [99, 257, 0]]
    with pytest.raises(InputError, match="empty"):
        memory.write(["fine", " \n"])


def test_a_writer_that_breaks_its_spec_is_caught(memory: Memory) -> None:
    def grown(state: MemoryState, context: Tokens) -> Written:
        spec = StateSpec("prefix", {"memory": (5, 32)}, dtype=torch.float64)
        return Written(MemoryState(spec, {"memory": torch.zeros(1, 5, 32, dtype=torch.float64)}))

    memory.writer.write = grown
    with pytest.raises(ContractViolation, match="'pool' declared"):
        memory.write(Tokens.from_rows([[1]]))


def test_numbers_that_are_not_finite_are_caught(memory: Memory) -> None:
    memory.writer.matrix.data[0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"row\(s\) \[1\]"):
        memory.write(
            Tokens(torch.ones(2, 3, dtype=torch.int64), torch.tensor([[False] * 3, [True] * 3]))
        )


def test_a_reader_of_other_states_does_not_fit(memory: Memory) -> None:
    reader = PrefixReader()
    reader.accepts = frozenset({"matrix"})
    with pytest.raises(IncompatiblePair, match="reads matrix states"):
        Memory(memory.backbone, memory.writer, reader, memory.config)


def test_training_loss_by_hand(memory: Memory) -> None:
    """Labels are aligned with the tokens; the first one is predicted from the memory; losses are added."""
    memory.train()
    context = Tokens.from_rows([[1, 2], [3]])
    queries = torch.tensor([[[4, 5, 6], [7, 8, 0]], [[9, 10, 0], [11, 0, 0]]])
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [1, 0, 0]]]).bool()
    labels = queries.where(mask, -100)
    labels[0, 0, 1] = -100
    output = memory(Batch(context, Tokens(queries, mask), labels))
    losses: list[Tensor] = []
    state = memory.write(context).state
    for b in range(2):
        for q in range(2):
            row = queries[b, q][mask[b, q]]
            inputs = torch.cat([state["memory"][b], memory.backbone.embed(row)])[None]
            logits = memory.model(inputs_embeds=inputs).logits[0, 1:-1]
            losses += [
                F.cross_entropy(logits[j], row[j])
                for j in range(len(row))
                if labels[b, q, j] != -100
            ]
    assert output.losses.keys() == {"target", "size"}
    torch.testing.assert_close(
        output.losses["target"], torch.stack(losses).mean(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(output.loss, output.losses["target"] + 1.5, atol=1e-9, rtol=0)
    output.loss.backward()
    assert memory.writer.matrix.grad.abs().sum() > 0


def test_without_memory_the_loss_is_the_language_models_own(build: Build) -> None:
    """The first token has nothing to be predicted from, and is left out."""
    memory = build(trainable=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    output = memory(Batch(Tokens.from_rows([[]]), tokens, ids.clone()))
    torch.testing.assert_close(output.loss.float(), memory.model(ids, labels=ids).loss.float())


def test_a_graph_is_kept_in_training_only(memory: Memory) -> None:
    context = Tokens.from_rows([[1, 2]])
    assert not memory.write(context).state["memory"].requires_grad
    memory.train()
    assert memory.write(context).state["memory"].requires_grad
    with torch.no_grad():
        assert not memory.write(context).state["memory"].requires_grad


def test_global_randomness_is_left_alone(build: Build) -> None:
    """Building, writing and reading draw nothing from the global generator."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    memory = build("gradient", "prefix")
    state = memory.write("some text").state
    memory.generate(state, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)
