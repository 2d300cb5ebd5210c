"""N-gram codes: as a loop computes them, in training, reading and generation, and kept by a model for good."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FAMILIES, described
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.session import Session

each_family = pytest.mark.parametrize("family", FAMILIES)
texts = st.lists(st.integers(0, 255), max_size=6)


@cache
def loaded(family: str, ngram: int) -> TransformersBackbone:
    return load_backbone(described(family, ngram=ngram))


def codes_by_hand(family: str, ids: list[int], ngram: int, width: int) -> Tensor:
    """(T, D): bit by bit from the hash, token by token."""
    vocabulary = loaded(family, 1).info.vocab_size
    drawn = hashlib.shake_256(b"memwrite n-gram codes").digest(ngram * vocabulary * width)

    def sign(place: int, token: int, number: int) -> int:
        at = (place * vocabulary + token) * width + number
        return 1 if drawn[at // 8] >> (7 - at % 8) & 1 else -1

    codes = torch.zeros(len(ids), width, dtype=torch.float64)
    for t in range(ngram - 1, len(ids)):
        for number in range(width):
            code = 1
            for place in range(ngram):
                code *= sign(place, ids[t - place], number)
            codes[t, number] = code
    return codes


@each_family
@settings(max_examples=10)
@given(ids=texts, ngram=st.integers(2, 4))
def test_embeddings_are_what_a_loop_adds_up(family: str, ids: list[int], ngram: int) -> None:
    """The model's own embeddings, and signs as large as the standard deviation those were drawn with."""
    backbone, plain = loaded(family, ngram), loaded(family, 1)
    tokens = torch.tensor([ids], dtype=torch.int64)
    codes = codes_by_hand(family, ids, ngram, backbone.info.hidden_size)
    expected = plain.embed(tokens)[0] + 0.2 * codes
    torch.testing.assert_close(backbone.embed(tokens)[0], expected, rtol=0, atol=1e-12)
    assert (backbone.info.ngram, plain.info.ngram) == (ngram, 1)


def test_codes_of_keys_that_share_a_character_are_as_strange_as_any() -> None:
    """Trigrams ending in a key and its colon: cosines between any two are those of random signs."""
    keys = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    colon = torch.full((len(keys), 1), 60)
    wide = {**FAMILIES["llama"]["params"], "hidden_size": 512}
    backbone = load_backbone(described("llama", ngram=3, params=wide))
    own = backbone.model.get_input_embeddings().weight[60]
    codes = (backbone.embed(torch.cat([keys, colon], 1))[:, -1] - own) / 0.2
    cosines = (codes @ codes.T / 512).fill_diagonal_(0)
    assert cosines.abs().max() < 0.25
    assert cosines.mean().abs() < 0.01


@cache
def writing(family: str) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**FAMILIES[family], "dtype": "float64", "attention": "eager", "ngram": 3},
            "writer": {"name": "gradient", "params": {"slots": 3, "steps": 1}},
            "reader": {"name": "prefix"},
        }
    ).eval()


@each_family
@settings(max_examples=5)
@given(rows=st.lists(texts, min_size=1, max_size=3))
def test_what_is_generated_is_what_reading_prefers(family: str, rows: list[list[int]]) -> None:
    """With keys and values kept token by token, in a batch of ragged queries, one of them perhaps empty."""
    memory = writing(family)
    state = memory.write(["ab cd", "xy", "q"][: len(rows)]).state
    new = memory.generate(state, Tokens.from_rows(rows), max_new_tokens=4)
    for i, row in enumerate(rows):
        text = [*row, *new[i].tolist()]
        with torch.no_grad():
            out = memory.read(state.rows(slice(i, i + 1)), Tokens.from_rows([text]))
        logits = torch.cat([out.first_logits[:, None], out.logits], 1)[0]
        for place in range(len(row), len(text)):
            assert int(logits[place].argmax()) == text[place]
            if text[place] == memory.backbone.info.eos_id:
                break


@each_family
def test_beams_are_embedded_with_their_own_past(family: str) -> None:
    """The best of as many beams as there are tokens, two tokens long, is the best continuation of all."""
    backbone = loaded(family, 3)
    ids = torch.tensor([[7, 8, 9]])
    count = backbone.info.vocab_size
    with torch.no_grad():
        first = backbone.logits(backbone.forward(backbone.embed(ids)).hidden)[0, -1].log_softmax(-1)
        every = torch.cat([ids.repeat(count, 1), torch.arange(count)[:, None]], 1)
        second = backbone.logits(backbone.forward(backbone.embed(every)).hidden)[:, -1]
    both = first[:, None] + second.log_softmax(-1)
    both[backbone.info.eos_id] = -torch.inf
    best = divmod(int(both.argmax()), count)
    options = {"max_new_tokens": 2, "num_beams": 64, "length_penalty": 0.0, "min_new_tokens": 2}
    found = backbone.generate(ids, past=None, last=None, corrections=None, options=options)
    assert tuple(found[0].tolist()) == best


@each_family
def test_a_saved_model_keeps_its_codes(family: str, tmp_path: Path) -> None:
    """Under any config that names its folder, whose fingerprint is that of the model."""
    backbone, ids = loaded(family, 3), torch.arange(8)[None]
    backbone.save(tmp_path, torch.float64)
    again = load_backbone(BackboneConfig(path=str(tmp_path), dtype="float64"))
    assert torch.equal(again.embed(ids), backbone.embed(ids))
    assert again.fingerprint == backbone.fingerprint != loaded(family, 1).fingerprint
    with pytest.raises(ConfigError, match="was built with 3, and keeps that"):
        load_backbone(BackboneConfig(path=str(tmp_path), ngram=2))


def test_padding_and_company_change_nothing() -> None:
    """A text alone, and padded between others: the same state."""
    memory = writing("llama")
    together = memory.write(["a longer text", "short", "x"]).state
    for i, text in enumerate(["a longer text", "short", "x"]):
        alone = memory.write([text]).state
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(together[name][i], tensor[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("ngram", [0, 9])
def test_lengths_there_are_no_codes_of(ngram: int) -> None:
    with pytest.raises(ConfigError, match=rf"backbone\.ngram must be from 1 to 8, got {ngram}"):
        described("llama", ngram=ngram)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("memwrite_ngram", 1000, "memwrite_ngram = 1000, which is no whole number from 1"),
        ("memwrite_ngram", "many", "memwrite_ngram = 'many', which is no whole number from 1 to 8"),
        ("memwrite_ngram", True, "memwrite_ngram = True, which is no whole number from 1 to 8"),
        (
            "initializer_range",
            0.0,
            r"backbone\.ngram = 3 needs a model .*initializer_range is 0\.0",
        ),
    ],
)
def test_a_model_folder_with_a_strange_config(
    name: str, value: Any, reason: str, tmp_path: Path
) -> None:
    loaded("llama", 3).save(tmp_path, torch.float32)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ConfigError, match=reason):
        load_backbone(BackboneConfig(path=str(tmp_path)))


def test_a_session_that_writes_as_it_generates_says_why_it_cannot() -> None:
    """Its text is embedded in pieces. Read-only it asks with whole texts."""
    config: dict[str, Any] = {
        "backbone": {**FAMILIES["llama"], "ngram": 2},
        "writer": {"name": "delta", "params": {"rank": 3}},
        "reader": {"name": "lora"},
    }
    session = Session(Memory.from_config(config).eval())
    with pytest.raises(ConfigError, match=r"backbone.ngram = 2, .*make the session read-only"):
        session.ask("who?", max_new_tokens=2)
    session.read_only = True
    session.ask("who?", max_new_tokens=2)
