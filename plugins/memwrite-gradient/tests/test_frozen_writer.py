"""Cartridges and soft prompts against the oracle, the full context, and what they promise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from memwrite_gradient.frozen import naive
from memwrite_gradient.frozen.config import CartridgeConfig
from memwrite_gradient.frozen.forms import KeyValueForm, PrefixForm
from memwrite_gradient.frozen.study import Teacher
from memwrite_gradient.reports import worth
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens
from memwrite.cli.main import main
from memwrite.errors import ConfigError, DivergenceError
from memwrite.plugins.registry import Registry
from memwrite.protocols import Conditioning, KeyValues

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
STUDY = {"texts": 3, "per_step": 2, "quotes": 0, "length": 4, "held_out": 2}
READERS = {"cartridge": "key-value", "soft-prompt": "prefix"}


def build(
    name: str = "cartridge", family: str = "llama", study: Any = None, **params: Any
) -> Memory:
    model = {**MODELS[family], "dtype": "float64", "attention": "eager"}
    few = {"slots": 3, "steps": 3, "lr": 0.2, "start": "first-tokens"}
    params = {**few, "study": {**STUDY, **(study or {})}, **params}
    return Memory.from_config(
        {
            "backbone": model,
            "writer": {"name": name, "params": params},
            "reader": {"name": READERS[name]},
        }
    )


def full_context(family: str = "llama") -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "full-context"},
            "reader": {"name": "key-value"},
        }
    )


def written(memory: Memory, rows: list[list[int]] = ROWS) -> MemoryState:
    return memory.write(Tokens.from_rows(rows)).state


def only_row(state: MemoryState, row: int) -> KeyValues:
    one = state.rows(torch.tensor([row]))
    return KeyValues(*(one[name] for name in ("keys", "values", "mask", "next_position")))


@pytest.mark.parametrize(("family", "atol"), [("gpt2", 1e-9), ("llama", 1e-5)])
@pytest.mark.parametrize("name", READERS)
def test_equals_the_oracle(name: str, family: str, atol: float, tmp_path: Path) -> None:
    """On texts of a file, of several lengths. The second context fits into the slots: there is nothing to descend."""
    (tmp_path / "texts").write_text("abcd\nxy\n\n")
    texts = [[*b"abcd"], [*b"xy"]]
    options: dict[str, Any] = {"study": {"file": str(tmp_path / "texts"), "per_step": 2}}
    if name == "cartridge":
        options["frozen_sink"] = False
    memory = build(name, family, decay=False, **options)
    start = written(build(name, family, steps=0, **options))
    found = written(memory)

    def condition(params: list[Tensor], row: int) -> Conditioning:
        if name == "soft-prompt":
            return Conditioning(prefix=params[0])
        past = only_row(start, row)
        return Conditioning(
            key_values=KeyValues(params[0], params[1], past.mask, past.next_position)
        )

    moved = PrefixForm.moved if name == "soft-prompt" else KeyValueForm.moved
    with torch.no_grad():
        teacher = Teacher.reading(memory.backbone, None, Tokens.from_rows(ROWS), 8)
        held_out = teacher.write([[]], 4, 1.0, [0, 1]).ids.tolist()
    for row, ids in enumerate(ROWS):
        expected = naive.distil(
            memory.backbone,
            [start[each][row : row + 1] for each in moved],
            [*moved.values()],
            lambda p, row=row: condition(p, row),
            ids,
            texts,
            held_out[row],
            3,
            0.2,
        )
        for each, tensor in zip(moved, expected, strict=True):
            torch.testing.assert_close(found[each][row : row + 1], tensor, atol=atol, rtol=0)


def test_as_many_slots_as_tokens_and_no_step_are_the_full_context() -> None:
    """For every row, a shorter one has masked slots."""
    query = Tokens.from_rows([[72, 105, 33]] * 2)
    memory, other = build(slots=7, steps=0), full_context()
    found = memory.read(written(memory), query).logits
    torch.testing.assert_close(found, other.read(written(other), query).logits, atol=1e-6, rtol=0)


def test_self_written_texts_are_what_the_model_says_with_the_context() -> None:
    """Teacher states of a written text are those of the same text given, and nearly no temperature makes it greedy."""
    memory, context = build(), Tokens.from_rows(ROWS)
    with torch.no_grad():
        teacher = Teacher.reading(memory.backbone, None, context, 2)
        study = teacher.write([[], [65, 66]], 6, 1e-6, [1, 2, 3])
        again = teacher.write([[], [65, 66]], 6, 1e-6, [4, 5, 6])
        for row, ids in enumerate(ROWS):
            assert study.ids[row, 1, :2].tolist() == [65, 66]
            for text in range(3):
                tokens = study.ids[row, text].tolist()
                states = memory.backbone.forward(
                    memory.backbone.embed(torch.tensor([ids + tokens]))
                )
                hidden = states.hidden[0, len(ids) - 1 : -1]
                assert study.teacher is not None
                torch.testing.assert_close(study.teacher[row, text], hidden[1:], atol=1e-6, rtol=0)
                greedy = memory.backbone.logits(hidden).argmax(-1)
                begun = 2 if text == 1 else 0
                assert greedy[begun:].tolist() == tokens[begun:]
    assert torch.equal(study.ids, again.ids)


def test_sampling_follows_the_model() -> None:
    """The first tokens of many texts are distributed as the model with the context has them."""
    memory, context = build(), Tokens.from_rows(ROWS[:1])
    with torch.no_grad():
        teacher = Teacher.reading(memory.backbone, None, context, 4096)
        drawn = teacher.write([[]], 2, 0.5, range(2000)).ids[0, :, 0]
        odds = (memory.backbone.logits(teacher.last)[0] / 0.5).softmax(-1)
    shares = torch.bincount(drawn, minlength=len(odds)) / 2000
    assert (shares - odds).abs().sum() < 2.5 * float((odds * (1 - odds) / 2000).sqrt().sum())


def test_a_text_ends_at_the_end_token() -> None:
    memory, context = build(), Tokens.from_rows(ROWS[:1])
    end = memory.backbone.info.eos_id
    with torch.no_grad():
        teacher = Teacher.reading(memory.backbone, None, context, 512)
        study = teacher.write([[]], 6, 20.0, range(400))
    ended = 0
    for ids, mask in zip(study.ids[0].tolist(), study.mask[0].tolist(), strict=True):
        length = ids.index(end) + 1 if end in ids else 6
        assert mask == [i < length for i in range(6)]
        ended += length < 6
    assert ended


def test_the_descent_reaches_what_it_descends_on() -> None:
    """The divergence falls, and what is kept on texts held out from the descent rises."""
    for name in READERS:
        memory = build(
            name, steps=60, lr=0.5, study={"texts": 32, "per_step": 8, "held_out": 8, "quotes": 2}
        )
        trace = memory.write(Tokens.from_rows(ROWS[:1])).trace
        assert trace["loss"][-1] < 0.5 * trace["loss"][0]
        assert trace["value_kept"] > trace["value_kept_at_start"]


@pytest.mark.parametrize("name", READERS)
def test_no_row_ends_worse_than_it_starts(name: str) -> None:
    """Steps that are far too large are undone, for each row by itself; what is kept is what the step left behind."""
    study = {"texts": 8, "per_step": 4, "held_out": 4}
    rows = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22, 23, 24]]
    start = written(build(name, steps=0, study=study), rows)
    steps = set()
    for lr in (0.2, 2.0, 50.0):
        memory = build(name, steps=4, lr=lr, decay=False, study=study)
        output = memory.write(Tokens.from_rows(rows))
        assert (output.trace["value_kept"] >= output.trace["value_kept_at_start"]).all()
        for row, step in enumerate(output.trace["kept_step"][0].long().tolist()):
            steps.add(step)
            one = start
            if step:
                shorter = build(name, steps=step, lr=lr, decay=False, study=study)
                one = written(shorter, rows)
            for each, tensor in output.state.tensors.items():
                torch.testing.assert_close(tensor[row], one[each][row], atol=1e-9, rtol=0)
    assert 0 in steps
    assert len(steps) > 1


def test_the_first_slot_is_a_sink_that_stays() -> None:
    start, found = written(build(steps=0), ROWS[:1]), written(build(), ROWS[:1])
    moved = (found["keys"] != start["keys"]).flatten(4)
    assert not moved[:, :, :, 0].any()
    assert moved[:, :, :, 1:].all()


def test_a_memory_goes_on_from_what_it_holds() -> None:
    """The second write starts from the first one's memory, and the teacher reads that before the new context."""
    memory = build(steps=0)
    state = written(memory, ROWS[:1])
    again = memory.write(Tokens.from_rows([[20, 21, 22]]), state).state
    assert torch.equal(again["keys"], state["keys"])
    moving = build()
    after = moving.write(Tokens.from_rows([[20, 21, 22]]), state).state
    assert not torch.equal(after["values"], state["values"])


