"""Discovery of plugins: nothing that one of them does or declares stops another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from memwrite.config import load_config
from memwrite.errors import (
    ConfigError,
    PluginApiMismatch,
    PluginBroken,
    PluginConflict,
    PluginNotFound,
)
from memwrite.plugins import (
    ReaderPlugin,
    Registry,
    TaskPlugin,
    WriterPlugin,
    hookimpl,
    registry,
)
from memwrite.plugins.registry import discover
from memwrite.plugins.table import Owner


@dataclass(frozen=True)
class Params:
    """Nothing to set."""


def build(*_: Any) -> Any:
    raise AssertionError("discovery builds nothing")


WRITER = WriterPlugin(
    api=2, name="good", summary="a writer", config=Params, build=build, emits="prefix"
)
READER = ReaderPlugin(
    api=2,
    name="fine",
    summary="a reader",
    config=Params,
    build=build,
    accepts=frozenset({"prefix"}),
)
TASK = TaskPlugin(api=2, name="useful", summary="a task", config=Params, build=build)


def module(**functions: Any) -> ModuleType:
    made = ModuleType("plugin")
    for name, function in functions.items():
        setattr(made, name, hookimpl(function))
    return made


def raising(error: BaseException) -> Any:
    def fail() -> Any:
        raise error

    return fail


def half_way() -> Any:
    yield WRITER
    raise RuntimeError("half way")


class Mute(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def beside_a_sound_one(load: Any) -> Registry:
    sound = module(
        memwrite_writers=lambda: [WRITER],
        memwrite_readers=lambda: [READER],
        memwrite_tasks=lambda: [TASK],
    )
    return discover(
        [
            (Owner("first", "1.0", "before"), lambda: module()),
            (Owner("broken", "0.3", "entry"), load),
            (Owner("sound", "2.0", "after"), lambda: sound),
        ]
    )


def hook(value: Any, name: str = "memwrite_writers") -> Any:
    return lambda: module(**{name: lambda: value})


FAULTS: dict[str, tuple[Any, type[Exception], str]] = {
    "import": (raising(ImportError("no\nsuch thing")), PluginBroken, "no such thing"),
    "syntax": (raising(SyntaxError("bad")), PluginBroken, "SyntaxError: bad"),
    "exit": (raising(SystemExit(0)), PluginBroken, "SystemExit"),
    "mute": (raising(Mute()), PluginBroken, "Mute"),
    "hook": (
        lambda: module(memwrite_writers=raising(KeyError("x"))),
        PluginBroken,
        "memwrite_writers",
    ),
    "reader hook": (
        lambda: module(memwrite_readers=raising(KeyError("x"))),
        PluginBroken,
        "memwrite_readers",
    ),
    "half way": (lambda: module(memwrite_writers=half_way), PluginBroken, "half way"),
    "misspelt": (hook([WRITER], "memwrite_writer"), PluginBroken, "memwrite_writer"),
    "argument": (
        lambda: module(memwrite_writers=lambda config: [WRITER]),
        PluginBroken,
        "config",
    ),
    "none": (hook(None), PluginBroken, "memwrite_writers"),
    "words": (hook("good"), PluginBroken, "str"),
    "a reader for a writer": (hook([READER]), PluginBroken, "ReaderPlugin"),
    "a writer for a reader": (hook([WRITER], "memwrite_readers"), PluginBroken, "WriterPlugin"),
    "older api": (hook([replace(WRITER, api=0)]), PluginApiMismatch, "API 0"),
    "newer api": (hook([replace(WRITER, api=3)]), PluginApiMismatch, "API 3"),
    "api in words": (hook([replace(WRITER, api="1")]), PluginApiMismatch, "API"),
    "config no type": (hook([replace(WRITER, config=Params())]), PluginBroken, "config"),
    "config no dataclass": (hook([replace(WRITER, config=dict)]), PluginBroken, "config"),
    "capabilities": (
        hook([replace(WRITER, capabilities=frozenset({"psychic"}))]),
        PluginBroken,
        "psychic",
    ),
    "name None": (hook([replace(WRITER, name=None)]), PluginBroken, "name"),
    "name a number": (hook([replace(WRITER, name=3)]), PluginBroken, "name"),
    "name a list": (hook([replace(WRITER, name=["x"])]), PluginBroken, "name"),
    "name empty": (hook([replace(WRITER, name="")]), PluginBroken, "name"),
    "emits a list": (hook([replace(WRITER, name="w", emits=["prefix"])]), PluginBroken, "emits"),
    "accepts a word": (
        hook([replace(READER, name="r", accepts="prefixes")], "memwrite_readers"),
        PluginBroken,
        "accepts",
    ),
    "build nothing": (hook([replace(WRITER, build=None)]), PluginBroken, "build"),
    "task hook": (
        lambda: module(memwrite_tasks=raising(KeyError("x"))),
        PluginBroken,
        "memwrite_tasks",
    ),
    "a writer for a task": (hook([WRITER], "memwrite_tasks"), PluginBroken, "TaskPlugin"),
    "a task for a writer": (hook([TASK]), PluginBroken, "WriterPlugin"),
    "task of another api": (
        hook([replace(TASK, api=3)], "memwrite_tasks"),
        PluginApiMismatch,
        "API 3",
    ),
    "task without config": (
        hook([replace(TASK, config=None)], "memwrite_tasks"),
        PluginBroken,
        "config",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_stops_nobody(fault: str) -> None:
    """One sentence with the owner, a traceback on demand, and all others as if nothing had been."""
    load, kind, word = FAULTS[fault]
    found = beside_a_sound_one(load)
    (broken,) = found.broken
    assert type(broken.error) is kind
    assert str(broken.error).startswith("the plugin broken 0.3 ")
    assert word in str(broken.error)
    assert "\n" not in str(broken.error)
    assert "Traceback" in broken.traceback
    assert found.failures == [broken]
    assert found.writer("good") is WRITER
    assert found.reader("fine") is READER
    assert found.task("useful") is TASK
    assert found.pairs() == [(WRITER, READER)]
    for name in ("entry", "broken"):
        with pytest.raises(kind, match=r"broken 0\.3"):
            found.writer(name)
    with pytest.raises(PluginNotFound, match=r"did you mean 'good'\?.*not loaded.*broken 0\.3"):
        found.writer("goood")


def test_an_interrupt_is_not_a_fault() -> None:
    with pytest.raises(KeyboardInterrupt):
        beside_a_sound_one(raising(KeyboardInterrupt()))


def test_one_hook_that_fails_leaves_the_other() -> None:
    other = replace(READER, name="other")
    found = beside_a_sound_one(
        lambda: module(
            memwrite_writers=raising(RuntimeError("x")), memwrite_readers=lambda: [other]
        )
    )
    assert found.reader("other") is other
    assert len(found.broken) == 1


@pytest.mark.parametrize("role", ["writer", "reader", "task"])
def test_a_name_of_two_owners_is_nobodys(role: str) -> None:
    """Both are named, and every other name still works; a writer and a reader may share one."""
    plugin: Any = {"writer": WRITER, "reader": READER, "task": TASK}[role]
    found = beside_a_sound_one(hook([plugin, replace(plugin, name="mine")], f"memwrite_{role}s"))
    get = getattr(found, role)
    with pytest.raises(PluginConflict, match=rf"the {role} '{plugin.name}'.*broken 0.3 and sound"):
        get(plugin.name)
    assert get("mine").name == "mine"
    (fault,) = found.failures
    assert isinstance(fault.error, PluginConflict)
    shared = beside_a_sound_one(hook([replace(WRITER, name="fine")]))
    assert shared.failures == []
    assert shared.reader("fine") is READER


def test_a_class_with_hooks_is_a_plugin_too() -> None:
    """What an entry point names may be any object that pluggy takes."""
    made = SimpleNamespace(memwrite_writers=hookimpl(lambda: (replace(WRITER, name="object"),)))
    assert beside_a_sound_one(lambda: made).writer("object").name == "object"


def distribution(site: Path, name: str, version: str, source: str) -> None:
    """An installed distribution, as importlib.metadata sees it."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[memwrite]\n{module}_entry = {module}\n")


