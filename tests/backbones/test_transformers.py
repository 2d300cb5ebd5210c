"""Backbones from scratch and from folders: the same weights, fingerprint, tokenizer and answers."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MODELS, Build
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from memwrite import Memory, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import END, START, ByteTokenizer, load_tokenizer, train_bpe
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, StorageError

FAMILIES = [("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False)]
each_family = pytest.mark.parametrize(("family", "tied"), FAMILIES)


def model(family: str, tied: bool = False, **changes: Any) -> dict[str, Any]:
    params = {**MODELS[family]["params"], "tie_word_embeddings": tied}
    return {"type": family, "params": params, **changes}


def load(**described: Any) -> TransformersBackbone:
    return load_backbone(BackboneConfig(**described))


def logits(backbone: TransformersBackbone) -> torch.Tensor:
    ids = torch.arange(7)[None]
    return backbone.logits(backbone.forward(backbone.embed(ids)).hidden).detach()


class _Largest(TorchDispatchMode):
    """Finds the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("trained", [False, True])
def test_logits_of_part_of_a_sequence_copy_no_head_for_each_row(trained: bool) -> None:
    """Neither in a step's gradient nor in the gradient of that."""
    backbone = load(**model("llama", trainable=trained))
    rows, width = 20, backbone.info.hidden_size
    hidden = torch.randn(rows, 5, width, requires_grad=True)
    with _Largest() as largest:
        found = backbone.logits(hidden[:, 1:3])
        loss = F.cross_entropy(found.transpose(1, 2), torch.ones(rows, 2, dtype=torch.int64))
        (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
        gradient.square().sum().backward()
    assert largest.numbers <= 2 * rows * max(backbone.info.vocab_size, 5 * width)


def test_generation_copies_no_head_for_each_row() -> None:
    """Behind queries of several tokens, of which transformers makes the last one's logits alone; torch copies weights that are
    not trained.
    """
    backbone = load(**model("llama", trainable=False))
    rows, length = 40, 3
    with torch.no_grad(), _Largest() as largest:
        backbone.generate(
            torch.ones(rows, length, dtype=torch.int64),
            past=None, last=None, corrections=None, options={"max_new_tokens": 2},
        )  # fmt: skip
    info = backbone.info
    assert largest.numbers <= 2 * rows * max(info.vocab_size, length * info.hidden_size)
    assert not backbone.model.get_output_embeddings()._forward_pre_hooks


@each_family
def test_a_folder_of_transformers_own_is_the_same_backbone(
    family: str, tied: bool, tmp_path: Path
) -> None:
    """Saved by save_pretrained: same fingerprint, same logits, bytes where there is no tokenizer."""
    built = load(**model(family, tied))
    built.model.save_pretrained(tmp_path)
    again = load(path=str(tmp_path))
    assert again.fingerprint == built.fingerprint
    assert again.fingerprint.startswith(f"{family}-")
    assert torch.equal(logits(again), logits(built))
    assert isinstance(again.tokenizer, ByteTokenizer)
    assert (again.info.bos_id, again.info.eos_id, again.info.vocab_size) == (256, 257, 258)


@each_family
def test_a_run_folder_is_the_same_memory(family: str, tied: bool, tmp_path: Path) -> None:
    """Config, weights and backbone come back; tied weights are stored once; a copy can be moved."""
    memory = Memory.from_config(
        {
            "backbone": model(family, tied, trainable=True),
            "writer": {"name": "full-context"},
            "reader": {"name": "key-value"},
            "seed": 3,
        }
    )
    with torch.no_grad():
        for weight in memory.model.parameters():
            weight.mul_(1.01)
    memory.save_run(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    again = Memory.from_config(tmp_path / "moved")
    query = Tokens.from_rows([[1, 2, 3]])
    found, expected = (m.read(m.write("some text").state, query).logits for m in (again, memory))
    assert torch.equal(found, expected)
    assert again.backbone.fingerprint == memory.backbone.fingerprint
    assert (again.config.writer.name, again.config.seed) == ("full-context", 3)
    stored = safetensors.torch.load_file(tmp_path / "moved" / "backbone" / "model.safetensors")
    distinct = {weight.data_ptr() for weight in memory.model.parameters()}
    assert len(stored) == len(distinct)
    tables = [name for name, weight in stored.items() if weight.shape == (258, 32)]
    assert len(tables) == (1 if tied else 2)
    assert yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_folder_in_half_precision(tied: bool, tmp_path: Path) -> None:
    """`training.save_dtype` halves the file; the model in hand stays as it is."""
    memory = Memory.from_config(
        {
            "backbone": model("llama", tied, trainable=True),
            "training": {"save_dtype": "float16"},
        }
    )
    before = logits(memory.backbone)
    memory.save_run(tmp_path)
    assert torch.equal(logits(memory.backbone), before)
    assert memory.backbone.info.dtype == memory.model.config.dtype == torch.float32
    stored = safetensors.torch.load_file(tmp_path / "backbone" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    again = Memory.from_config(tmp_path)
    assert again.backbone.info.dtype == torch.float32
    torch.testing.assert_close(logits(again.backbone), before, atol=0.05, rtol=0.05)


@each_family
def test_any_changed_weight_is_another_backbone(family: str, tied: bool, tmp_path: Path) -> None:
    """By the least bit, wherever it stands; so is another configuration of the same weights."""
    built = load(**model(family, tied))
    prints = {built.fingerprint}
    names = list(dict(built.model.named_parameters()))
    built.model.save_pretrained(tmp_path)
    for name in names:
        again = load(path=str(tmp_path))
        weight = dict(again.model.named_parameters())[name].data.reshape(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(torch.inf))
        prints.add(again.fingerprint)
    assert len(prints) == 1 + len(names)
    data = json.loads((tmp_path / "config.json").read_text())
    key = "layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps"
    (tmp_path / "config.json").write_text(json.dumps({**data, key: 0.5}))
    assert load(path=str(tmp_path)).fingerprint not in prints


@pytest.mark.parametrize("family", MODELS)
def test_how_a_backbone_is_held_does_not_change_its_name(family: str, tmp_path: Path) -> None:
    """Attention, dtype of float32 weights, trainability and place are no part of it."""
    built = load(**model(family))
    prints = {built.fingerprint}
    for changes in ({"attention": "eager"}, {"dtype": "float64"}, {"trainable": True}):
        prints.add(load(**model(family), **changes).fingerprint)
    built.save(tmp_path / "a", torch.float32)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for folder in "ab":
        for attention in ("eager", "sdpa"):
            prints.add(load(path=str(tmp_path / folder), attention=attention).fingerprint)
    assert len(prints) == 1


def randomness() -> tuple[object, ...]:
    state: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2]


@pytest.mark.parametrize("family", MODELS)
def test_weights_depend_on_the_seed_alone(family: str, tmp_path: Path) -> None:
    """And no randomness of the caller's is drawn by building, writing, reading, saving or loading."""
    config = {
        "backbone": model(family),
        "writer": {"name": "full-context"},
        "reader": {"name": "key-value"},
    }
    prints = set()
    for noise in range(2):
        torch.manual_seed(noise)
        random.seed(noise)
        before = randomness()
        memory = Memory.from_config({**config, "seed": 8})
        state = memory.write("text").state
        memory.read(state, Tokens.from_rows([[1]]))
        memory.generate(state, max_new_tokens=2, num_beams=2)
        memory.save(state, tmp_path / "doc.st")
        memory.save_run(tmp_path / f"run{noise}")
        Memory.load(tmp_path / "doc.st")
        Memory.from_config(tmp_path / f"run{noise}")
        assert randomness() == before
        prints.add(memory.backbone.fingerprint)
    assert len(prints) == 1
    assert Memory.from_config({**config, "seed": 9}).backbone.fingerprint not in prints


@pytest.mark.parametrize("seed", [2**70, -(2**70)])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        Memory.from_config({"backbone": model("gpt2"), "seed": seed})


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe([f"the quick brown fox {START} jumps {END}\n" * 20, "größe 🦊"], 300).save(folder)
    return folder


loaded = cache(load_tokenizer)

TEXTS = st.lists(
    st.sampled_from([START, END, "<|", "|>", "the quick", " ", "\n", "é", "🦊", "\x00"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=8,
).map("".join)


@settings(max_examples=100)
@given(text=TEXTS)
def test_any_text_stays_text(bpe: Path, text: str) -> None:
    """Encoded and decoded it is the same, and spelling out a special token does not make one."""
    for tokenizer in (loaded(bpe), ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
        assert all(0 <= one < tokenizer.vocab_size for one in ids)
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


def test_a_folder_brings_its_own_tokenizer(bpe: Path, tmp_path: Path) -> None:
    """Sizes and framing tokens follow it, and it goes into the run folder."""
    memory = Memory.from_config({"backbone": model("llama", tokenizer=str(bpe), trainable=True)})
    memory.save_run(tmp_path / "run")
    again = load(path=str(tmp_path / "run"))
    assert 258 < again.info.vocab_size == memory.backbone.tokenizer.vocab_size <= 300
    assert again.model.config.eos_token_id == again.info.eos_id == memory.backbone.info.eos_id
    assert again.tokenizer.encode("the quick") == memory.backbone.tokenizer.encode("the quick")
    assert len(again.tokenizer.encode("the quick")) < 9
    assert again.fingerprint == memory.backbone.fingerprint


@pytest.mark.parametrize("family", MODELS)
def test_a_bfloat16_model_gives_float32_logits(family: str) -> None:
    backbone = load(**model(family), dtype="bfloat16")
    assert backbone.info.dtype == torch.bfloat16
    assert logits(backbone).dtype == torch.float32
    whole = logits(load(**model(family)))
    assert (logits(backbone) - whole).norm() / whole.norm() < 0.1


def test_a_run_folder_brings_back_the_writers_weights(build: Build, tmp_path: Path) -> None:
    memory = build("gradient", "prefix", {"slots": 2, "learned_lr": "one", "order": "none"})
    memory.writer.fast.slots.data.fill_(0.7)
    memory.save_run(tmp_path / "run")
    again = Memory.from_config(tmp_path / "run")
    assert torch.equal(again.writer.fast.slots, memory.writer.fast.slots)
    assert again.config.writer == memory.config.writer
    fewer = ["writer.params.slots=1"]
    with pytest.raises(StorageError, match="other weights"):
        Memory.from_config(tmp_path / "run", fewer)


def test_eager_is_differentiable_twice_and_sdpa_is_not(build: Build) -> None:
    assert build(attention="eager").backbone.info.double_backward
    assert not build(attention="sdpa").backbone.info.double_backward


def test_writes_in_bfloat16_keep_float32_states() -> None:
    config = {
        "backbone": {**MODELS["llama"], "dtype": "bfloat16"},
        "writer": {"name": "gradient", "params": {"slots": 2}},
        "reader": {"name": "prefix"},
    }
    memory = Memory.from_config(config)
    state = memory.write(Tokens.from_rows([[1, 2, 3]])).state
    assert state["memory"].dtype == torch.float32
    assert memory.read(state, Tokens.from_rows([[4]])).logits.dtype == torch.float32
