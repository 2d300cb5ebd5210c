"""Recall metrics, and the demo's measurements and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from memwrite import Memory, Tokens
from memwrite.backbones.sources import NAMED, NamedModel
from memwrite.cli.main import main
from memwrite.config import load_config
from memwrite.demo.article import available, split
from memwrite.demo.measure import slots_of
from memwrite.demo.reading import read_state
from memwrite.errors import ConfigError, InputError
from memwrite.evaluation.recall import bytes_right, differences, nll_bits
from memwrite.evaluation.value_kept import predict

TEXTS = st.text(alphabet="abcé 7", max_size=30)


@given(TEXTS, TEXTS)
def test_bytes_right_is_a_share_and_one_for_equal_texts_only(text: str, other: str) -> None:
    share = bytes_right(text, other)
    assert 0 <= share <= 1
    assert (share == 1) == (text == other)


def test_bytes_right_counts_bytes_of_the_longer_text() -> None:
    assert bytes_right("abcd", "abXd") == 0.75
    assert bytes_right("ab", "abab") == 0.5
    assert bytes_right("éa", "éb") == pytest.approx(2 / 3)


@given(TEXTS, TEXTS)
def test_differences_tell_both_texts(text: str, other: str) -> None:
    pieces = differences(text, other)
    assert "".join(piece[1] for piece in pieces) == text
    assert "".join(piece[2] for piece in pieces) == other
    assert all(ours == theirs for kind, ours, theirs in pieces if kind == "equal")


@pytest.mark.parametrize(
    ("writer", "reader"),
    [("no-memory", "no-memory"), ("full-context", "key-value"), ("gradient", "prefix")],
)
def test_bits_are_the_models_own(writer: str, reader: str) -> None:
    """nll_bits equals the sum of -log2 p over the text, from a plain run of the model."""
    backbone = {
        "type": "gpt2",
        "params": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
    }
    params = {"slots": 3} if writer == "gradient" else {}
    memory = Memory.from_config(
        {
            "backbone": backbone,
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    )
    context, ids = Tokens.from_rows([[7, 8, 9]]), [1, 2, 3, 4]
    state = memory.write(context).state
    model, start = memory.backbone, memory.backbone.info.bos_id
    before = {
        "no-memory": model.embed(torch.tensor([[start]])),
        "full-context": model.embed(torch.tensor([[7, 8, 9, start]])),
        "gradient": state.tensors.get("memory"),
    }[writer]
    inputs = torch.cat([before, model.embed(torch.tensor([ids]))], 1)
    logits = model.logits(model.forward(inputs).hidden)[0, -5:-1]
    expected = -logits.log_softmax(-1)[range(4), ids].sum().item() / math.log(2)
    assert nll_bits(memory, state, Tokens.from_rows([ids])) == pytest.approx(expected, rel=1e-5)


def test_demo_measures_and_reports(tmp_path: Path) -> None:
    """The demo on tiny models: recalled text, sizes, baselines and curves in one self-contained page."""
    params = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.2}
    writer = {"slots": 4, "steps": 300, "optimizer": "adam", "lr": 0.1, "init_std": 0.15}
    writer |= {"order": "none", "stop_when_exact": True}
    config = {
        "backbone": {"type": "gpt2", "params": params},
        "writer": {"name": "gradient", "params": writer},
        "reader": {"name": "prefix"},
    }
    (tmp_path / "cram.yaml").write_text(yaml.safe_dump(config))
    text = "A tiny text <&>."
    (tmp_path / "text").write_text(text)
    words = ["demo", "--config", tmp_path / "cram.yaml", "--context", tmp_path / "text"]
    words += ["--run", "models/gradmem-kv-32-k1to5-0:1", "--run", "models/gradmem-kv-32-k1to5-0:3"]
    article = "The album was released in 1994. The album sold well. The band played in London. "
    article += "The album was released again in 1995, and the band played."
    (tmp_path / "article").write_text(article)
    words += ["--article", tmp_path / "article", "--model", "models/tiny-lm"]
    words += ["--writer", _kv(tmp_path / "kv.yaml"), "--out", tmp_path / "demo"]
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["recalled"] == report["text"] == text
    assert report["bytes_right"] == 1
    assert report["state_bytes"] == 4 * 128 * 4
    cached = 2 * 2 * 17 * 128 * 4 + 17 + 8
    assert report["kv_cache_bytes"] == report["full_context"]["state_bytes"] == cached
    assert [point["vectors"] for point in report["writes"]] == [1, 2, 4]
    assert 0 < report["bits_gained"] < report["no_memory"]["recall"]["bits"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "A tiny text &lt;&amp;&gt;." in page
    assert page.count("<svg") == page.count('<div class="plot" role="img"') == 3
    assert "data:" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert [memory["name"] for memory in report["pairs"]] == ["gradient, K=1", "gradient, K=3"]
    for memory in report["pairs"]:
        assert memory["right"] == sum(a["answer"] == a["value"] for a in memory["answers"])
        assert f"{memory['right']} of 8</td>" in page
    assert report["pairs"][1]["right"] >= 7
    assert "<td>Ah</td><td>42</td><td>" in page
    part = report["article"]
    assert part["article"] + part["following"] == article
    none, kept, whole = part["kept"]
    assert (none["value"], whole["value"]) == (0, 1)
    assert 0 < kept["state_bytes"] < whole["state_bytes"]
    bits = [memory["reading"]["bits"] for memory in (none, kept, whole)]
    assert kept["value"] == pytest.approx((bits[0] - bits[1]) / (bits[0] - bits[2]))
    for memory in part["kept"]:
        assert memory["reading"]["continuation"].startswith(" The album was released again in")
    parts = (
        text,
        "h2o, 8 slots",
        "state 2,048 bytes",
        "bits gained",
        "no memory",
        "full context",
        "Ah : 42",
    )
    for part in parts:
        assert part in result.output


def _kv(path: Path) -> Path:
    """Write a config that keeps eight slots of a model's own cache."""
    writer = {"name": "h2o", "params": {"slots": 8}}
    backbone = {"path": "models/tiny-lm"}
    config = {"backbone": backbone, "writer": writer, "reader": {"name": "key-value"}}
    path.write_text(yaml.safe_dump(config))
    return path


