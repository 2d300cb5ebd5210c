"""The command line: text into a state file and out of it, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf_files
import pytest
import safetensors.torch
import torch
import yaml
from click.testing import CliRunner, Result

from memwrite.backbones.loading import MODEL_FOLDER
from memwrite.cli.main import main

MODEL = {
    "type": "gpt2",
    "params": {
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.2,
    },
}
CRAM = {
    "slots": 8,
    "steps": 200,
    "optimizer": "adam",
    "lr": 0.1,
    "init_std": 0.15,
    "order": "none",
    "stop_when_exact": True,
}
TEXT = "Zweiundvierzig ist die Antwort: 6×7.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a context and the state written from it."""
    folder = tmp_path_factory.mktemp("cli")
    config = {
        "backbone": MODEL,
        "writer": {"name": "gradient", "params": CRAM},
        "reader": {"name": "prefix"},
    }
    (folder / "cram.yaml").write_text(yaml.safe_dump(config))
    (folder / "doc.txt").write_text(TEXT)
    result = run(
        "write", folder / "cram.yaml", "--context", folder / "doc.txt", "--out", folder / "doc.st"
    )
    assert result.exit_code == 0, result.output
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def sentence(result: Result, *parts: str) -> str:
    """The one line of an error, after checking that it is one and names every part."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


def test_recall_in_a_new_process_with_the_text_deleted(folder: Path, tmp_path: Path) -> None:
    """The state alone gives the text back, in another process, after the text is gone."""
    context = tmp_path / "gone.txt"
    context.write_text(TEXT)
    out = tmp_path / "gone.st"
    assert run("write", folder / "cram.yaml", "--context", context, "--out", out).exit_code == 0
    context.unlink()
    command = [sys.executable, "-m", "memwrite", "recall", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["text"] == TEXT
    assert TEXT[:12].encode() not in out.read_bytes()


def test_write_reports_in_words_and_as_json(folder: Path, tmp_path: Path) -> None:
    words = (
        "write",
        folder / "cram.yaml",
        "--context",
        folder / "doc.txt",
        "--out",
        tmp_path / "x",
    )
    plain, report = run(*words), json.loads(run(*words, "--json").output)
    assert f"{len(TEXT.encode())} bytes of text" in plain.output
    assert report["state"] == {"memory": [8, 128]}
    assert report["state_bytes"] == 8 * 128 * 4
    assert report["accuracy"] == 1.0
    assert report["steps"] < CRAM["steps"]


def test_ask_continues_a_prompt(folder: Path) -> None:
    """A prompt gets at most the tokens asked for, the same ones each time."""
    words = ("ask", folder / "doc.st", "Zwei", "--max-new-tokens", 5)
    answer = json.loads(run(*words, "--json").stdout)["answer"]
    assert run(*words).stdout == answer + "\n"
    assert len(answer) <= 5


def test_standard_input_and_overrides(folder: Path, tmp_path: Path) -> None:
    """A context from standard input; an override changes the config."""
    words = ["write", folder / "cram.yaml", "--context", "-", "--out", tmp_path / "x", "--json"]
    words += ["writer.params.slots=3", "writer.params.steps=2"]
    result = CliRunner().invoke(main, [str(word) for word in words], input="hello")
    assert json.loads(result.output)["state"] == {"memory": [3, 128]}


def test_a_long_text_is_written_in_chunks_and_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("abcdefghij" * 20)
    words = (
        "write",
        folder / "cram.yaml",
        "--context",
        tmp_path / "long.txt",
        "--out",
        tmp_path / "x",
    )
    result = run(*words, "writer.params.steps=1")
    assert result.exit_code == 0
    assert "in chunks of 120 tokens" in result.stderr


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("writer.name=gradent", ("gradent", "did you mean 'gradient'")),
        ("reader.name=prefx", ("prefx", "did you mean 'prefix'")),
        ("writer.params.slotz=3", ("writer.params.slotz", "did you mean 'slots'")),
        ("writer.params.slots=-1", ("writer.params.slots", "-1")),
        ("writer.params.slots=many", ("writer.params.slots", "many")),
        ("writer.params.optimizer=sdg", ("writer.params.optimizer", "sdg")),
        ("writr.name=gradient", ("writr", "did you mean 'writer'")),
        ("seed=abc", ("seed", "abc")),
        ("reader.name=key-value", ("key-value", "gradient", "'prefix'")),
        ("backbone.device=cuda:77", ("cuda:77",)),
        ("backbone.device=nowhere", ("nowhere",)),
        ("backbone.dtype=float7", ("float7",)),
        ("backbone.type=gpt22", ("gpt22",)),
        ("backbone.params.n_leyer=3", ("n_leyer", "did you mean 'n_layer'")),
        ("backbone.path=nowhere", ("backbone.path",)),
        ("writer.params.slots=200", ("200 positions", "128")),
        ("slots", ("slots", "key.path=value")),
    ],
)
def test_wrong_config(folder: Path, tmp_path: Path, override: str, parts: tuple[str, ...]) -> None:
    """Every wrong key, type or value: one sentence that names it, and nothing written."""
    out = tmp_path / "out.st"
    words = ("write", folder / "cram.yaml", "--context", folder / "doc.txt", "--out", out, override)
    sentence(run(*words), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent(folder: Path, tmp_path: Path) -> None:
    words = (
        "write",
        folder / "cram.yaml",
        "--context",
        folder / "doc.txt",
        "--out",
        tmp_path / "x",
    )
    sentence(run(*words, "backbone.device=cuda"), "cuda", "no CUDA device")


@pytest.mark.parametrize(
    ("content", "part"), [(None, "No such file"), (b" \n", "empty"), (b"ab\xff\xfecd", "byte 2")]
)
def test_wrong_context(folder: Path, tmp_path: Path, content: bytes | None, part: str) -> None:
    """A missing, empty or undecodable context leaves an earlier state as it was."""
    out, context = tmp_path / "out.st", tmp_path / "context"
    out.write_bytes(b"precious")
    if content is not None:
        context.write_bytes(content)
    words = ("write", folder / "cram.yaml", "--context", context, "--out", out)
    sentence(run(*words), str(context), part)
    assert out.read_bytes() == b"precious"


def test_wrong_yaml_and_wrong_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("writer: {name: [")
    context = ("--context", folder / "doc.txt")
    sentence(run("write", tmp_path / "bad.yaml", *context, "--out", tmp_path / "x"), "bad.yaml")
    sentence(run("write", tmp_path / "no.yaml", *context, "--out", tmp_path / "x"), "no.yaml")
    target = tmp_path / "no" / "x"
    sentence(run("write", folder / "cram.yaml", *context, "--out", target), "no folder")


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda data: data[:5], "not a memwrite state"),
        (lambda data: data[:-7], "damaged"),
        (lambda data: data[:-40] + bytes(40), "checksum"),
        (lambda data: b"a text file, if anything", "not a memwrite state"),
        (lambda data: safetensors.torch.save({"x": torch.zeros(2)}), "not a memwrite state"),
    ],
)
def test_damaged_state(folder: Path, tmp_path: Path, damage: object, part: str) -> None:
    """A truncated, damaged or foreign file is refused by name by every command that reads one."""
    bad = tmp_path / "bad.st"
    bad.write_bytes(damage((folder / "doc.st").read_bytes()))  # type: ignore[operator]
    sentence(run("recall", bad), str(bad), part)
    sentence(run("ask", bad, "x"), str(bad), part)


def test_a_model_in_place_of_a_config_is_answered_with_a_command(
    folder: Path, tmp_path: Path
) -> None:
    """A folder, a file, a hub id and a short name; the command that is printed can be used as it is."""
    from memwrite import Memory

    model = tmp_path / "model"
    Memory.from_config({"backbone": {**MODEL, "trainable": True}}).save_run(tmp_path / "run")
    (tmp_path / "run" / MODEL_FOLDER).rename(model)
    words = ("--context", folder / "doc.txt", "--out", tmp_path / "x.st")
    for result, part in (
        (run("write", model, *words), f"'{model}' is the folder of a language model"),
        (
            run("write", "someone/some-model", *words),
            "no config or run folder 'someone/some-model'",
        ),
        (run("write", "smollm2-135m", *words), "the name of a language model?"),
        (run("write", "models/some.gguf", *words), "'models/some.gguf' is a language model"),
        (run("eval", model), "is the folder of a language model"),
        (run("train", model), "is the folder of a language model"),
    ):
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert part in result.stderr
        line = result.stderr.split("\n\n")[1].split()
        assert line[1] in ("write", "eval", "train")
        assert line[2:] == ["--model", line[3], "--writer", "full-context"]
    given = run("write", model, *words).stderr.split("\n\n")[1].split()
    assert run(*given[1:], *words).exit_code == 0


def test_a_model_with_a_writer_needs_no_config(folder: Path, tmp_path: Path) -> None:
    """The state is that of the config which says the same; a reader that fits is found."""
    from memwrite.checkpoints.state_file import load_state

    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.llama(max_position_embeddings=256))
    words = ("--context", folder / "doc.txt", "--out", tmp_path / "x.st")
    overrides = ("writer.params.slots=3", "writer.params.steps=1", "seed=7")
    done = run("write", "--model", path, "--writer", "gradient", *words, *overrides)
    assert done.exit_code == 0, done.stderr
    header = load_state(tmp_path / "x.st").header
    assert (header.reader.name, header.seed) == ("prefix", 7)
    assert header.writer.params == {"slots": 3, "steps": 1}
    assert header.backbone["path"] == str(path)
    asked = run("ask", tmp_path / "x.st", "he", "--max-new-tokens", 3)
    assert asked.exit_code == 0, asked.stderr
    for reader in ("prefix", "key-value"):
        result = run("write", "--model", path, "--writer", "gradient", "--reader", reader, *words)
        assert result.exit_code == (0 if reader == "prefix" else 2), result.stderr
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "he"}')
    many = ("--input", tmp_path / "docs.jsonl", "--out", tmp_path / "mem.db")
    assert run("write", "--model", path, "--writer", "gradient", *many, *overrides).exit_code == 0
    result = run("eval", "--model", path, "--writer", "full-context", "seed=1")
    sentence(result, "the config has no task")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "give a config or a run folder, or a language model with --model"),
        (("seed=1",), "give a config or a run folder"),
        (("cram.yaml", "--model", "x", "--writer", "gradient"), "not both"),
        (("cram.yaml", "--writer", "gradient"), "go with --model"),
        (("--model", "x"), "--model needs a --writer (known: "),
        (("--model", "x", "--writer", "gardient"), "did you mean 'gradient'"),
    ],
)
def test_what_is_written_by_is_said_once(folder: Path, words: tuple[str, ...], part: str) -> None:
    result = run("write", *words, "--context", folder / "doc.txt", "--out", folder / "x.st")
    assert result.exit_code == 2
    assert part in " ".join(result.stderr.split())


@pytest.mark.parametrize("option", ["--context", "--input"])
def test_an_option_that_is_given_twice_is_refused(folder: Path, option: str) -> None:
    result = run("write", folder / "cram.yaml", option, "a", option, "b", "--out", "c")
    assert result.exit_code == 2
    assert option in result.stderr
    assert "only once" in result.stderr


@pytest.mark.parametrize("words", [("ask", "what?"), ("recall",)])
def test_a_store_in_place_of_a_state_asks_for_the_key(
    folder: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"id": "a", "text": "ab"}))
    store = tmp_path / "mem.db"
    done = run("write", folder / "cram.yaml", "--input", tmp_path / "docs.jsonl", "--out", store)
    assert done.exit_code == 0, done.output
    command, *rest = words
    sentence(run(command, store, *rest), str(store), "is a store", "--key", "memwrite store list")
    assert run(command, store, *rest, "--key", "a").exit_code == 0


def test_state_for_another_backbone(folder: Path, tmp_path: Path) -> None:
    """Another backbone is refused, both fingerprints named, unless forced."""
    from memwrite import Memory

    other = Memory.from_config({"backbone": {**MODEL, "trainable": True}, "seed": 1})
    other.save_run(tmp_path / "other")
    words = ("recall", folder / "doc.st", "--backbone", tmp_path / "other")
    sentence(run(*words), other.backbone.fingerprint, "force")
    assert run(*words, "--force").exit_code == 0


def test_plugins_lists_origin_health_and_pairs() -> None:
    report = json.loads(run("plugins", "--json").output)
    by_name = {(part["role"], part["name"]): part for part in report["plugins"]}
    assert by_name["writer", "gradient"]["origin"] == "memwrite-gradient"
    assert {part["health"] for part in report["plugins"]} == {"ok"}
    assert ["gradient", "prefix"] in report["pairs"]
    assert ["gradient", "key-value"] not in report["pairs"]
    assert "gradient + prefix" in run("plugins").output


def install(site: Path, name: str, code: str) -> None:
    """A distribution as pip would leave it: a module and its metadata with an entry point."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[memwrite]\n{name} = {name}\n")


