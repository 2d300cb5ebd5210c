"""Low-rank corrections of a backbone: nothing at first, merged in the end, differentiable twice."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import ragged
import safetensors.torch
import torch
from click.testing import CliRunner
from support import MODELS
from torch import nn

from memwrite import Memory
from memwrite.backbones.decoder_layers import linear_layers
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import ByteTokenizer
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.protocols import Gate, StaticAdapter
from memwrite.training import lora, trainer
from memwrite.training.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from merge_loras import main as merge_loras

IDS = torch.arange(12).reshape(2, 6)


def built(family: str, dtype: str = "float64") -> tuple[nn.Module, BackboneConfig]:
    config = BackboneConfig(
        **MODELS[family], dtype=dtype, attention="eager", lora_rank=3, lora_alpha=5.0
    )
    return load_backbone(config).model, config


def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


def shaken(model: nn.Module) -> nn.Module:
    """With every factor random."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_at_first_a_model_is_what_it_was(family: str, dtype: str) -> None:
    """To the bit; and only the factors are trained, two for each linear layer of attention and MLP."""
    model, config = built(family, dtype)
    before, names = logits(model), [name for name, _ in model.named_modules()]
    lora.attach(model, config, seed=0)
    assert torch.equal(logits(model), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    per_layer = 4 if family == "gpt2" else 7
    assert len(trained) == 2 * 2 * per_layer
    assert all(name.endswith((".A", ".B")) for name in trained)
    assert [name for name, _ in model.named_modules() if not name.endswith(".lora")] == names


@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_merged_model_is_an_ordinary_one_that_computes_the_same(family: str) -> None:
    model, config = built(family)
    plain, names = logits(model), list(model.state_dict())
    lora.attach(model, config, seed=0)
    before = logits(shaken(model))
    assert not torch.allclose(before, plain, atol=1e-3)
    lora.merge(model)
    assert sorted(model.state_dict()) == sorted(names)
    torch.testing.assert_close(logits(model), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_the_correction_has_that_rank_and_scale(family: str) -> None:
    """W + α/r·BA, where B (out, r) and A (r, in), whichever way round the layer holds W."""
    model, config = built(family)
    layer = linear_layers(model)[0]
    old = layer.weight.detach().clone()
    lora.attach(model, config, seed=0)
    shaken(model)
    part: Any = layer.lora
    inputs = torch.randn(2, 4, part.A.shape[1], dtype=torch.float64)
    corrected = layer(inputs)
    expected = 5.0 / 3 * part.B @ part.A
    lora.merge(model)
    change = (layer.weight.detach() - old) if family != "gpt2" else (layer.weight.detach() - old).T
    assert torch.linalg.matrix_rank(change) == 3
    torch.testing.assert_close(change, expected)
    torch.testing.assert_close(layer(inputs), corrected, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_layers_below_the_first_corrected_one_are_left_alone() -> None:
    """No gradient goes down to them, and the adapter that is taken names none of them."""
    model, config = built("llama")
    config = replace(config, lora_from=1)
    lora.attach(model, config, seed=0)
    shaken(model)
    assert all(".layers.1." in name for name in lora.corrections(model))
    reached = []
    for layer in linear_layers(model):
        layer.register_full_backward_hook(lambda layer, *_: reached.append(layer))
    logits(model).sum().backward()
    assert {id(layer) for layer in reached} <= {id(layer) for layer in linear_layers(model, 1)}
    assert len(reached) == 7
    assert len(lora.taken(model, config, torch.float32).corrections) == 7
    with pytest.raises(
        ConfigError, match="lora_from = 2 leaves nothing to correct: the model has 2 layers"
    ):
        lora.attach(model, replace(config, lora_from=2), seed=0)


def test_a_gate_of_a_memory_holds_for_the_corrected_projection() -> None:
    """Whatever was attached first: a memory changes the model that is trained, as it does once that is merged."""
    model, config = built("llama")
    lora.attach(model, config, seed=0)
    shaken(model)
    backbone = TransformersBackbone(model, ByteTokenizer())
    gate = {0: StaticAdapter({}, lambda _, hidden: {"q": Gate(hidden.new_full((1,), 0.5))})}

    def hidden() -> torch.Tensor:
        return backbone.forward(backbone.embed(IDS), corrections=gate).hidden

    before = hidden()
    lora.merge(model)
    torch.testing.assert_close(hidden(), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_second_derivatives_go_through_it(family: str) -> None:
    """The gradient of a gradient's square by a factor is that of finite differences."""
    model, config = built(family)
    lora.attach(model, config, seed=0)
    shaken(model)
    factor = cast(Any, linear_layers(model)[1]).lora.B
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def steepness() -> torch.Tensor:
        nll = model(inputs_embeds=embeddings).logits.logsumexp(-1).sum()
        (gradient,) = torch.autograd.grad(nll, embeddings, create_graph=True)
        return gradient.pow(2).sum()

    (exact,) = torch.autograd.grad(steepness(), factor)
    with torch.no_grad():
        factor[0, 0] += 1e-5
    up = steepness()
    with torch.no_grad():
        factor[0, 0] -= 2e-5
    slope = float((up - steepness()).detach()) / 2e-5
    assert float(exact[0, 0]) == pytest.approx(slope, rel=1e-2 if family == "llama" else 1e-5)


def test_a_run_trained_by_lora_is_a_plain_model_folder(tmp_path: Path) -> None:
    """Embeddings, norms and biases are those of the model it began with, and the other weights have moved."""
    ragged.install()
    config = ragged.described(tmp_path / "run", steps=2)
    config["backbone"] |= {"trainable": False, "lora_rank": 2}
    begun = Memory.from_config(config).model.state_dict()
    out = train(config)
    trained = Memory.from_config(out).model.state_dict()
    assert begun.keys() == trained.keys()
    moved = {name for name in begun if not torch.equal(begun[name], trained[name])}
    assert moved == {n for n in begun if ".h." in n and n.endswith(".weight") and "ln_" not in n}


def described_lora_run(tmp_path: Path, **training: object) -> dict[str, Any]:
    """A config that corrects a model which is in a folder."""
    ragged.install()
    config = ragged.described(tmp_path / "run", steps=2)
    base = tmp_path / "base"
    if not base.exists():
        built = load_backbone(BackboneConfig(**{**config["backbone"], "trainable": False}))
        built.save(base, torch.float32)
    config["backbone"] = {"path": str(base), "attention": "eager", "lora_rank": 2}
    config["training"] |= training
    return config


def test_corrections_of_a_model_that_is_there_are_kept_by_themselves(tmp_path: Path) -> None:
    """In peft's format, rounded as the run says; the run folder, or its name as a model's, is the corrected model."""
    config = described_lora_run(tmp_path, save_dtype="float16")
    out = train(config)
    assert {path.name for path in out.iterdir()} >= {"adapter", "config.yaml"}
    assert not (out / "backbone").exists()
    found = Memory.from_config(out)
    base = load_backbone(BackboneConfig(path=config["backbone"]["path"])).model.state_dict()
    trained = found.model.state_dict()
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    for same in (
        BackboneConfig(path=str(out)),
        BackboneConfig(path=config["backbone"]["path"], adapter=str(out / "adapter")),
    ):
        assert load_backbone(same).fingerprint == found.backbone.fingerprint
    assert not found.backbone.needs_saving
    found.save_run(tmp_path / "copy")
    copy = Memory.from_config(tmp_path / "copy")
    assert copy.backbone.fingerprint == found.backbone.fingerprint
    with pytest.raises(ConfigError, match=r"backbone.adapter cannot be changed"):
        Memory.from_config(out, [f"backbone.adapter={out / 'adapter'}"])


@pytest.mark.parametrize("writer", ["own", "full-context"])
def test_corrections_are_trained_on_as_they_are(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another run's, of the same model and rank, also where the run has no other weights; those of another rank count
    as weights of the model.
    """

    def lora_run(tmp_path: Path, **training: object) -> dict[str, Any]:
        config = described_lora_run(tmp_path, **training)
        if writer != "own":
            config |= {"writer": {"name": writer}, "reader": {"name": "key-value"}}
        return config

    first = train(lora_run(tmp_path))
    on = {"out": str(tmp_path / "on"), "start": str(first), "learning_rate": 1e-12}
    capsys.readouterr()
    second = train(lora_run(tmp_path, **on))
    assert "Started from" not in capsys.readouterr().err  # nothing was left over
    kept, more = (
        safetensors.torch.load_file(run / "adapter" / "adapter_model.safetensors")
        for run in (first, second)
    )
    for name, tensor in kept.items():
        torch.testing.assert_close(more[name], tensor, atol=1e-6, rtol=1e-4)
    config = lora_run(tmp_path, **{**on, "out": str(tmp_path / "other")})
    config["backbone"]["lora_rank"] = 3
    third = train(config)
    assert (third / "backbone").is_dir()
    assert not (third / "adapter").exists()
    of_first, of_third = (Memory.from_config(run).model.state_dict() for run in (first, third))
    for name, tensor in of_first.items():
        torch.testing.assert_close(of_third[name], tensor, atol=1e-6, rtol=1e-4)


def test_corrections_of_a_run_are_corrected_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training from a run, around that run's own model, keeps what it adds by itself, whatever its rank."""
    first = train(described_lora_run(tmp_path))
    config = described_lora_run(
        tmp_path, out=str(tmp_path / "on"), start=f"{first}/", learning_rate=1e-12
    )
    config["backbone"] |= {"path": str(first), "lora_rank": 3}
    capsys.readouterr()
    second = train(config)
    assert "Started from" not in capsys.readouterr().err
    assert (second / "adapter").is_dir()
    assert not (second / "backbone").exists()
    before, after = (Memory.from_config(run) for run in (first, second))
    for part in ("model", "writer"):
        old, new = (getattr(memory, part).state_dict() for memory in (before, after))
        assert old.keys() == new.keys()
        for name, tensor in old.items():
            torch.testing.assert_close(new[name], tensor, atol=1e-6, rtol=1e-4)


def test_corrections_that_lie_behind_each_other_become_one(tmp_path: Path) -> None:
    """The sum of ranks 2 and 3 is of rank 5, and depends on nothing but the model; of rank 1 it is the nearest there is."""
    first = train(described_lora_run(tmp_path, learning_rate=0.1))
    config = described_lora_run(
        tmp_path, out=str(tmp_path / "on"), start=str(first), learning_rate=0.1
    )
    config["backbone"] |= {"path": str(first), "lora_rank": 3}
    second = train(config)
    wanted = Memory.from_config(second)
    outs = {rank: tmp_path / f"merged-{rank}" for rank in (1, 5)}
    for rank, out in outs.items():
        done = CliRunner().invoke(merge_loras, [str(second), f"--rank={rank}", f"--out={out}"])
        assert done.exit_code == 0, done.output
    shutil.rmtree(first)
    config["backbone"]["path"] = str(tmp_path / "base")
    untrained = Memory.from_config(config)
    one, five = (Memory.from_config(out) for out in outs.values())

    def distance(memory: Memory) -> float:
        own = memory.model.state_dict()
        return sum(float((own[n] - w).square().sum()) for n, w in wanted.model.state_dict().items())

    assert 100 * distance(five) < distance(one) < distance(untrained)
    kept = five.writer.state_dict()  # type: ignore[attr-defined]
    for name, weight in wanted.writer.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(kept[name], weight)


def test_a_checkpoint_holds_what_is_trained_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that is corrected is where it was, and is not written again and again."""
    config = described_lora_run(tmp_path, steps=4, every=2)
    whole = train(config)
    config["training"]["out"] = str(tmp_path / "parts")

    class Stop(trainer.Log):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Log", Stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (checkpoint,) = (tmp_path / "parts" / "checkpoints").glob("*-2")
    held = safetensors.torch.load_file(checkpoint / trainer.WEIGHTS)
    of_model = [name for name in held if name.startswith("memory.model.")]
    assert of_model
    assert all(".lora." in name for name in of_model)
    parts = train(config)
    for name in ("adapter/adapter_model.safetensors", "weights.safetensors"):
        expected, found = (safetensors.torch.load_file(run / name) for run in (whole, parts))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