HEALTHY = """
from memwrite.plugins import WriterPlugin, hookimpl
from memwrite.plugins.builtin.readers import NoParams

@hookimpl
def memwrite_writers():
    return [WriterPlugin(api=2, name="{name}", summary="nothing", config=NoParams, build=lambda c, b: None, emits="prefix")]
"""
REPORT = """
import json, os, sys
from memwrite.errors import PluginError
from memwrite.plugins import registry
for variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    registry.cache_clear()
    try:
        found = registry()
        print(json.dumps([sorted(found.writers.entries), [str(f.error) for f in found.failures]]))
    except PluginError as error:
        print(json.dumps([type(error).__name__, [str(error)]]))
"""


def child(site: Path, code: str, *arguments: str) -> str:
    """What a fresh interpreter prints that has `site` among its installed distributions."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMWRITE_")}
    environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def registries(site: Path, *variables: dict[str, str]) -> list[Any]:
    """Names of writers with the faults, or the error raised, under each set of variables in turn.

    Of the distributions those in `site` alone are allowed, which is quick: no other one is imported.
    """
    names = ",".join(path.name.rsplit("-", 2)[0] for path in site.glob("*.dist-info"))
    allowed = [{"MEMWRITE_PLUGINS": names, **more} for more in variables]
    lines = child(site, REPORT, json.dumps(allowed)).split("\n")
    assert len(lines) == len(variables)
    return [json.loads(line) for line in lines]


BUILT_IN = ["full-context", "no-memory"]


def test_only_those_that_are_allowed_are_imported(tmp_path: Path) -> None:
    """By their distributions' names, however they are spelled; who asks for another is told why it is not there."""
    distribution(tmp_path, "acme-one", "1.0", HEALTHY.format(name="shiny"))
    distribution(tmp_path, "acme-two", "2.5", "open('ran', 'w')")
    code = """
from memwrite.errors import PluginError
from memwrite.plugins import registry
found = registry()
print(*[name for name in found.writers.entries if name not in ("full-context", "no-memory")])
print(*[fault.owner.distribution for fault in found.blocked if "acme" in fault.owner.distribution], found.failures)
try:
    found.writer("acme_two_entry")
except PluginError as error:
    print(error)
"""
    allowing = {"MEMWRITE_PLUGINS": " Acme_One ,nobody"}
    names, blocked, asked = child(tmp_path, f"import os; os.environ |= {allowing}\n{code}").split(
        "\n"
    )
    assert names == "shiny"
    assert blocked == "acme-two []"
    assert asked == "the plugin acme-two 2.5 is not one that MEMWRITE_PLUGINS allows"
    assert not (tmp_path / "ran").exists()
    assert not Path("ran").exists()


