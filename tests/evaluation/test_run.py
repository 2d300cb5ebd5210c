"""Evaluation of any task: scores in tokens and in words, controls, other files, and `memwrite eval` on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from samples import BABI, CODEC, PROSE, SQUAD, made

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.errors import InputError
from memwrite.evaluation import answers
from memwrite.evaluation.answers import evaluate
from memwrite.evaluation.words import normalized, word_contained, word_f1, word_match
from memwrite.plugins import TaskPlugin, hookimpl, register, registry
from memwrite.protocols import Predictions, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite.tasks.babi import BabiConfig
from memwrite.tasks.base import IGNORED, EvaluatedMemory, Example, Examples, collate
from memwrite.tasks.questions import QuestionsTask
from memwrite.tasks.text import TextConfig, TextTask
from memwrite.training.loss import training_loss
from memwrite.training.run import train

# ---- words -------------------------------------------------------------------------------------


def test_answers_in_words_are_compared_without_case_articles_and_punctuation() -> None:
    assert normalized("The  U.S.-led, an Army!") == ["usled", "army"]
    assert word_match("the Normans.", ["Vikings", "normans"]) == 1
    assert word_match("Normans of old", ["Normans"]) == 0
    assert normalized("theatre a") == ["theatre"]
    assert word_contained("It was the  Normans, of old.", ["Vikings", "Normans of old"]) == 1
    assert word_contained("Norman", ["Normans"]) == 0


def test_shared_words() -> None:
    assert word_f1("in the 10th century", ["10th century"]) == pytest.approx(0.8)
    assert word_f1("10th 10th", ["10th century"]) == pytest.approx(0.5)
    assert word_f1("Paris", ["London", "Paris, France"]) == pytest.approx(2 / 3)
    assert word_f1("Paris", ["London"]) == 0
    assert word_f1("the", ["London"]) == 0
    assert word_f1("a", ["the"]) == 1


# ---- with an oracle ----------------------------------------------------------------------------


class Oracle:
    """A memory that knows the right words of every context, and says them as they are or as `spoil` has them.

    Its state is the bytes of the context; what it reads from is found in `known` by them.
    """

    training = True

    def __init__(self, examples: Any, spoil: Any = lambda text: text) -> None:
        ends, cpu = (CODEC.eos_id,), torch.device("cpu")
        info = SimpleNamespace(positions=0, eos_id=CODEC.eos_id, end_ids=ends, device=cpu)
        self.backbone = SimpleNamespace(info=info, tokenizer=CODEC)
        self.known = {
            (*example.context,): {
                question.prompt: [*CODEC.encode(f" {spoil(question.answers[0])}"), CODEC.eos_id]
                for question in example.questions
            }
            for example in examples
        }

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def write(self, context: Tokens) -> WriteOutput:
        assert not self.training
        memory = context.ids.masked_fill(~context.mask, -1)[..., None].double()
        shape = tuple(memory.shape[1:])
        return WriteOutput(
            MemoryState(
                StateSpec("prefix", {"memory": shape}, dtype=torch.float64), {"memory": memory}
            )
        )

    def answer(self, memory: torch.Tensor, query: list[int]) -> list[int]:
        """All that follows the prompt which `query` begins with."""
        known = self.known.get((*(i for i in memory[:, 0].long().tolist() if i >= 0),), {})
        text = CODEC.decode(query)
        return next((ids for prompt, ids in known.items() if text.startswith(prompt)), [0])

    def predict(self, state: MemoryState, queries: Tokens, labels: torch.Tensor) -> Predictions:
        """2 for the right next token and 0 for all others."""
        logits = torch.zeros(*queries.ids.shape, CODEC.vocab_size)
        for row, column in torch.cartesian_prod(*map(torch.arange, queries.ids.shape[:2])).tolist():
            ids = queries.ids[row, column][queries.mask[row, column]].tolist()
            answer = self.answer(state["memory"][row], ids)
            known = [p for p in self.known.values() for p in p if CODEC.decode(ids).startswith(p)]
            start = len(CODEC.encode(known[0])) if known else 0
            for place, token in zip(range(start - 1, len(ids) - 1), answer, strict=False):
                logits[row, column, place, token] = 2
        wanted = labels[..., 1:] != IGNORED
        rows, columns, places = wanted.nonzero(as_tuple=True)
        return Predictions(
            logits[..., :-1, :][wanted],
            labels[..., 1:][wanted],
            rows * queries.ids.shape[1] + columns,
            places + 1,
        )

    def generate(self, state: MemoryState, queries: Tokens, max_new_tokens: int) -> torch.Tensor:
        rows = [
            self.answer(memory, ids[mask].tolist())[:max_new_tokens]
            for memory, ids, mask in zip(state["memory"], queries.ids, queries.mask, strict=True)
        ]
        return Tokens.from_rows(
            [row + [CODEC.eos_id] * (max_new_tokens - len(row)) for row in rows]
        ).ids


def judged(examples: Any, **how: Any) -> Any:
    oracle: Any = Oracle(examples, **how)
    found = evaluate(oracle, examples)
    assert oracle.training
    return found


def test_a_memory_that_knows_all_and_its_controls(tmp_path: Path) -> None:
    examples = made("babi", tmp_path, held_out=1).evaluation()
    found = judged(examples)
    assert (found.contexts, found.memory.questions) == (4, 5)
    assert found.memory.tokens == sum(len(f" {a}") + 1 for a in (
        "bathroom", "hallway", "apple,milk", "office", "yes"))  # fmt: skip
    assert found.memory.exact_match == found.memory.token_accuracy == 1
    assert found.memory.bits == pytest.approx(math.log2(1 + 257 / math.exp(2)), rel=1e-5)
    assert found.memory.word_f1 is None
    for control in (found.zero_state, found.shuffled_state):
        assert control.exact_match == 0
    assert found.full_context is None
    assert found.groups == {"file": found.memory}


def test_words_are_worth_something_where_tokens_are_not(tmp_path: Path) -> None:
    """Says 'the France' and 'the unanswerable': no token sequence is right, every answer is in words."""
    examples = made("squad", tmp_path, held_out=1).evaluation()
    found = judged(examples, spoil=lambda text: f"the {text}")
    assert found.memory.exact_match == 0
    # Decoding stops at the length of the longest right answer, so only the shorter ones are said to their ends.
    assert found.memory.word_match == pytest.approx(2 / 3)
    assert found.groups["with an answer"].word_match == 1
    assert found.memory.word_contained == pytest.approx(2 / 3)
    assert found.groups["with an answer"].questions == 2
    assert found.groups["without an answer"].word_f1 == 0
    assert judged(examples).memory.word_match == 1
    some = judged(examples, spoil=lambda text: "in France" if text == "France" else text)
    assert some.memory.word_match == 1
    assert some.memory.exact_match == pytest.approx(2 / 3)


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = BABI + BABI.replace("Mary", "Ann")
    examples = made("babi", tmp_path, text, held_out=1).evaluation()
    spoil = {"bathroom": "hall", "hallway": "hall"}
    whole = judged(examples, spoil=lambda said: spoil.get(said, said))
    assert whole.memory.exact_match == pytest.approx(6 / 10)
    monkeypatch.setattr(answers, "_MAX_TOKENS", 1)
    parts = judged(examples, spoil=lambda said: spoil.get(said, said))
    assert parts.memory == whole.memory


def test_another_state_is_one_of_another_context() -> None:
    assert answers._others([[1], [1], [2], [1]]) == [2, 2, 3, 2]
    assert answers._others([[1], [1]]) is None
    assert answers._others([[1]]) is None


def test_a_single_context_has_no_other(tmp_path: Path) -> None:
    found = judged(made("babi", tmp_path, held_out=1).evaluation()[:1])
    assert found.memory.exact_match == 1
    assert found.shuffled_state is None
    assert any(line.split() == ["another's", "state", "-"] for line in found.lines())


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        judged(made("babi", tmp_path, held_out=0).evaluation())


# ---- with a model ------------------------------------------------------------------------------

BACKBONE: dict[str, Any] = {
    "type": "llama",
    "params": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.25,
    },
    "tokenizer": "words",
    "trainable": True,
}
FORWARD = {"writer": {"name": "forward", "params": {"slots": 2}}, "reader": {"name": "prefix"}}
NONE: dict[str, Any] = {}
FULL = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


def trained(folder: Path, name: str, text: str, pair: Any = FORWARD, **params: Any) -> Path:
    """The run folder of two steps on a task whose one file holds a text."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "file").write_text(text)
    params = {"files": ["file"], "folder": str(folder / "data"), **params}
    data = {
        "backbone": BACKBONE,
        **pair,
        "task": {"name": name, "params": params},
        "training": {"out": str(folder / "run"), "steps": 2, "batch_size": 2, "warmup": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return train(folder / "config.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on four stories, of which one is held out."""
    text = BABI + BABI.replace("milk", "ball")[: BABI.index("1 The")]
    return trained(tmp_path_factory.mktemp("babi"), "babi", text)


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def report(*words: object) -> Any:
    result = call("eval", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_eval_asks_what_was_held_out(run: Path) -> None:
    found = report(run)
    assert found.keys() == {
        "run", "seed", "task", "params", "contexts", "state_floats", "state_bytes", "cache_bytes",
        "write_seconds", "read_seconds", "memory", "unwritten", "zero_state", "shuffled_state", "full_context", "groups",
    }  # fmt: skip
    assert (found["task"], found["contexts"], found["memory"]["questions"]) == ("babi", 2, 3)
    assert found["groups"]["file"] == found["memory"]
    assert found["full_context"]["tokens"] == found["memory"]["tokens"]
    fresh = report(run, "--seed", 1, "--examples", 6)
    assert fresh["contexts"] == 6
    assert report(run, "--examples", 2, "task.params.held_out=1")["contexts"] == 2


def test_eval_asks_all_of_other_files(run: Path, tmp_path: Path) -> None:
    """Words that nobody has seen in training are no hindrance."""
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(BABI.replace("office", name[:3]))
    words = ["task.params.files=[one.txt,two.txt]", f"task.params.folder={tmp_path}"]
    found = report(run, *words)
    assert (found["contexts"], found["memory"]["questions"]) == (8, 10)
    assert {name: group["questions"] for name, group in found["groups"].items()} == {
        "one.txt": 5,
        "two.txt": 5,
    }
    assert report(run, *words, "task.params.held_out=0.1")["contexts"] == 2
    lines = call("eval", run, *words).stdout.splitlines()
    assert lines[0].startswith("8 contexts with 10 questions")
    shares = [f"{found[name]['exact_match']:.1%}" for name in ("memory", "zero_state")]
    assert [line.split()[-6] for line in lines if line.startswith(("memory", "zero"))] == shares
    assert any(line.startswith("two.txt (5)") for line in lines)


def test_eval_of_one_task_on_another(run: Path, tmp_path: Path) -> None:
    """What the run's own task was set to does not stand in the way."""
    (tmp_path / "q.json").write_text(json.dumps(SQUAD))
    words = ["task.name=squad", f"task.params.files=[{tmp_path / 'q.json'}]"]
    found = report(run, *words)
    assert (found["contexts"], found["memory"]["questions"]) == (2, 3)
    assert 0 <= found["memory"]["word_f1"] <= 1
    assert set(found["groups"]) == {"with an answer", "without an answer"}


def test_exact_match_is_that_of_greedy_decoding(run: Path, tmp_path: Path) -> None:
    """On a model that says the same of nearly everything, right answers are those that it says."""
    memory = Memory.from_config(run)
    tokenizer = memory.backbone.tokenizer
    (tmp_path / "f").write_text(BABI)
    asked = QuestionsTask(BabiConfig(["f"], str(tmp_path), 1), tokenizer).evaluation()
    examples: list[Example] = []
    right = 0
    for number, example in enumerate(asked):
        state = memory.write(Tokens.from_rows([example.context])).state
        queries, labels = [], []
        for query, label in zip(example.queries, example.labels, strict=True):
            prompt = query[: label.count(IGNORED)]
            said = memory.generate(state, Tokens.from_rows([prompt]), max_new_tokens=3)[0].tolist()
            if number % 2:
                said[1] = (said[1] + 1) % tokenizer.vocab_size
            right += number % 2 == 0
            queries.append(prompt + said)
            labels.append([IGNORED] * len(prompt) + said)
        examples.append(Example(example.context, queries, labels, example.segments))
    found = evaluate(memory, examples).memory
    assert 0 < right < found.questions
    assert found.exact_match == right / found.questions


def test_a_learned_beginning_is_told_from_zeros(run: Path) -> None:
    """What a memory that has read nothing answers is the reader's own doing."""
    found = report(run)
    assert found["unwritten"] != found["zero_state"]
    assert found["unwritten"]["questions"] == found["memory"]["questions"]
    assert found["cache_bytes"] > found["state_bytes"] > 0
    assert found["write_seconds"] > 0
    assert found["read_seconds"] > 0
    lines = call("eval", run).stdout.splitlines()
    assert lines[0].endswith("% of the key-value cache")
    assert lines[1].startswith("written in ")
    assert any(line.startswith("unwritten") for line in lines)


def test_the_full_context_reads_what_its_column_says(tmp_path: Path) -> None:
    text = "".join(f"1 The key is {i}.\n2 What is the key?\t{i}\t1\n" for i in range(20))
    found = report(trained(tmp_path, "babi", text, FULL, held_out=0.3))
    assert found["memory"] == found["full_context"]
    assert found["memory"] != found["shuffled_state"]


@pytest.mark.parametrize("name", ["reconstruction", "continuation"])
def test_eval_of_chunks(tmp_path: Path, name: str) -> None:
    """Beside the full context, which cannot predict it, a query's first token does not count."""
    params = {"length": 8} | ({"context": 8} if name == "continuation" else {})
    found = report(trained(tmp_path, name, PROSE, held_out=0.4, **params))
    assert found["groups"] == {}
    counted = {"reconstruction": 8, "continuation": 7}[name]
    for column in ("memory", "zero_state", "shuffled_state", "full_context"):
        assert found[column]["tokens"] == counted * found["contexts"]


def test_eval_of_a_language_model(tmp_path: Path) -> None:
    """Without a context there is no column of the full one; bits are those of the training loss."""
    run = trained(tmp_path, "text", PROSE, NONE, held_out=0.4, length=8)
    found = report(run)
    assert found["full_context"] is found["shuffled_state"] is None
    assert found["memory"] == found["zero_state"]
    memory = Memory.from_config(run)
    params = TextConfig(["file"], str(tmp_path / "data"), held_out=0.4, length=8)
    held = TextTask(params, memory.backbone.tokenizer).evaluation()
    batch = collate([held[i] for i in range(len(held))])["batch"]
    assert found["memory"]["bits"] == pytest.approx(
        training_loss(memory, batch).loss.item() / math.log(2), 1e-5
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["task.params.files=[no.txt]"], "no.txt"),
        (["task.params.files=[damaged]"], "damaged', line 2"),
        (["task.params.fils=[x]"], "did you mean 'files'"),
        (["task.name=squat"], "did you mean 'squad'"),
        (["--examples", 1], "at least 2"),
        (["task.params.held_out=0"], "nothing to evaluate"),
    ],
)
def test_eval_refuses_in_one_sentence(run: Path, words: list[Any], part: str) -> None:
    (run.parent / "data" / "damaged").write_text("1 A.\n7 B.\n")
    result = call("eval", run, *words)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert part in result.stderr


# ---- tasks of others, and memories that need no training ---------------------------------------


@dataclass(frozen=True)
class EchoConfig:
    """How many contexts are held out."""

    contexts: int = 4
    training_only: int | None = None


class Echo:
    """A context, and a query that repeats it."""

    def __init__(self, config: EchoConfig, tokenizer: Any) -> None:
        assert config.training_only is None, "an evaluation is without it"
        self._count = config.contexts

    def training(self, count: int, seed: int) -> list[Example]:
        return [Example([5 + i % 3], [[5 + i % 3]], [[5 + i % 3]]) for i in range(count)]

    def evaluation(self) -> list[Example]:
        return self.training(self._count, 0)

    def fresh(self, count: int, seed: int) -> list[Example]:
        return self.training(count, seed)


@dataclass(frozen=True)
class NormEvaluation:
    """The size of the states."""

    contexts: int
    state_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"contexts": self.contexts, "state_bytes": self.state_bytes}

    def lines(self) -> list[str]:
        return [f"{self.contexts} states of {self.state_bytes} bytes in all"]


def norms(memory: EvaluatedMemory, examples: Examples) -> NormEvaluation:
    assert not memory.training
    assert not torch.is_grad_enabled()
    state = memory.write(
        collate([*map(examples.__getitem__, range(len(examples)))])["batch"].context
    )
    return NormEvaluation(len(examples), state.state.nbytes)


@hookimpl
def memwrite_tasks() -> list[TaskPlugin]:
    """The hook of a distribution of its own."""
    return [
        TaskPlugin(
            api=2,
            name="echo",
            summary="a token, repeated",
            config=EchoConfig,
            build=Echo,
            evaluate=norms,
            evaluation_params=lambda params, overridden: {
                name: value for name, value in params.items() if name != "training_only"
            },
            examples="contexts",
        )
    ]


@pytest.fixture
def with_echo() -> Iterator[None]:
    registry.cache_clear()
    others = ModuleType("memwrite_echo")
    others.__dict__["memwrite_tasks"] = memwrite_tasks
    register(others)
    yield
    registry.cache_clear()


@pytest.mark.usefixtures("with_echo")
def test_a_task_of_others_is_scored_its_own_way(tmp_path: Path) -> None:
    """By its own function, on as many examples as are asked for, without what is for training alone."""
    path = tmp_path / "echo.yaml"
    backbone = {**BACKBONE, "tokenizer": "bytes"}
    task = {"name": "echo", "params": {"training_only": 3}}
    path.write_text(yaml.safe_dump({"backbone": backbone, **FULL, "task": task}))
    (line,) = call("eval", path).stdout.splitlines()
    assert line.startswith("4 states of ")
    measured = report(path, "--examples", 2)
    assert measured["contexts"] == 2
    assert measured["params"] == {"contexts": 2}


def config_file(folder: Path, pair: Any) -> Path:
    """The config of an untrained model with that writer and reader, on four stories."""
    (folder / "data").write_text(BABI * 4)
    task = {"name": "babi", "params": {"files": ["data"], "folder": str(folder), "held_out": 0.5}}
    backbone = {**BACKBONE, "tokenizer": "bytes"}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"backbone": backbone, **pair, "task": task}))
    return path


def test_a_baseline_is_evaluated_from_its_config(tmp_path: Path) -> None:
    path = config_file(tmp_path, FULL)
    result = call("eval", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    assert measured["memory"] == measured["full_context"]


def test_weights_that_were_never_trained_are_pointed_out(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="the writer 'forward' has weights that were never trained"
    ):
        result = call("eval", config_file(tmp_path, FORWARD))
    assert result.exit_code == 0
