"""Whatever stands in a file or an override: a Config, or one sentence that is a ConfigError."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memwrite.config import (
    BackboneConfig,
    Config,
    PartConfig,
    TrainingConfig,
    load_config,
    part_config,
    to_dict,
)
from memwrite.errors import ConfigError

BASE: dict[str, Any] = {"backbone": {"path": "here"}}
KEYS = ["backbone", "writer", "reader", "task", "training", "seed"]
INNER = ["path", "type", "params", "name", "steps", "dtype", "a", "save_dtype", "trainable"]


@dataclass(frozen=True)
class Params:
    slots: int
    rate: float = 0.5
    mode: str = "plain"
    deep: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text("ab.${}[]?:=, 0#&*!%@`'\"|>-\n", max_size=8)
    | st.sampled_from(["???", "${seed}", "${nope}", "${", "$", "${a.b}", "${backbone}"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*KEYS, *INNER]) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def made_or_said(make: Callable[[], Any]) -> Any:
    """What was made, or what the ConfigError says; any other exception is a failure."""
    try:
        return make()
    except ConfigError as error:
        return str(error)


def config_or_sentence(source: Any, overrides: Sequence[str] = ()) -> None:
    config = made_or_said(lambda: load_config(source, overrides))
    if isinstance(config, str):
        assert config.strip()
        assert "\n" not in config
        return
    assert isinstance(config, Config)
    assert isinstance(config.backbone, BackboneConfig)
    assert isinstance(config.writer, PartConfig)
    assert isinstance(config.training, TrainingConfig)
    assert type(config.seed) is int


@settings(max_examples=200)
@given(
    source=st.dictionaries(st.sampled_from([*KEYS, "sed", 7, None, True]), TREES, max_size=3),
    whole=st.booleans(),
)
@example(source={"backbone": "${&}"}, whole=False)
@example(source={"backbone": {"params": {1: 2}, "path": "x"}}, whole=False)
@example(source={"writer": {"name": "a\nb", "x\ny": 1}}, whole=True)
@example(source={"backbone": {"path": "x", "params": {"${nope}": "${nope}"}}}, whole=False)
@example(source={"writer": None}, whole=True)
@example(source={None: None}, whole=True)
def test_any_mapping(source: dict[Any, Any], whole: bool) -> None:
    config_or_sentence({**BASE, **source} if whole else source)


@settings(max_examples=200)
@given(
    overrides=st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from([*KEYS, "backbone.path", "writer.params", "writer.params.a.b"])
            | st.text("a.[]{}:0$ \n", max_size=5),
            st.text("a.[]{}:$0,\"'#&*!- \n", max_size=6),
        ),
        max_size=2,
    )
)
@example(overrides=["[}:$= 0"])
@example(overrides=["backbone=${&}", "task.name=a"])
@example(overrides=["a\nb=1"])
@example(overrides=["=\n"])
@example(overrides=["writer=3"])
@example(overrides=["writer.params=[1]"])
@example(overrides=["seed=!!python/object/apply:os.getcwd []"])
def test_any_override(overrides: list[str]) -> None:
    config_or_sentence(BASE, overrides)


@settings(max_examples=200)
@given(
    st.binary(max_size=40)
    | st.text("ab: -[]{}$\n\t&*!\"'|#?,", max_size=40).map(str.encode)
    | TREES.map(lambda tree: yaml.safe_dump(tree).encode())
)
@example(b"")
@example(b"just text")
@example(b"- a\n- b")
@example(b"a: &x [*x]")
@example(b"backbone: {path: x}\nbackbone: {path: y}")
@example(b"\xff\xfe\x00")
@example(b"!!python/object/apply:os.getcwd []")
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    config_or_sentence(path)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Params)]), LEAVES))
@example({"slots": "${slots}"})
@example({"slots": "${rate}"})
def test_any_parameters_of_a_plugin(params: dict[str, Any]) -> None:
    made = made_or_said(lambda: part_config(Params, params, "writer.params"))
    if isinstance(made, str):
        assert "writer.params" in made
        assert "\n" not in made
    else:
        assert made.slots >= 1


MISTAKES: list[tuple[list[str], tuple[str, ...]]] = [
    (["writter.name=x"], ("writter", "did you mean 'writer'?")),
    (["writer.nme=x"], ("writer.nme", "did you mean 'name'?")),
    (["training.step=x"], ("training.step ", "did you mean 'steps'?")),
    (["backbone.device.x=1"], ("backbone.device",)),
    (["training.steps=many"], ("training.steps", "many")),
    (["training.bf16=perhaps"], ("training.bf16", "perhaps")),
    (["training.save_dtype=float31"], ("training.save_dtype", "did you mean 'float32'?")),
    (["backbone.dtype=bfloat"], ("backbone.dtype", "did you mean 'bfloat16'?")),
    (["backbone.attention=eagre"], ("backbone.attention", "did you mean 'eager'?")),
    (["backbone.path=null"], ("backbone.path", "backbone.type")),
    (["writer.params=[1]"], ("writer.params",)),
    (["backbone.params=3"], ("backbone.params",)),
    (["task=3"], ("task",)),
    (["task={}"], ("task.name", "required")),
    (["writer=null"], ("writer",)),
    (["seed=1.5"], ("seed",)),
    (["seed=null"], ("seed",)),
    (["seed"], ("'seed'", "key.path=value")),
    (["writer.name=${nope}"], ("writer.name", "nope")),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES)
def test_mistakes_name_their_key(overrides: list[str], words: tuple[str, ...]) -> None:
    """And what was probably meant."""
    with pytest.raises(ConfigError) as caught:
        load_config(BASE, overrides)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ("writer.params.slots", "required")),
        ({"slots": 0}, ("writer.params.slots must be at least 1, got 0",)),
        ({"slots": 1, "rat": 2}, ("writer.params.rat", "did you mean 'rate'?")),
        ({"slots": 1, "rate": "fast"}, ("writer.params.rate", "fast")),
        ({"slots": 1, "mode": {}}, ("writer.params.mode",)),
        ({"slots": [1]}, ("writer.params.slots",)),
        ({"slots": 1, 7: 2}, ("writer.params.7",)),
    ],
)
def test_mistakes_in_parameters_name_their_key(
    params: dict[Any, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        part_config(Params, params, "writer.params")
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.yaml", "none/none.yaml", "."):
        with pytest.raises(ConfigError, match=str(tmp_path / name)):
            load_config(tmp_path / name)


def test_the_later_wins(tmp_path: Path) -> None:
    """Defaults, then the file, then overrides in order; lists and mappings as YAML has them."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "backbone: {type: gpt2, params: {n_embd: 8, n_layer: 2}}\n"
        "writer: {name: a, params: {list: [1, 2], deep: {x: 1, y: 2}}}\n"
        "seed: 5\n"
    )
    config = load_config(
        path,
        ["seed=6", "seed=7", "writer.params.list=[3]", "writer.params.deep.y=z", "training.clip=2"],
    )
    assert config.seed == 7
    assert config.writer.params == {"list": [3], "deep": {"x": 1, "y": "z"}}
    assert config.backbone.params == {"n_embd": 8, "n_layer": 2}
    assert (config.training.clip, config.training.steps) == (2.0, TrainingConfig().steps)
    assert load_config(to_dict(config)) == config