COMMANDS = """
import json, sys
from click.testing import CliRunner
from memwrite.cli.main import main
results = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.stderr] for result in results]))
"""


def with_installed(site: Path, *commands: Sequence[object]) -> list[tuple[int, str]]:
    """Run commands in one other process that finds the distributions in `site`: exit codes and standard error."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, error) for code, error in json.loads(done.stdout)]


TWIN = """
import dataclasses, memwrite_gradient
from memwrite.plugins import hookimpl
@hookimpl
def memwrite_writers():
    return [memwrite_gradient.GRADIENT]
"""
RAISING_HOOK = """
from memwrite.plugins import hookimpl
@hookimpl
def memwrite_writers():
    raise RuntimeError("no luck")
"""


Outcome = tuple[int, str]


@pytest.fixture(scope="module")
def among_broken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Return how commands end beside two plugins that raise and one that takes the name of another."""
    site = tmp_path_factory.mktemp("site")
    install(site, "raising_import", "import nothing_of_that_name")
    install(site, "raising_hook", RAISING_HOOK)
    install(site, "twin", TWIN)
    write = ("write", folder / "cram.yaml", "--context", folder / "doc.txt", "--out", site / "x")
    commands: dict[str, Sequence[object]] = {
        "plugins": ("plugins",),
        "traceback": ("plugins", "--traceback"),
        "recall": ("recall", folder / "doc.st"),
        "write by the broken one": (*write, "writer.name=raising_hook"),
        "write by one of two": write,
    }
    outcomes = dict(zip(commands, with_installed(site, *commands.values()), strict=True))
    assert not (site / "x").exists()
    return outcomes


def test_broken_plugins_are_named_and_stop_nobody_else(among_broken: dict[str, Outcome]) -> None:
    """Plugins that raise: `plugins` names them and ends with 2, healthy ones go on working."""
    exit_code, error = among_broken["plugins"]
    assert exit_code == 2
    assert "Traceback" not in error
    assert "raising_import 1.0 could not be imported" in error
    assert "raising_hook 1.0 failed in memwrite_writers()" in error
    assert "Traceback" in among_broken["traceback"][1]
    assert among_broken["recall"] == (0, "")
    exit_code, error = among_broken["write by the broken one"]
    assert exit_code == 2
    assert error.count("\n") == 1
    assert "no luck" in error


def test_two_plugins_with_one_name(among_broken: dict[str, Outcome]) -> None:
    """The shared name cannot be used, and both owners are named."""
    exit_code, error = among_broken["write by one of two"]
    assert exit_code == 2
    assert error.count("\n") == 1
    assert "twin 1.0" in error
    assert "memwrite-gradient" in error


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, memwrite.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "write" in run("--help").output
