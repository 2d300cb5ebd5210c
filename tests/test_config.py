"""YAML, overrides and plugin parameters: one sentence for each mistake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from memwrite.config import load_config, part_config
from memwrite.errors import ConfigError

BASE = {"backbone": {"path": "somewhere"}}


@dataclass(frozen=True)
class Params:
    slots: int = 4
    name: str | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")


def test_overrides_beat_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("backbone: {path: here}\nwriter: {name: a, params: {x: 1, y: 2}}\nseed: 3\n")
    config = load_config(path, ["writer.params.y=5", "training.steps=7"])
    assert config.backbone.path == "here"
    assert config.writer.params == {"x": 1, "y": 5}
    assert (config.seed, config.training.steps, config.reader.name) == (3, 7, "no-memory")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=1"], "unknown key sed (did you mean 'seed'? known: "),
        (["backbone.pth=1"], "unknown key backbone.pth (did you mean 'path'? known: "),
        (["seed=x"], "seed: "),
        (["writer.params.a=1", "writer.name=null"], "writer.name: "),
        (["task.params.a=1"], "task.name is required"),
        (["backbone.type=gpt2"], "either backbone.path or backbone.type"),
        (["backbone.attention=flash"], "backbone.attention = 'flash'"),
        (["training.steps=-3"], "training.steps must be at least 1, got -3"),
        (["training.learning_rate=0"], "training.learning_rate must be positive"),
        (["=3"], "'=3' is not of the form key.path=value"),
        (["a=[1,"], "an override cannot be read"),
        (["writer=3"], "writer: should be a mapping"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(BASE, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\t", b"\xff\xfe\x00"])
def test_files_that_are_no_config(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "writer.params.slots must be at least 1, got 0"),
        ({"slots": "many"}, "writer.params.slots: "),
        (
            {"slotz": 3},
            "unknown key writer.params.slotz (did you mean 'slots'? known: name, slots)",
        ),
        ({"slots": None}, "writer.params.slots: "),
        ({"slots": 1.5}, "writer.params.slots: "),
    ],
)
def test_mistakes_in_plugin_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part_config(Params, params, "writer.params")
    assert message in str(caught.value)


def test_plugin_parameters_become_the_plugins_own_dataclass() -> None:
    assert part_config(Params, {"slots": "6"}, "writer.params") == Params(slots=6)