@pytest.mark.parametrize("name", READERS)
def test_every_start(name: str) -> None:
    """Tokens of one's own make other memories than the context's; another writer's state is where it starts."""
    first = "memory" if name == "soft-prompt" else "keys"
    own = written(build(name, steps=0))
    text = written(build(name, steps=0, start={"text": "ab"}))
    random = written(build(name, steps=0, start="random"))
    for same in (text, random):
        torch.testing.assert_close(same[first][0], same[first][1], atol=1e-6, rtol=0)
    assert not torch.equal(own[first][0], own[first][1])
    assert not torch.equal(text[first], random[first])
    other = {
        "name": name,
        "params": {"steps": 2, "lr": 0.2, "start": "first-tokens", "study": STUDY},
    }
    selected = written(build(name, steps=0, start=other))
    torch.testing.assert_close(selected[first], written(build(name, steps=2))[first])


def test_plain_gradient_steps() -> None:
    """A small step of sgd moves the memory against the gradient by its size times the learning rate."""
    start = written(build(steps=0))
    small, large = (
        written(build(steps=1, optimizer="sgd", lr=lr))["values"] - start["values"]
        for lr in (1e-3, 2e-3)
    )
    torch.testing.assert_close(large, 2 * small, atol=1e-12, rtol=1e-6)


