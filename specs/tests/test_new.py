"""`memwrite new`: a stranger's package installs and passes at once, and a bad name leaves nothing behind."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from memwrite_specs import LAWS, scaffold
from memwrite_specs.scaffold import TEMPLATE, VARIANTS, Scaffold, rendered

from memwrite.cli.main import main
from memwrite.config import load_config, part_config
from memwrite.plugins.registry import discover
from memwrite.plugins.table import Owner

SPECS = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]


def test_a_strangers_plugin_in_ten_minutes(tmp_path: Path) -> None:
    """Made, installed, tested by its own tests and checked, nothing edited."""
    package, site = tmp_path / "memwrite-my-writer", tmp_path / "site"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    paths = os.pathsep.join(filter(None, [str(site), inherited.get("PYTHONPATH", "")]))
    environment = {**inherited, "PYTHONPATH": paths, "MEMWRITE_STRICT": "1"}

    def shell(*words: object, cwd: Path = package) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    memwrite = (sys.executable, "-m", "memwrite")
    assert new("my-writer", "--out", package).exit_code == 0
    shell(*PIP, "install", *OFFLINE, "--target", site, ".")

    tested = shell(sys.executable, "-m", "pytest")
    found = re.search(
        r"memwrite laws: (\d+) held, (\d+) n/a, 0 gap, 0 not run, 0 broken; 1 pair", tested
    )
    assert found, tested
    held, unbound = map(int, found.groups())
    assert (held, unbound) == (len(LAWS) - 2, 2)
    assert f"{held} passed, 2 skipped" in tested

    checked = shell(*memwrite, "check", "my-writer", "--law", "contract", "--law", "usable")
    assert "2 laws: 2 held, 0 n/a, 0 gap, 0 not run, 0 broken" in checked


def new(*words: object) -> Result:
    return CliRunner().invoke(main, ["new", *map(str, words)])


def refused(result: Result, *parts: str) -> None:
    """One sentence on standard error that names every part, and exit code 2."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "name",
    ["My-Writer", "my_writer", "my writer", "a--b", "-a", "a-", "9", "é", "", "memwrite-", "../a"],
)
def test_words_that_are_no_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is lowercase words joined by hyphens; nothing is written for any other."""
    monkeypatch.chdir(tmp_path)
    refused(new("--", name), "cannot be a name", "lowercase words joined by hyphens")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["class", "lambda", "true", "null", "on", "a" * 51])
def test_words_with_a_meaning_of_their_own(name: str, tmp_path: Path) -> None:
    """Keywords of Python, and what YAML would read as something else than the word, are refused."""
    refused(new(name, "--out", tmp_path / "here"), name, "cannot be a name")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("delta", "writer of memwrite-delta"),
        ("memwrite-delta", "writer of memwrite-delta"),
        ("prefix", "reader of memwrite"),
        ("rmt", "importer of memwrite-forward"),
        ("specs", "memwrite-specs"),
    ],
)
def test_names_that_are_taken(name: str, owner: str, tmp_path: Path) -> None:
    """A name that something installed has already is refused, and the owner named."""
    refused(new(name, "--out", tmp_path / "here"), "is taken", owner)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """An existing folder or file is never written into, not even an empty one."""
    full, empty = tmp_path / "full.txt", tmp_path / "empty"
    full.write_text("mine")
    empty.mkdir()
    for path in (full, empty):
        refused(new("bag", "--out", path), str(path), "--out")
    refused(new("bag", "--out", tmp_path / "nowhere" / "bag"), "nowhere", "cannot be made")
    assert full.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [empty, full]
    assert not list(empty.iterdir())


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file cannot be written, none is left."""
    monkeypatch.setattr(scaffold, "rendered", lambda *_: {"a": "a file", "a/b": "and in it"})
    refused(new("bag", "--out", tmp_path / "bag"), "cannot be made")
    assert not list(tmp_path.iterdir())


