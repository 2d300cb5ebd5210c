"""Key-value retrieval: its scores, its controls and `memwrite eval`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch.nn import functional as F

from memwrite import Memory
from memwrite.backbones.tokenizers import character_tokenizer
from memwrite.cli.main import main
from memwrite.errors import ConfigError, StorageError
from memwrite.evaluation import key_value as kv
from memwrite.evaluation.scores import bits_recalled, effective_count, score, wilson
from memwrite.protocols import ReadOutput, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite.tasks.base import Batch, collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.run import train

CODEC = character_tokenizer()


def task(**params: Any) -> KeyValueTask:
    return KeyValueTask(KeyValueConfig(**params), CODEC)


# ---- scores ------------------------------------------------------------------------------------


def test_scores_of_hand_made_answers() -> None:
    """Two contexts of two pairs: right; bound to the other key; a value of nobody; half right."""
    targets = torch.tensor([[[4, 5], [6, 7]], [[8, 9], [10, 11]]])
    answers = torch.tensor([[[4, 5], [4, 5]], [[20, 21], [10, 12]]])
    scores = score(answers, answers, targets)
    assert scores.exact_match == 0.25
    assert scores.token_accuracy == 3 / 8
    assert scores.set_recall == 0.5
    assert scores.binding == 0.5
    assert score(answers + 40, answers + 40, targets).binding is None


def test_right_values_bound_at_random_come_to_one_in_n() -> None:
    torch.manual_seed(0)
    targets = torch.stack([torch.randperm(62)[:8, None] for _ in range(500)])
    order = torch.rand(500, 8).argsort(1)
    answers = targets.gather(1, order[..., None])
    scores = score(answers, answers, targets)
    assert scores.set_recall == 1
    assert scores.exact_match == scores.binding == pytest.approx(1 / 8, abs=0.02)
    low, high = scores.interval
    assert low < 1 / 8 < high


def test_wilson_intervals_from_the_books() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_answers_of_one_context_that_rise_and_fall_together_count_less() -> None:
    assert effective_count([1.0, 0.0] * 50, 8) == pytest.approx(100, rel=0.02)
    assert effective_count([0.5] * 100, 8) == 800
    assert effective_count([1.0] * 100, 8) == 100
    assert effective_count([0.3], 8) == 1
    assert effective_count([1.0, 0.0] * 50, [8] * 100) == effective_count([1.0, 0.0] * 50, 8)
    assert effective_count([0.5] * 10, range(1, 11)) == 55
    generator = torch.Generator().manual_seed(0)
    rates = (torch.rand(4000, 8, generator=generator) < 0.3).double().mean(1).tolist()
    assert effective_count(rates, 8) == pytest.approx(32000, rel=0.06)


def test_bits_are_those_of_the_published_table() -> None:
    """Exact match as published for 8x128 floats, bits per float as computed from it in the notes."""
    for exact, pairs, bits in ((0.884, 96, 0.94), (0.586, 64, 0.38), (0.443, 32, 0.13)):
        assert pairs * bits_recalled(exact, 2) / 1024 == pytest.approx(bits, abs=0.0051)
    assert bits_recalled(1.0, 2) == pytest.approx(11.9084, abs=1e-4)
    assert bits_recalled(0.0, 2) == bits_recalled(1 / 3844, 2) == 0
    rising = [bits_recalled(k / 100, 1) for k in range(2, 101)]
    assert rising == sorted(rising)
    assert rising[0] > 0


class Oracle:
    """A memory whose state is the context's text and whose reader looks answers up in it.

    With `bound` false it knows the set alone: any value that goes on from what the query shows of one.
    """

    training = True

    def __init__(self, bound: bool) -> None:
        self.bound = bound
        self.backbone = SimpleNamespace(
            info=SimpleNamespace(positions=0, device=torch.device("cpu"))
        )
        self.modes: list[bool] = []

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def write(self, context: Tokens) -> WriteOutput:
        self.modes.append(self.training or torch.is_grad_enabled())
        memory = context.ids[..., None].float()
        spec = StateSpec("prefix", {"memory": tuple(memory.shape[1:])})
        return WriteOutput(MemoryState(spec, {"memory": memory}))

    def read(self, state: MemoryState, queries: Tokens) -> ReadOutput:
        logits = F.one_hot(torch.zeros_like(queries.ids), 70).float()
        for row, memory in enumerate(state["memory"][..., 0].long()):
            text = CODEC.decode(memory.tolist())
            pairs = dict(part.split(":") for part in text.strip("!|").split("!!") if part)
            for column, ids in enumerate(queries.ids[row].tolist()):
                key, shown = CODEC.decode(ids)[2:].split(":")
                for length in range(min(len(shown), 1) + 1):
                    place = logits[row, column, 4 + length]
                    place[self._next(pairs, key, shown[:length])] = 2
        return ReadOutput(logits, None)

    def _next(self, pairs: dict[str, str], key: str, shown: str) -> int:
        own = [pairs[key]] if key in pairs else []
        fitting = [v for v in (own if self.bound else pairs.values()) if v.startswith(shown)]
        chosen = random.Random(key + shown).choice(fitting or ["??"])
        return CODEC.encode(chosen)[len(shown)]


def evaluated(
    bound: bool, pairs: int = 4, examples: int = 200
) -> tuple[Oracle, kv.KeyValueEvaluation]:
    oracle: Any = Oracle(bound)
    return oracle, kv.evaluate(oracle, task(pairs=pairs, examples=examples).evaluation())


def test_controls_of_a_memory_that_remembers() -> None:
    """All right from its own state, nothing from zeros or from another's."""
    oracle, found = evaluated(bound=True)
    assert found.memory.exact_match == found.memory.set_recall == found.memory.binding == 1
    assert found.memory.token_accuracy == 1
    for control in (found.zero_state, found.shuffled_state):
        assert control.exact_match < 0.01
        assert control.set_recall < 0.01
    assert found.full_context is None
    assert found.state_floats == 7 * 4 + 1
    assert found.bits == pytest.approx(4 * 11.9084, abs=1e-3)
    assert found.bits_per_float == found.bits / 29
    assert oracle.training
    assert not any(oracle.modes)