def test_all_of_the_top_tokens_are_the_whole_distribution() -> None:
    whole, top = written(build()), written(build(study={"top_k": 258}))
    few = written(build(study={"top_k": 2}))
    torch.testing.assert_close(top["keys"], whole["keys"], atol=1e-6, rtol=0)
    assert not torch.allclose(few["keys"], whole["keys"], atol=1e-6)


def test_reconstruction_predicts_the_context() -> None:
    memory = build(objective="reconstruction", steps=40, lr=0.2, frozen_sink=False)
    loss = memory.write(Tokens.from_rows(ROWS[:1])).trace["loss"]
    assert loss[-1] < 0.5 * loss[0]


def test_rows_beyond_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    together = written(build())
    monkeypatch.setattr("memwrite_gradient.frozen.writer.AT_ONCE", 1)
    apart = written(build())
    for name in ("keys", "values"):
        torch.testing.assert_close(apart[name], together[name], atol=1e-6, rtol=0)


def test_too_large_steps_are_reported() -> None:
    with pytest.raises(DivergenceError, match=r"row\(s\) \[0\]: use a smaller writer.params.lr"):
        written(build("soft-prompt", lr=1e200, steps=4))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"slots": 1}, "at least 2 slots"),
        ({"start": "middle"}, "start must be first-tokens"),
        ({"start": "middle"}, "no installed writer is called 'middle'"),
        ({"start": 3}, "start must be first-tokens"),
        ({"start": {"nam": "h2o"}}, "start must be first-tokens"),
        ({"start": {"text": ""}}, "start.text is empty"),
        ({"start": {"name": "soft-prompt"}}, "makes 'prefix' states, but 'keyvalue'"),
        ({"start": {"name": "full-context"}}, "as many slots as there are tokens"),
        ({"start": {"name": "cartridge", "params": {"slots": 4}}}, "4 slots, but"),
        ({"objective": "magic"}, "distillation or reconstruction"),
        ({"optimizer": "lion"}, "adam or sgd"),
        ({"lr": 0}, "lr must be positive"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"study": {"length": 1}}, "study.length must be at least 2"),
        ({"study": {"temperature": 0}}, "study.temperature must be positive"),
        ({"study": {"quotes": 5}}, "quotes must be at most study.per_step"),
        ({"study": {"prompts": []}}, "at least one prompt"),
        ({"study": {"prompts": ["far too long"]}}, "shorter than study.length"),
        ({"study": {"file": "nowhere.txt"}}, "cannot be read"),
        ({"objective": "reconstruction", "study": {"top_k": 3}}, "go with objective distillation"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(params: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        build(**params)


def test_a_write_tells_what_the_memory_is_worth() -> None:
    trace = {
        "loss": torch.zeros(20),
        "value_kept": torch.tensor([0.5]),
        "value_kept_at_start": torch.tensor([-1.0]),
        "kept_step": torch.tensor([15]),
    }
    told = worth(trace)
    assert "keeps 50% of what the text is worth" in told.facts[0]
    assert "(-100% at its start; of 20 steps it was best after 15)" in told.facts[0]
    assert not told.notes
    quotes = {"quotes_kept": torch.tensor([0.25]), "quotes_kept_at_start": torch.tensor([0.1])}
    told = worth({**trace, **quotes})
    assert "keeps 50%, and 25% for its repetition, of what" in told.facts[0]
    assert "(-100% and 10% at its start" in told.facts[0]
    assert "worse than none" in worth({**trace, "value_kept": torch.tensor([-0.1])}).notes[0]
    assert (
        "most of the text is lost" in worth({**trace, "value_kept": torch.tensor([0.3])}).notes[0]
    )


def test_the_command_tells_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The lighthouse keeper Marta Olsen keeps forty grey geese.")
    words = [
        "write",
        "configs/cartridge.yaml",
        "--context",
        str(tmp_path / "text"),
        "--out",
        str(tmp_path / "state"),
    ]
    words += [
        "writer.params.slots=4",
        "writer.params.steps=2",
        "writer.params.study.texts=2",
        "writer.params.study.length=8",
    ]
    told = CliRunner().invoke(main, words)
    assert "of what the text is worth to the model" in told.output, told.output
    report = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert report["steps"] == 2
    assert -10 < report["value_kept"] < 1


def test_selected_slots_are_where_it_starts() -> None:
    """Slots that another writer chose, which is given the number of slots."""
    pytest.importorskip("memwrite_kv")
    start = {"name": "h2o", "params": {"sinks": 1}}
    found = written(build(start=start, steps=0))
    other = Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "h2o", "params": {"slots": 3, "sinks": 1}},
            "reader": {"name": "key-value"},
        }
    )
    expected = written(other)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found[name], tensor)
    assert not torch.equal(written(build(start=start))["keys"], expected["keys"])


