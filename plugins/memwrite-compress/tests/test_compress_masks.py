"""Compressors of key-values against one long sequence under a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_compress import naive
from memwrite_compress.key_values import KeyValueCompressor
from memwrite_specs.testing import FAMILIES, HYBRIDS, MODELS, NEWER_FAMILIES, tolerance
from torch.nn import functional as F

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18]]
QUERY = [20, 21, 22]


def build(family: str = "gpt2", writer: str = "gist", **params: Any) -> Memory:
    """Return a memory whose writer has weights as if it were trained."""
    others = FAMILIES | NEWER_FAMILIES
    backbone = MODELS.get(family) or {"type": family.split(":")[0], "params": others[family]}
    memory = Memory.from_config(
        {
            "backbone": {**backbone, "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": {"slots": 2, "init_std": 0.5, **params}},
            "reader": {"name": "key-value"},
        }
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in memory.writer.named_parameters():
        if ".B." in name:
            weight.data.copy_(
                torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 10
            )
    return memory


def last(segment: int, other: int, query: bool) -> bool:
    """Say that only the tokens right before are seen."""
    return other == segment - 1


def every(segment: int, other: int, query: bool) -> bool:
    """Say that the tokens of all earlier segments are seen."""
    return True


def last_two(segment: int, other: int, query: bool) -> bool:
    """Say that the tokens of the last two segments are seen."""
    return other >= segment - 2


def query_alone(segment: int, other: int, query: bool) -> bool:
    """Say that the query alone sees tokens, those of all segments."""
    return query


#: Writer, its parameters -> which tokens a segment sees, and the query.
MASKED = {
    "gist": ("gist", {}, last),
    "gist-with-lora": ("gist", {"rank": 2}, last),
    "500x": ("500x", {"rank": 2}, last),
    "ccm-concat": ("ccm-concat", {"rank": 2}, every),
    "ccm-concat-of-two": ("ccm-concat", {"rank": 2, "keep": 2}, last_two),
    "ccm-concat-that-grows": (
        "ccm-concat",
        {"rank": 2, "keep": None, "recurrent": False},
        query_alone,
    ),
}
CASES = {case: (name, params) for case, (name, params, _) in MASKED.items()}
CASES["ccm-merge"] = "ccm-merge", {"rank": 2}
CASES["ccm-merge-as-they-stand"] = "ccm-merge", {"rank": 2, "unrotate": False, "recurrent": False}


def oracle(memory: Memory, ids: list[int], width: int, sees: Any) -> naive.Sequences:
    writer = memory.writer
    assert isinstance(writer, KeyValueCompressor)
    segments = [ids[start : start + width] for start in range(0, len(ids), width)]
    with torch.no_grad():
        return naive.long_sequence(
            memory.backbone, writer.tokens, writer.lora, segments, QUERY, sees,
            conditional=writer.conditional, counted=writer.counted,
        )  # fmt: skip


@pytest.mark.parametrize("case", MASKED)
@pytest.mark.parametrize("family", MODELS)
def test_a_batch_of_segments_is_one_masked_sequence(family: str, case: str) -> None:
    """In states and in answers, for rows that end in different segments."""
    name, params, sees = MASKED[case]
    memory = build(family, name, segment=3, **params)
    state = memory.write(Tokens.from_rows(ROWS)).state
    answers = memory.read(state, Tokens.from_rows([QUERY] * 3)).logits
    for row, ids in enumerate(ROWS):
        expected = oracle(memory, ids, 3, sees)
        count = len(expected.keys)
        kept = [n for n in range(count) if sees(count, n, True)]
        held = state["mask"][row].sum()
        assert held == 2 * len(kept)
        for part, every in (("keys", expected.keys), ("values", expected.values)):
            wanted = torch.cat([every[n] for n in kept], 2)
            torch.testing.assert_close(state[part][row, :, :, :held], wanted, **tolerance(family))
        torch.testing.assert_close(answers[row], expected.logits, **tolerance(family))


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("unrotate", [True, False])
def test_merging_is_the_running_mean(unrotate: bool, recurrent: bool) -> None:
    """Of keys brought back to position 0, and as the authors do it, as they stand."""
    params = {"rank": 2, "unrotate": unrotate, "recurrent": recurrent}
    memory = build("llama", "ccm-merge", segment=3, **params)
    state = memory.write(Tokens.from_rows(ROWS)).state
    assert state["latent.segments"].tolist() == [3, 1, 2]
    for row, ids in enumerate(ROWS):
        segments = [ids[start : start + 3] for start in range(0, len(ids), 3)]
        with torch.no_grad():
            keys, values = naive.running_mean(
                memory.backbone, memory.writer.tokens, memory.writer.lora, segments,
                recurrent=recurrent, unrotate=unrotate,
            )  # fmt: skip
        torch.testing.assert_close(state["keys"][row], keys, **tolerance("llama"))
        torch.testing.assert_close(state["values"][row], values, **tolerance("llama"))
        assert state["next_position"][row] == len(ids)


@pytest.mark.parametrize("case", CASES)
def test_answers_depend_on_the_context_through_the_state_alone(case: str) -> None:
    """With the state held fixed, their gradient at the context's embeddings is 0."""
    name, params = CASES[case]
    memory = build("llama", name, **params).train()
    weight = memory.model.get_input_embeddings().weight.requires_grad_()
    for held in (True, False):
        weight.grad = None
        state = memory.write(Tokens.from_rows([[5, 6, 7]])).state
        state = state.detach() if held else state
        memory.read(state, Tokens.from_rows([QUERY])).logits.square().sum().backward()
        assert weight.grad[QUERY].any()
        assert (weight.grad[[5, 6, 7]].abs().sum(1) > 0).tolist() == [not held] * 3