def test_the_name_of_the_distribution_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`memwrite-bag` is the writer `bag`, in a folder with the distribution's name."""
    monkeypatch.chdir(tmp_path)
    result = new("memwrite-bag")
    assert result.exit_code == 0, result.output
    assert "cd memwrite-bag\n" in result.output
    assert "pip install -e '.[test]'" in result.output
    package = tmp_path / "memwrite-bag"
    found = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert found == rendered("bag").keys()
    plain = tmp_path / "plain"
    plain.mkdir()
    assert package.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("name", ["bag", "tensor", "top-5", "writer", "my-writer-two", "none"])
def test_every_spelling_is_the_names(name: str) -> None:
    """Nothing of the template's own name is left, and every file can still be read."""
    files = rendered(name)
    own = re.compile("my-writer|my_writer|MyWriter|MyConfig")
    for path, text in files.items():
        rest = (path + text).replace(name, "").replace(name.replace("-", "_"), "")
        rest = rest.replace("MyWriterTwo", "")
        assert not own.search(rest), path
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    module = f"memwrite_{name.replace('-', '_')}"
    assert project["name"] == f"memwrite-{name}"
    assert project["entry-points"]["memwrite"] == {name: module}
    assert f"{module}/writer.py" in files
    assert yaml.safe_load(files["config.yaml"])["writer"]["name"] == name
    assert "pytest" in [
        step.get("run") for step in yaml.safe_load(files[".github/workflows/ci.yml"])["jobs"]["laws"]["steps"]
    ]  # fmt: skip


SCAFFOLDS = {
    "matrix": Scaffold(kind="matrix"),
    "keyvalue": Scaffold(kind="keyvalue"),
    "lowrank": Scaffold(kind="lowrank"),
    "own-kind": Scaffold(kind="tally"),
    "reader": Scaffold("reader"),
    "task": Scaffold("task"),
}
each_scaffold = pytest.mark.parametrize("name", SCAFFOLDS)
#: Enough to see that a package works; a user's own tests hold it to all of them.
SOME_LAWS = ("contract", "usable", "sensitivity", "batch-invariance", "differentiable", "mergeable")


def test_no_variant_is_left_out() -> None:
    assert {s.variant for s in SCAFFOLDS.values()} == {p.name for p in VARIANTS.iterdir()}