def test_a_default_start_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a sentence says what brings it, and what does without."""
    assert CartridgeConfig().start == "compact"
    monkeypatch.setattr("memwrite_gradient.frozen.starts.registry", Registry)
    with pytest.raises(ConfigError, match=r"first-tokens.*'compact' comes with memwrite-kv"):
        build(start="compact")


def test_quotes_are_passages_of_the_context() -> None:
    """They cover a long context, and a shorter row has fewer of them: one that is shorter than a passage, itself."""
    memory, rows = build(), [[*range(40, 51)], [12, 13, 14], [*range(60, 65)]]
    with torch.no_grad():
        context = Tokens.from_rows(rows)
        teacher = Teacher.reading(memory.backbone, None, context, 3)
        quotes, few = (teacher.quote(context, 4, most) for most in (9, 3))
    assert few.counts is not None
    assert few.counts.tolist() == [3, 1, 2]
    assert few.ids[0].tolist() == [[*range(start, start + 4)] for start in (40, 43, 47)]
    assert quotes.counts is not None
    counts = quotes.counts.tolist()
    assert counts == [5, 1, 2]
    for row, ids in enumerate(rows):
        found = quotes.texts(row, 7)
        kept = [
            text[real].tolist() for text, real in zip(found.ids[row], found.mask[row], strict=True)
        ]
        assert all(str(text)[1:-1] in str(ids) and len(text) == min(4, len(ids)) for text in kept)
        assert {token for text in kept for token in text} == set(ids)
        assert kept[0] == kept[counts[row]] if counts[row] < 7 else True
    tokens = quotes.ids[0, 1].tolist()
    hidden = memory.backbone.forward(memory.backbone.embed(torch.tensor([rows[0] + tokens]))).hidden
    assert quotes.teacher is not None
    torch.testing.assert_close(quotes.teacher[0, 1], hidden[0, -4:-1], atol=1e-6, rtol=0)


def test_quotes_stand_beside_shorter_texts_of_a_file(tmp_path: Path) -> None:
    """The file's longest text has three tokens, a quote four."""
    (tmp_path / "texts").write_text("abc\nxy\n")
    found = [
        written(build(study={"file": str(tmp_path / "texts"), "quotes": quotes}))["keys"]
        for quotes in (0, 1)
    ]
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_texts_are_no_longer_than_what_is_in_sight() -> None:
    """Longer ones would make no other memory, whatever other contexts stand in the batch."""
    rows = [[*range(20, 32)], [*range(40, 60)]]
    study = {"length": 12, "per_step": 2}
    short = written(build(study=study), rows[:1])
    for length in (15, 40):
        both = written(build(study={**study, "length": length}), rows)
        torch.testing.assert_close(both["keys"][:1], short["keys"], atol=1e-6, rtol=0)
    longer = written(build(study={**study, "length": 15}), rows[1:])
    assert not torch.allclose(both["keys"][1:], longer["keys"], atol=1e-4)


def test_steps_take_quotes_beside_other_texts() -> None:
    """Only quotes need no texts, and other numbers of quotes make other memories."""
    some = [written(build(study={"quotes": quotes}))["keys"] for quotes in (0, 1, 2)]
    assert not torch.allclose(some[0], some[1], atol=1e-4)
    assert not torch.allclose(some[1], some[2], atol=1e-4)