@settings(max_examples=15)
@given(st.data())
def test_neither_padding_nor_neighbours_matter(data: Any) -> None:
    """Nor what a row held before; a row without tokens keeps its state to the bit."""
    name, params = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    family = data.draw(st.sampled_from(sorted(MODELS)))
    memory = build(family, name, segment=3, **params)
    rows = data.draw(st.lists(st.lists(st.integers(0, 257), max_size=7), min_size=1, max_size=3))
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), data.draw(st.integers(0, 257)))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, real in enumerate(rows):
        places = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        where = sorted(data.draw(places))
        ids[row, where], mask[row, where] = torch.tensor(real, dtype=torch.int64), True
    start = memory.write(
        Tokens.from_rows([[1, 2, 3, 4, 5][row:] for row in range(len(rows))])
    ).state
    found = memory.write(Tokens(ids, mask), start).state
    for row, real in enumerate(rows):
        alone = memory.write(Tokens.from_rows([real]), start.rows(slice(row, row + 1))).state
        for part, tensor in alone.tensors.items():
            torch.testing.assert_close(found[part][row], tensor[0], **tolerance(family))
            if not real:
                assert torch.equal(found[part][row], start[part][row])


@pytest.mark.parametrize("family", FAMILIES | NEWER_FAMILIES)
def test_rows_are_alone_on_every_family(family: str) -> None:
    """With sliding windows, norms of keys, layers without positions and biases; beside a longer row and twice."""
    for name, params in (("ccm-concat", {"keep": 2}), ("ccm-merge", {})):
        memory = build(family, name, segment=4, rank=2, **params)
        rows = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15]]
        state = memory.write(Tokens.from_rows(rows)).state
        state = memory.write(Tokens.from_rows([[16, 17], [18, 19, 20]]), state).state
        answers = memory.read(state, Tokens.from_rows([QUERY] * 2)).logits
        alone = memory.write(Tokens.from_rows(rows[1:])).state
        alone = memory.write(Tokens.from_rows([[18, 19, 20]]), alone).state
        expected = memory.read(alone, Tokens.from_rows([QUERY])).logits
        torch.testing.assert_close(answers[1:], expected, **tolerance(family))


def test_replaced_key_values_rise_by_a_layer() -> None:
    """In two layers a second segment's gist knows nothing of the first; a mean does."""
    for name, remembers in (("gist", False), ("500x", False), ("ccm-merge", True)):
        memory = build("llama", name, segment=3)
        contexts = Tokens.from_rows([[5, 6, 7, 8, 9, 10], [11, 12, 13, 8, 9, 10]])
        values = memory.write(contexts).state["values"]
        assert torch.allclose(values[0], values[1]) != remembers


def test_it_can_be_written_on_and_on() -> None:
    """A memory finds positions for more text than the model has, however it was padded."""
    for name, params in CASES.values():
        for family in MODELS:
            memory = build(family, name, segment=16, **params)
            state = memory.writer.init(2)
            for _ in range(8):
                state = memory.write(Tokens.from_rows([ROWS[0] * 3, ROWS[1]]), state).state
            assert (state["next_position"] <= 48).all()
            answers = memory.read(state, Tokens.from_rows([QUERY] * 2)).logits
            assert answers.isfinite().all()


def test_training_reaches_every_parameter() -> None:
    """But for queries and outputs of the last layer, behind which nothing of the compression tokens is kept."""
    for name, params in CASES.values():
        memory = build("llama", name, segment=3, **params).train()
        state = memory.write(Tokens.from_rows(ROWS)).state
        memory.read(state, Tokens.from_rows([QUERY] * 3)).logits.square().sum().backward()
        for parameter, weight in memory.writer.named_parameters():
            if parameter.startswith("lora.1") and parameter[-1] in "qo":
                continue
            assert weight.grad is not None, parameter
            assert weight.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"segment": 0}, "segment must be at least 1"),
        ({"rank": -1}, "rank must be at least 0"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"init_std": -1.0}, "init_std must not be negative"),
        ({"rank": 1, "projections": ["p"]}, "projections must name at least one of"),
        ({"rank": 1, "projections": ["gate"]}, "no projection 'gate'"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**params)


def test_models_with_recurrent_layers_are_refused() -> None:
    family, sizes = next(iter(HYBRIDS.items()))
    described = {"type": family, "params": sizes}
    with pytest.raises(ConfigError, match="compress it into a prefix"):
        Memory.from_config(
            {"backbone": described, "writer": {"name": "gist"}, "reader": {"name": "key-value"}}
        )


def test_autoencoding_is_the_likelihood_of_the_context() -> None:
    """Behind the memory and the token that opens a text; of each row by itself, and in training alone."""
    memory = build("llama", "500x", rank=2, autoencoding_weight=0.5)
    assert memory.write(Tokens.from_rows(ROWS)).losses == {}
    memory.train()
    written = memory.write(Tokens.from_rows(ROWS))
    bos = memory.backbone.info.bos_id
    for row, ids in enumerate(ROWS):
        query = Tokens.from_rows([[bos, *ids[:-1]]])
        logits = memory.read(written.state.rows(slice(row, row + 1)), query).logits
        expected = F.cross_entropy(logits[0], torch.tensor(ids)) / 2
        torch.testing.assert_close(written.losses["autoencoding"][row], expected)


def test_autoencoding_finds_positions() -> None:
    memory = build("llama", "500x", autoencoding_weight=1.0).train()
    state = memory.write(Tokens.from_rows([ROWS[0] * 6])).state
    assert memory.write(Tokens.from_rows([ROWS[0] * 6]), state).losses["autoencoding"].isfinite()