def test_installed_distributions(tmp_path: Path) -> None:
    """A healthy one is found beside broken ones and beside another with the same name in it;
    strict mode raises at once; without plugins there are only the built-ins, which are in order.
    """
    distribution(tmp_path, "acme-one", "1.0", HEALTHY.format(name="shiny"))
    distribution(tmp_path, "acme-two", "2.5", HEALTHY.format(name="shiny"))
    distribution(tmp_path, "acme-three", "3.0", HEALTHY.format(name="other"))
    distribution(tmp_path, "acme-syntax", "0.1", "def (:")
    distribution(tmp_path, "acme-exit", "0.2", "import sys; sys.exit(0)")
    lenient, strict, bare, strictly_bare = registries(
        tmp_path,
        {"MEMWRITE_STRICT": "0"},
        {"MEMWRITE_STRICT": "1"},
        {"MEMWRITE_STRICT": "0", "MEMWRITE_NO_PLUGINS": "1"},
        {"MEMWRITE_STRICT": "1", "MEMWRITE_NO_PLUGINS": "1"},
    )
    names, faults = lenient
    assert {"shiny", "other", *BUILT_IN} <= set(names)
    assert len(faults) == 3
    for words in (
        ("acme-exit 0.2", "SystemExit"),
        ("acme-syntax 0.1", "SyntaxError"),
        ("'shiny'", "acme-one 1.0 and acme-two 2.5"),
    ):
        assert any(all(word in fault for word in words) for fault in faults), words
    assert strict[0] == "PluginBroken"
    assert strict[1] == [faults[0]]
    assert bare == strictly_bare == [BUILT_IN, []]