@each_scaffold
def test_every_scaffold_makes_a_package_that_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plugins can be loaded, its config is one, and the tests that come with it hold."""
    scaffold, word = SCAFFOLDS[name], f"bag-of-{name}"
    option = {"writer": ["--kind", scaffold.kind], "reader": ["--reader"], "task": ["--task"]}
    made = new(word, *option[scaffold.role], "--out", tmp_path / "made")
    assert made.exit_code == 0, made.output
    module = f"memwrite_{word.replace('-', '_')}"
    assert f"{module}/{scaffold.role}.py" in made.output
    monkeypatch.syspath_prepend(tmp_path / "made")
    hooks = importlib.import_module(module)
    found = discover([(Owner(word, "1.0", word), lambda: hooks)])
    assert not found.failures
    assert list(getattr(found, f"{scaffold.role}s").entries) == [word]
    assert list(found.kinds.entries) == (["tally"] if name == "own-kind" else [])

    config = load_config(tmp_path / "made" / "config.yaml")
    part = getattr(config, scaffold.role)
    declared = getattr(found, f"{scaffold.role}s").all()[0]
    part_config(declared.config, part.params, "params")
    assert part.name == word
    assert config.training.out == f"runs/{word}"
    readme = (tmp_path / "made" / "README.md").read_text()
    (shown,) = re.findall("```yaml\n(.*?)```", readme, re.DOTALL)
    assert yaml.safe_load(shown)[scaffold.role] == {"name": word, "params": part.params} or (
        scaffold.role == "task"
    )

    spec = importlib.util.spec_from_file_location(
        f"test_{module}", tmp_path / "made" / "tests" / f"test_{word.replace('-', '_')}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    for test in (function for key, function in vars(tests).items() if key.startswith("test_")):
        if scaffold.role == "task":
            test()
            continue
        (mark,) = test.pytestmark
        laws = [law for law in mark.args[1] if law.law.name in SOME_LAWS]
        outcomes = {law.law.name: law.hold(0).outcome for law in laws}
        assert outcomes.keys() == set(SOME_LAWS)
        assert set(outcomes.values()) <= {"held", "n/a"}, [law.result for law in laws]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--reader", "--task"], ["--kind, --reader and --task"]),
        (["--kind", "matrix", "--reader"], ["--kind, --reader and --task"]),
        (["--kind", "My Kind"], ["'My Kind' cannot be a kind of state", "prefix, keyvalue"]),
        (["--kind", "empty"], ["'empty' cannot be a kind of state"]),
    ],
)
def test_what_cannot_be_made(words: list[str], parts: list[str], tmp_path: Path) -> None:
    refused(new("bag", *words, "--out", tmp_path / "here"), *parts)
    assert not list(tmp_path.iterdir())


@each_scaffold
def test_every_spelling_is_the_names_in_every_scaffold(name: str) -> None:
    files = rendered("bag", SCAFFOLDS[name])
    own = re.compile("my-writer|my_writer|My(Writer|Reader|Task|Config)|my-kind")
    for path, text in files.items():
        assert not own.search(path + text), path
        if path.endswith(".py"):
            ast.parse(text)
            assert len(text.splitlines()) < 55
    assert ("memwrite_bag/writer.py" in files) == (SCAFFOLDS[name].role == "writer")


def test_the_config_is_one(tmp_path: Path) -> None:
    """What `memwrite train` is given: no unknown key, and for the writer what it has by default."""
    path = tmp_path / "config.yaml"
    path.write_text(rendered("bag")["config.yaml"])
    config = load_config(path)
    assert (config.writer.name, config.reader.name) == ("bag", "prefix")
    (slots,) = re.findall(r"slots: int = (\d+)", rendered("bag")["memwrite_bag/config.py"])
    assert config.writer.params == {"slots": int(slots)}
    assert config.training.out == "runs/bag"


def test_the_template_is_what_it_makes_and_small() -> None:
    """The template is the package my-writer itself, each of its modules under 40 lines."""
    for path, text in rendered("my-writer").items():
        assert text == (TEMPLATE / path).read_text()
        assert not path.endswith(".py") or len(text.splitlines()) < 40


def test_what_tools_leave_in_the_template_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip compiles the template's modules where it installs it."""
    before = rendered("bag")
    copy = shutil.copytree(TEMPLATE, tmp_path / "template")
    for litter in ("memwrite_my_writer/__pycache__/writer.pyc", "memwrite_my_writer.egg-info/x"):
        (copy / litter).parent.mkdir(exist_ok=True)
        (copy / litter).write_bytes(b"\xff\x00")
    monkeypatch.setattr(scaffold, "TEMPLATE", copy)
    assert rendered("bag") == before


def test_the_wheel_holds_the_template(tmp_path: Path) -> None:
    """What is installed from an index makes the same packages as a clone."""
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".hypothesis")
    source = shutil.copytree(SPECS, tmp_path / "specs", ignore=litter)
    command = [*PIP, "wheel", "--quiet", *OFFLINE, "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as found:
        names = set(found.namelist())
    inside = "memwrite_specs/template/"
    template = {n.removeprefix(inside) for n in names if n.startswith(inside)}
    assert template == rendered("my-writer").keys()
    variants = {p.relative_to(SPECS).as_posix() for p in VARIANTS.rglob("*.*") if p.is_file()}
    litter = {n for n in variants if "__pycache__" in n}
    assert variants - litter <= names