def test_a_file_says_what_differs_from_the_one_that_it_is_based_on(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "model.yaml").write_text("backbone: {path: here, dtype: float64}\nseed: 1\n")
    (tmp_path / "deep/one.yaml").write_text(
        "base: ../model.yaml\nwriter: {name: a, params: {x: 1, y: 2}}\nreader: {name: r, params: {z: 3}}\nseed: 2\n"
    )
    (tmp_path / "two.yaml").write_text("base: deep/one.yaml\nwriter: {params: {y: 5}}\n")
    config = load_config(tmp_path / "two.yaml", ["reader.params.z=4"])
    assert (config.backbone.path, config.backbone.dtype, config.seed) == ("here", "float64", 2)
    assert config.writer == PartConfig("a", {"x": 1, "y": 5})
    assert config.reader == PartConfig("r", {"z": 4})
    assert (
        load_config({"base": str(tmp_path / "two.yaml"), "reader": {"params": {"z": 4}}}) == config
    )


@pytest.mark.parametrize(
    ("base", "words"),
    [("two.yaml", "based on itself"), ("one.yaml", "based on itself"), ("none.yaml", "none.yaml")],
)
def test_a_base_that_leads_nowhere(tmp_path: Path, base: str, words: str) -> None:
    (tmp_path / "one.yaml").write_text("base: two.yaml\nbackbone: {path: here}\n")
    (tmp_path / "two.yaml").write_text(f"base: ../{tmp_path.name}/{base}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "one.yaml")
    with pytest.raises(ConfigError, match="base should be the path"):
        load_config({"base": [1], **BASE})


@pytest.mark.parametrize("part", ["writer", "reader", "task"])
def test_another_name_drops_the_parameters_of_the_old_one(tmp_path: Path, part: str) -> None:
    """In a file based on another, and in overrides, whatever the order of theirs."""
    path = tmp_path / "c.yaml"
    path.write_text(f"backbone: {{path: here}}\n{part}: {{name: a, params: {{x: 1}}}}\n")

    def params(source: Path, *overrides: str) -> dict[str, Any]:
        chosen: PartConfig = getattr(load_config(source, overrides), part)
        return chosen.params

    assert params(path, f"{part}.name=b") == {}
    assert params(path, f"{part}.params.y=2", f"{part}.name=b") == {"y": 2}
    assert params(path, f"{part}.name=a", f"{part}.params.y=2") == {"x": 1, "y": 2}
    other = tmp_path / "d.yaml"
    other.write_text(f"base: c.yaml\n{part}: {{name: b, params: {{z: 3}}}}\n")
    assert params(other) == {"z": 3}
    assert params(other, f"{part}.name=a") == {}


def test_the_callers_mapping_is_left_alone() -> None:
    source = {"backbone": {"path": "x", "params": {}}, "writer": {"name": "a", "params": {"b": 1}}}
    copy = yaml.safe_load(yaml.safe_dump(source))
    load_config(source, ["writer.params.b=2", "seed=3"])
    assert source == copy


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("backbone: {path: '${oc.env:TOKEN}'}", "backbone.path"),
        ("backbone: {path: x}\nwriter: {name: w, params: {a: [1, 'b${oc.env:TOKEN}']}}", "writer"),
        ("backbone: {path: x, tokenizer: '${${name}:TOKEN}'}", "backbone.tokenizer"),
        ("backbone: {path: x, tokenizer: '\\\\${oc.env:TOKEN}'}", "backbone.tokenizer"),
        (
            "backbone: {path: x}\ntraining: {stages: [{overrides: ['a=${oc.env:TOKEN}']}]}",
            "training",
        ),
        ("backbone: {path: '${oc.env:MEMWRITE_DATA,${oc.env:TOKEN}}'}", "backbone.path"),
    ],
)
def test_a_configuration_reads_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, where: str
) -> None:
    """A stranger's file could put the user's token into what is saved and passed on."""
    monkeypatch.setenv("TOKEN", "hunter2")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{where}.* would read the environment") as caught:
        load_config(path)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="would read the environment"):
        load_config({"backbone": {"path": "x"}}, ["backbone.tokenizer=${oc.env:TOKEN}"])


def test_the_folder_of_data_sets_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = {
        "backbone": {"path": "x"},
        "task": {"name": "t", "params": {"folder": "${oc.env:MEMWRITE_DATA,data}/a"}},
    }
    for value, folder in ((None, "data/a"), ("/srv", "/srv/a")):
        if value is not None:
            monkeypatch.setenv("MEMWRITE_DATA", value)
        task = load_config(source).task
        assert task is not None
        assert task.params == {"folder": folder}
