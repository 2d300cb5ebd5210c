"""A fingerprint changes with whatever changes the answers, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import MODELS
from transformers import PretrainedConfig

from memwrite.backbones.fingerprint import fingerprint_v1, is_current
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import train_bpe
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def saved(folder: Path, texts: list[str]) -> TransformersBackbone:
    """Make a model's folder with a tokenizer that was learnt from `texts`, and load it."""
    tokenizer = train_bpe(texts, 270)
    params = {**MODELS["llama"]["params"], "vocab_size": 270}
    backbone = load_backbone(BackboneConfig(type="llama", params=params))
    backbone.model.save_pretrained(folder)
    tokenizer.save(folder)
    return load_backbone(BackboneConfig(path=str(folder)))


def v1(backbone: TransformersBackbone) -> str:
    return fingerprint_v1(backbone.model.config, backbone.model.state_dict())


def test_another_tokenizer_is_another_backbone(tmp_path: Path) -> None:
    """Retrained in place, it would give the same ids another text; the name of format 1 did not tell."""
    first = saved(tmp_path, ["the boat is blue and the boat is new"] * 9)
    again = load_backbone(BackboneConfig(path=str(tmp_path)))
    assert again.fingerprint == first.fingerprint
    train_bpe(["a ferry went over every river"] * 9, 270).save(tmp_path)
    other = load_backbone(BackboneConfig(path=str(tmp_path)))
    assert other.fingerprint != first.fingerprint
    assert v1(other) == v1(first)


@pytest.mark.parametrize("change", ["special", "split", "merges", "template"])
def test_whatever_changes_the_ids_is_in_the_name(tmp_path: Path, change: str) -> None:
    first = saved(tmp_path, ["the boat is blue and the boat is new"] * 9)
    path = tmp_path / ("tokenizer_config.json" if change == "template" else "tokenizer.json")
    data = json.loads(path.read_text())
    if change == "template":
        data["chat_template"] = CHAT
    elif change == "special":
        config = tmp_path / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "a"}))
    elif change == "split":
        data["pre_tokenizer"]["add_prefix_space"] = True
    else:
        merges = data["model"]["merges"]
        merges[-1], merges[-2] = merges[-2], merges[-1]
    path.write_text(json.dumps(data))
    assert load_backbone(BackboneConfig(path=str(tmp_path))).fingerprint != first.fingerprint


@pytest.mark.parametrize("family", MODELS)
def test_a_field_that_a_library_version_adds_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that it describes in other words."""
    before = load_backbone(BackboneConfig(**MODELS[family]))
    name, old = before.fingerprint, v1(before)
    known = PretrainedConfig.to_dict

    def newer(self: PretrainedConfig) -> dict[str, Any]:
        return {**known(self), "a_new_field": 7}

    monkeypatch.setattr(PretrainedConfig, "to_dict", newer)
    after = load_backbone(BackboneConfig(**MODELS[family]))
    after.model.config.a_new_field = 7
    after.model.config.layer_types = ["full_attention"] * 2
    assert after.fingerprint == name
    assert v1(after) != old


@pytest.mark.filterwarnings("ignore:.rope_scaling:FutureWarning")
def test_the_shape_of_rope_settings_is_no_part_of_it() -> None:
    backbone = load_backbone(BackboneConfig(**MODELS["llama"]))
    name, config = backbone.fingerprint, backbone.model.config
    del config.rope_parameters
    config.rope_theta, config.rope_scaling = 10000, None
    other = TransformersBackbone(backbone.model, backbone.tokenizer)
    assert other.fingerprint == name
    config.rope_theta = 5e5
    assert TransformersBackbone(backbone.model, backbone.tokenizer).fingerprint != name


@pytest.mark.parametrize("family", MODELS)
def test_names_of_both_schemes_are_recognised(family: str) -> None:
    backbone = load_backbone(BackboneConfig(**MODELS[family]))
    other = load_backbone(BackboneConfig(**MODELS[family]), seed=1)
    old = v1(backbone)
    assert is_current(backbone.fingerprint)
    assert not is_current(old)
    for name in (backbone.fingerprint, old):
        assert backbone.has_fingerprint(name)
        assert not other.has_fingerprint(name)