def test_bits_gained_are_those_of_the_likelihood() -> None:
    """The oracle gives each right character e²/(e² + e + 68), where chance is 1/62."""
    _, found = evaluated(bound=True)
    bits = math.log2(math.exp(2) / (math.exp(2) + math.e + 68))
    assert found.surprise == pytest.approx(-2 * bits, rel=1e-5)
    assert found.bits_gained == pytest.approx(4 * 2 * (math.log2(62) + bits), rel=1e-5)
    assert found.bits_gained < found.bits
    _, guessed = evaluated(bound=False)
    assert guessed.bits_gained < found.bits_gained


def test_a_memory_of_the_set_alone_is_told_from_one_of_nothing() -> None:
    """Decoded answers show the set; characters given the right ones before them would hide it."""
    _, found = evaluated(bound=False)
    assert found.memory.set_recall == 1
    assert found.memory.exact_match == found.memory.binding == pytest.approx(1 / 4, abs=0.06)
    assert found.memory.token_accuracy > 0.6


@pytest.mark.parametrize("examples", [2, 3, 5])
def test_no_state_is_shuffled_onto_itself(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    monkeypatch.setattr(kv, "_QUERIES_PER_BATCH", 8)
    _, found = evaluated(bound=True, pairs=4, examples=examples)
    assert found.contexts == examples
    assert found.memory.exact_match == 1
    assert found.shuffled_state.exact_match == 0


def test_one_example_has_no_other() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        kv.evaluate(Oracle(True), task().training(1, 0))  # type: ignore[arg-type]


# ---- with a model ------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "tokenizer": "characters",
    },
    "writer": {"name": "gradient", "params": {"slots": 2, "steps": 1}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 3, "curriculum": [1], "examples": 6}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model that never trained."""
    folder = tmp_path_factory.mktemp("kv") / "run"
    Memory.from_config(CONFIG).save_run(folder)
    return folder


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_eval_reports_as_json(run: Path) -> None:
    report = json.loads(call("eval", run, "--json").output)
    assert report.keys() == {
        "run", "seed", "task", "contexts", "pairs", "value_length", "state_floats", "state_bytes",
        "cache_bytes", "write_seconds", "read_seconds", "memory", "unwritten", "zero_state", "shuffled_state", "full_context", "bits", "bits_per_float",
        "surprise", "bits_gained", "params",
    }  # fmt: skip
    scores = {"exact_match", "interval", "independent", "token_accuracy", "set_recall", "binding"}
    for name in ("memory", "unwritten", "zero_state", "shuffled_state", "full_context"):
        assert report[name].keys() == scores
        low, high = report[name]["interval"]
        assert 0 <= low <= report[name]["exact_match"] <= high <= 1
    assert (report["contexts"], report["pairs"], report["state_floats"]) == (6, 3, 2 * 16)
    assert report["state_bytes"] == 4 * report["state_floats"]
    again = json.loads(call("eval", run, "--json").output)
    assert {**again, "write_seconds": 0, "read_seconds": 0} == {
        **report,
        "write_seconds": 0,
        "read_seconds": 0,
    }


def test_eval_in_words_with_other_contexts(run: Path) -> None:
    """A context longer than the model's positions leaves the column of the full context open."""
    result = call("eval", run, "--seed", 3, "--examples", 4, "task.params.pairs=9")
    assert result.exit_code == 0, result.output
    assert "4 contexts of 9 pairs" in result.output
    rows = [line for line in result.output.splitlines() if line.startswith("context visible")]
    assert rows[0].endswith("too long")
    for name in ("memory", "zero state", "another's state"):
        assert any(line.startswith(name) and "%" in line for line in result.output.splitlines())