def test_what_is_read_from_a_state_file_is_what_the_memory_holds(tmp_path: Path) -> None:
    """The figures come from the file alone and equal those of the memory that wrote it."""
    memory = Memory.from_config(_kv(tmp_path / "kv.yaml"))
    article, following = split("The fox sat under the old oak. It had a coat. The fox slept.")
    assert following == " The fox slept."
    state = memory.write(article).state
    memory.save(state, tmp_path / "state.safetensors")
    read = read_state(tmp_path / "state.safetensors", article, following, "The fox")
    with torch.no_grad():
        ahead = predict(memory, state, [memory.backbone.tokenizer.encode(following)])
    assert read.bits == pytest.approx(sum(ahead[0].bits), rel=1e-6)
    assert read.answer == memory.ask(state, "The fox", max_new_tokens=32)


def test_an_article_needs_text_that_goes_on() -> None:
    with pytest.raises(InputError, match="two sentences at least"):
        split("The fox sat under the old oak.")


def test_a_model_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the demo does without the article."""
    assert available("models/tiny-lm") == ""
    assert available("nobody/has-this") == "the model 'nobody/has-this' is not on this machine"
    gone = NamedModel("no_such_package", "no-such-package==1", "")
    monkeypatch.setitem(NAMED, "gone", gone)
    assert "'no_such_package', which is not installed: pip install" in available("gone")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("abcd", "should be KEY:VALUE"),
        (":cd", "should be KEY:VALUE"),
        ("ab:cde", "value of 2"),
        ("ab:c€", "€"),
    ],
)
def test_pairs_that_the_model_cannot_hold(pair: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--pair", pair, "--out", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert message in result.output


def test_the_demo_varies_the_slots_and_not_the_positions() -> None:
    """Control tokens take positions too, and are no slots."""
    backbone = {"type": "gpt2"}
    writer = {"name": "gradient", "params": {"slots": 4, "control_tokens": 1}}
    assert slots_of(load_config({"backbone": backbone, "writer": writer})) == ("slots", 4)
    forward = {"backbone": backbone, "writer": {"name": "forward"}}
    assert slots_of(load_config(forward)) == ("slots", 8)
    with pytest.raises(ConfigError, match="'no-memory' has no such parameter"):
        slots_of(load_config({"backbone": backbone}))
