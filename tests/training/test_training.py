"""`memwrite train`: a language model from text files, resumed exactly, refused clearly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from memwrite import Memory
from memwrite.backbones.tokenizers import ByteTokenizer, load_tokenizer
from memwrite.config import part_config
from memwrite.errors import ConfigError, DivergenceError, InputError, PluginNotFound
from memwrite.tasks.base import IGNORED, Batch, collate
from memwrite.tasks.text import TextConfig, TextTask
from memwrite.training import run as runs
from memwrite.training import trainer
from memwrite.training.loss import MemoryOutput

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
    "from",
    "it",
]
TEXT = "\n\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 5]) for i in range(60))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config that trains in a second, its text beside it."""
    (tmp_path / "text.txt").write_text(TEXT)
    data: dict[str, Any] = {
        "backbone": {
            "type": "llama",
            "params": {
                "vocab_size": 300,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
            },
            "tokenizer": "bpe",
            "trainable": True,
        },
        "task": {
            "name": "text",
            "params": {"folder": str(tmp_path), "files": ["text.txt"], "length": 32, "repeat": 0.5},
        },
        "training": {
            "out": str(tmp_path / "run"),
            "steps": 6,
            "batch_size": 2,
            "warmup": 1,
            "every": 2,
            "learning_rate": 0.01,
        },
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_run_folder_is_a_memory(config: Path) -> None:
    """The finished folder loads as a backbone with its tokenizer; the loss fell; nothing is left over."""
    out = runs.train(config)
    assert sorted(p.name for p in out.iterdir()) == ["backbone", "config.yaml", "log.jsonl"]
    memory = Memory.from_config(out)
    assert isinstance(memory.ask(memory.write("the fox").state, "the", max_new_tokens=4), str)
    assert load_tokenizer(out / "backbone").vocab_size == 300
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert losses[-1] < losses[0] < math.log(300) + 1


@pytest.mark.parametrize("count", [None, 1, 5])
def test_an_evaluation_takes_as_many_examples_as_asked_for(
    config: Path, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At even distances; all of them by default."""
    given = []

    class Recorded(trainer._MemoryTrainer):
        def __init__(self, stage: Any, **options: Any) -> None:
            given.append(len(options["eval_dataset"]))
            super().__init__(stage, **options)

    monkeypatch.setattr(trainer, "_MemoryTrainer", Recorded)
    asked = [] if count is None else [f"training.evaluated={count}"]
    runs.train(config, ["task.params.held_out=0.5", *asked])
    assert given == [count] if count else given[0] > 5


def test_an_interrupted_run_resumes_exactly(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after step 3 and resumed from the checkpoint of step 2: the same bytes as undisturbed."""
    whole = runs.train(config, [f"training.out={tmp_path / 'whole'}"])

    class Stop(trainer.Log):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Log", Stop)
        with pytest.raises(KeyboardInterrupt):
            runs.train(config)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2").is_dir()
    with pytest.raises(ConfigError, match="unfinished run of another"):
        runs.train(config, ["training.learning_rate=0.5"])
    killed = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    killed.mkdir()  # as a kill leaves it that comes while a checkpoint is saved
    (killed / "trainer_state.json").write_text('{"global_step":')
    mark = tmp_path / "run" / "requested.yaml"
    asked = yaml.safe_load(mark.read_text())
    del asked["backbone"]["ngram"]  # as a version leaves it that has no such option yet
    mark.write_text(yaml.safe_dump(asked))
    resumed = runs.train(config)
    weights = [(out / "backbone" / "model.safetensors").read_bytes() for out in (whole, resumed)]
    assert weights[0] == weights[1]
    with pytest.raises(ConfigError, match="finished run"):
        runs.train(config)


def learnt_at_once(memory: Memory, batch: Batch) -> MemoryOutput:
    """A step whose answers all count as exact."""
    output = forward(memory, batch)
    return replace(output, exact=torch.ones_like(output.exact))


forward = trainer.training_loss


def test_a_curriculum_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage begins where the exact match has been reached; interrupted right then, the run ends the same."""
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    writer = {"slots": 2, "order": "none", "write_head": True, "reconstruction_weight": 0.3}
    data = {
        "backbone": {"type": "gpt2", "params": sizes, "tokenizer": "characters", "trainable": True},
        "writer": {"name": "gradient", "params": writer},
        "reader": {"name": "prefix"},
        "task": {
            "name": "kv-retrieval",
            "params": {"pairs": 3, "curriculum": [1, 2], "advance": 0.09, "examples": 4},
        },
        "training": {"steps": 9, "batch_size": 2, "warmup": 1, "every": 1},
    }
    (tmp_path / "kv.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setattr(trainer, "training_loss", learnt_at_once)
    path, outs = tmp_path / "kv.yaml", [tmp_path / "whole", tmp_path / "parts"]
    whole, parts = ([f"training.out={out}"] for out in outs)
    runs.train(path, whole)
    for stop in (2, 3, 4):

        class Stop(trainer.Log):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == stop:  # noqa: B023
                    raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "Log", Stop)
            with pytest.raises(KeyboardInterrupt):
                runs.train(path, parts)
    runs.train(path, parts)
    for name in ("weights.safetensors", "backbone/model.safetensors"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    entries, again = (
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in outs
    )
    assert [entry["step"] for entry in again] == [entry["step"] for entry in entries]
    seconds = [entry["seconds"] for entry in again]
    assert seconds == sorted(seconds)
    assert {entry["stage"] for entry in entries if "stage" in entry} == {1, 2, 3}
    assert {"eval_exact_match", "exact_match"} <= {key for entry in entries for key in entry}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_diverges_ends_the_training(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """With step, loss and gradient norm; what was saved before goes on as if nothing had happened."""
    steps = count(1)

    def diverging(memory: Memory, batch: Batch) -> MemoryOutput:
        output = forward(memory, batch)
        if not memory.training or next(steps) != 4:
            return output
        nothing = output.loss - output.loss.detach()
        loss = output.loss * math.nan if what == "loss" else output.loss + nothing.sqrt()
        return replace(output, losses={"target": loss})

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "training_loss", diverging)
        with pytest.raises(DivergenceError, match=r"step 4 of 6: loss .*, gradient norm nan"):
            runs.train(config)
    whole = runs.train(config, [f"training.out={tmp_path / 'whole'}"])
    weights = [out / "backbone" / "model.safetensors" for out in (whole, runs.train(config))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_half_precision_halves_the_file_and_keeps_the_model(config: Path, tmp_path: Path) -> None:
    runs.train(config)
    runs.train(config, [f"training.out={tmp_path / 'half'}", "training.save_dtype=float16"])
    full, half = (tmp_path / name / "backbone" / "model.safetensors" for name in ("run", "half"))
    assert half.stat().st_size < 0.55 * full.stat().st_size
    a, b = (Memory.from_config(tmp_path / name).backbone for name in ("run", "half"))
    assert a.info.dtype == b.info.dtype == torch.float32
    ids = torch.arange(10)[None]
    torch.testing.assert_close(
        a.logits(a.forward(a.embed(ids)).hidden), b.logits(b.forward(b.embed(ids)).hidden),
        atol=0.02, rtol=0.02,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=null", "no task"),
        ("task.name=texts", "did you mean 'text'"),
        ("task.params.files=[]", "task.params.files"),
        ("task.params.files=[nothing.txt]", "nothing.txt"),
        ("task.params.repeat=1.5", "task.params.repeat"),
        ("backbone.trainable=false", "nothing to train"),
        ("backbone.params.vocab_size=100", "at least 258"),
        ("training.steps=0", "training.steps"),
        ("training.evaluated=0", "training.evaluated"),
        ("training.save_dtype=int8", "training.save_dtype"),
    ],
)
def test_wrong_training_configs(config: Path, override: str, message: str) -> None:
    with pytest.raises((ConfigError, PluginNotFound), match=message):
        runs.train(config, [override])


def task(tmp_path: Path, text: str, **params: Any) -> TextTask:
    (tmp_path / "t.txt").write_text(text)
    data = {"folder": str(tmp_path), "files": ["t.txt"], **params}
    return TextTask(part_config(TextConfig, data, "task.params"), ByteTokenizer())


def test_a_stable_schedule_falls_with_the_root_over_the_second_half(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stable"
    wanted = ["schedule=stable", "learning_rate=0.01", "steps=8", "warmup=2", "every=1"]
    runs.train(config, [f"training.{key}" for key in (*wanted, f"out={out}")])
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    falling = [0.01 * (0.02 + 0.98 * (1 - (gone / 4) ** 0.5)) for gone in (0, 1, 2, 3)]
    assert rates == pytest.approx([0.0002, 0.0051, 0.01, 0.01, *falling])


def test_windows_depend_on_seed_and_index_alone(tmp_path: Path) -> None:
    examples = task(tmp_path, TEXT, length=40).training(20, seed=3)
    again = task(tmp_path, TEXT, length=40).training(20, seed=3)
    other = task(tmp_path, TEXT, length=40).training(20, seed=4)
    assert [examples[i] for i in range(20)] == [again[i] for i in reversed(range(20))][::-1]
    assert examples[0] != other[0]
    assert all(len(examples[i].queries[0]) == 40 for i in range(20))


def test_held_out_paragraphs_are_never_trained_on(tmp_path: Path) -> None:
    text = "\n\n".join("a" * 50 for _ in range(9)) + "\n\n" + "z" * 50
    made = task(tmp_path, text, length=16, held_out=0.1)
    seen = {i for k in range(200) for i in made.training(200, 0)[k].queries[0]}
    assert ord("a") in seen
    assert ord("z") not in seen
    assert ord("z") in {i for example in made.evaluation() for i in example.queries[0]}  # type: ignore[attr-defined]


def test_repeats_say_a_passage_twice(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    made = task(tmp_path, TEXT.replace("\n", " "), length=64, repeat=0.999).training(5, 0)
    for index in range(5):
        window = made[index].queries[0]
        end = window.index(tokenizer.eos_id)
        assert window[: end + 1] == window[end + 1 : 2 * end + 2]


def test_wikitext_reads_like_prose(tmp_path: Path) -> None:
    text = 'It was 1 @,@ 5 km , a well @-@ known " big " one ( <unk> ) .'
    made = task(tmp_path, "\n\n".join([text] * 40), length=16, held_out=0.5)
    stream = [i for example in made.evaluation() for i in example.queries[0]]  # type: ignore[attr-defined]
    assert ByteTokenizer().decode(stream).startswith('It was 1,5 km, a well-known "big" one ().')


def test_unreadable_text_files(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"ok \xff")
    with pytest.raises(InputError, match="byte 3"):
        TextTask(TextConfig(["t.txt"], str(tmp_path)), ByteTokenizer())
    with pytest.raises(InputError, match="less than one window"):
        task(tmp_path, "short")


def test_collate_aligns_labels_with_queries(tmp_path: Path) -> None:
    examples = [task(tmp_path, TEXT, length=n).training(1, 0)[0] for n in (9, 12)]
    batch = collate(examples)["batch"]
    assert batch.queries.ids.shape == (2, 1, 12)
    assert batch.context.ids.shape == (2, 0)
    assert batch.queries.lengths.tolist() == [[9], [12]]
    asked = batch.labels != IGNORED
    assert asked.sum(-1).tolist() == [[8], [11]]
    assert torch.equal(batch.labels[asked], batch.queries.ids[asked])