def test_strict_mode_minds_a_name_that_is_taken(tmp_path: Path) -> None:
    """Also one that is built in."""
    distribution(tmp_path, "acme", "1.0", HEALTHY.format(name="no-memory"))
    (lenient, strict) = registries(tmp_path, {"MEMWRITE_STRICT": "0"}, {"MEMWRITE_STRICT": "1"})
    assert len(lenient[1]) == 1
    assert strict[0] == "PluginConflict"
    assert "'no-memory'" in strict[1][0]
    assert "acme 1.0" in strict[1][0]


PARITY = """
from dataclasses import dataclass
from memwrite.plugins import TaskPlugin, hookimpl
from memwrite.tasks.base import Example

@dataclass(frozen=True)
class Config:
    bits: int = 4

    def __post_init__(self):
        if self.bits < 1:
            raise ValueError(f"bits must be at least 1, got {self.bits}")

class Parity:
    def __init__(self, config, tokenizer):
        self.bits, self.tokenizer = config.bits, tokenizer

    def training(self, count, seed):
        return [self.example(seed + number) for number in range(count)]

    def evaluation(self):
        return self.training(2, 1)

    def fresh(self, count, seed):
        return self.training(count, seed + 100)

    def example(self, number):
        text = format(number % 2**self.bits, f"0{self.bits}b")
        question, answer = self.tokenizer.encode("?"), self.tokenizer.encode(str(text.count("1") % 2))
        return Example(self.tokenizer.encode(text), [question + answer], [[-100, *answer]])

@hookimpl
def memwrite_tasks():
    return [TaskPlugin(api=2, name="parity", summary="whether the ones are odd", config=Config, build=Parity)]
"""


@pytest.fixture
def with_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another party's task, installed."""
    distribution(tmp_path, "acme-parity", "1.0", PARITY)
    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.mark.usefixtures("with_parity")
def test_a_task_of_others_is_trained_on_by_its_name(tmp_path: Path) -> None:
    """Like one that is built in: listed, validated, trained on."""
    from memwrite.cli.main import main
    from memwrite.training.run import train

    listed = CliRunner().invoke(main, ["plugins", "--json"])
    tasks = {p["name"]: p for p in json.loads(listed.output)["plugins"] if p["role"] == "task"}
    assert tasks["parity"]["origin"] == "acme-parity"
    assert tasks["kv-retrieval"]["origin"] == "memwrite"
    out = tmp_path / "run"
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
    config = {
        "backbone": {"type": "gpt2", "params": sizes, "trainable": True},
        "writer": {"name": "full-context"},
        "reader": {"name": "key-value"},
        "task": {"name": "parity", "params": {"bits": 6}},
        "training": {"steps": 2, "batch_size": 2, "warmup": 1, "every": 2, "out": str(out)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"task\.params.*bits must be at least 1, got 0"):
        train(tmp_path / "config.yaml", ["task.params.bits=0"])
    with pytest.raises(
        PluginNotFound, match=r"no installed task is called 'party'.*did you mean 'parity'"
    ):
        train(tmp_path / "config.yaml", ["task.name=party"])
    assert train(tmp_path / "config.yaml") == out
    task = load_config(out / "config.yaml").task
    assert task is not None
    assert (task.name, task.params) == ("parity", {"bits": 6})
    assert "eval_loss" in (out / "log.jsonl").read_text()