def test_eval_of_baselines() -> None:
    """No memory has no bits per float; the full context reads from its own state what its column says."""
    examples = task(pairs=3, examples=4).evaluation()
    none = Memory.from_config({"backbone": CONFIG["backbone"]})
    assert kv.evaluate(none, examples).bits_per_float is None
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    found = kv.evaluate(Memory.from_config({"backbone": CONFIG["backbone"], **parts}), examples)
    assert found.memory == found.full_context
    assert found.state_floats > 22 * 16


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("task.params.pairs=0",), ("task.params.pairs",)),
        (("task.params.pairs=5000",), ("3844 keys",)),
        (("--examples", 1), ("task.params.examples",)),
        (("--device", "nowhere"), ("nowhere",)),
    ],
)
def test_eval_with_wrong_options(
    run: Path, words: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    refused(call("eval", run, *words), *parts)


def test_eval_of_a_run_on_no_task(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "task": None}))
    refused(call("eval", tmp_path), str(tmp_path), "no task")


def test_eval_of_what_is_no_run(tmp_path: Path) -> None:
    refused(call("eval", tmp_path / "no"), "neither a run folder nor a config", "memwrite train")
    refused(call("eval", tmp_path), "config.yaml")


def test_bpe_has_no_text_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    words = ["backbone.tokenizer=bpe", f"training.out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="bpe"):
        train(tmp_path / "c.yaml", words)


def test_a_state_file_of_a_model_of_characters(tmp_path: Path) -> None:
    """Built from its type alone, as the header says; a hub id of the tokenizer's name is not fetched."""
    memory = Memory.from_config(CONFIG)
    memory.save(memory.write("!ab:c1!|").state, tmp_path / "x.st")
    reader, state = Memory.load(tmp_path / "x.st")
    batch: Batch = collate([task(pairs=1).training(1, 0)[0]])["batch"]
    ours = memory.read(memory.write("!ab:c1!|").state, batch.queries).logits
    torch.testing.assert_close(reader.read(state, batch.queries).logits, ours)
    with pytest.raises(StorageError, match="is not here"):
        Memory.load(tmp_path / "x.st", backbone="characters")
