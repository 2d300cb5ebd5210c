"""One memory as a folder of peft, read by peft itself, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory, MemoryState, StateSpec
from memwrite.backbones.loading import load_backbone
from memwrite.checkpoints import peft_state
from memwrite.cli.main import main
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.convert import export_state, import_state
from memwrite.errors import ConfigError, StorageError
from memwrite.plugins import registry
from memwrite.protocols import Conditioning, Gate, StaticAdapter

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
QUERY = "Where is it?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft") / "base"
    memory = Memory.from_config({"backbone": {"type": "llama", "params": LLAMA}})
    memory.backbone.save(folder, torch.float32)
    return folder


def memory_of(base: Path, reader: str, spec: StateSpec | None = None) -> Memory:
    """A memory that writes whole texts, or one that reads states of a spec."""
    if spec is None:
        config = {"backbone": {"path": str(base)}, "writer": {"name": "full-context"}}
        return Memory.from_config({**config, "reader": {"name": reader}})
    described, plugin = BackboneConfig(path=str(base)), registry().reader(reader)
    backbone = load_backbone(described)
    built = plugin.build(plugin.config(), backbone, spec)
    return Memory(backbone, None, built, Config(described, reader=PartConfig(reader))).eval()


@torch.no_grad()
def logits(memory: Memory, state: MemoryState) -> Tensor:
    return memory.read(state, memory.encode(QUERY, raw=True)).logits


@torch.no_grad()
def by_peft(base: Path, folder: Path) -> Tensor:
    """What transformers and peft make of the query with an adapter."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    ids = memory_of(base, "key-value").encode(QUERY, raw=True).ids
    found: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def key_values(
    base: Path, change: Callable[[MemoryState], MemoryState]
) -> tuple[Memory, MemoryState]:
    memory = memory_of(base, "key-value")
    state = memory.write("The key is under the mat.").state
    return memory, change(state)


def whole(state: MemoryState) -> MemoryState:
    return state


def holed(state: MemoryState) -> MemoryState:
    """Lose every third slot: what is left does not stand at the positions 0, 1, 2 any more."""
    mask = state["mask"].clone()
    mask[:, ::3] = False
    return replace(state, tensors={**state.tensors, "mask": mask})


@pytest.mark.parametrize("change", [whole, holed])
def test_key_values_are_a_cartridge(base: Path, tmp_path: Path, change: Any) -> None:
    memory, state = key_values(base, change)
    memory.save(state, tmp_path / "state.safetensors")
    export_state(tmp_path / "state.safetensors", tmp_path / "peft")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["num_virtual_tokens"] == int(state["mask"].sum())
    assert_close(by_peft(base, tmp_path / "peft"), logits(memory, state), **CLOSE)
    import_state(tmp_path / "peft", tmp_path / "back.safetensors", base)
    assert_close(
        logits(*Memory.load(tmp_path / "back.safetensors")), logits(memory, state), **CLOSE
    )


def matrices(names: str = "q k v o gate up down") -> MemoryState:
    """A state of low-rank weights at the second layer, one projection of a rank of its own."""
    wide = {"gate": (48, 32), "up": (48, 32), "down": (32, 48), "k": (16, 32), "v": (16, 32)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names.split():
        outputs, inputs = wide.get(name, (32, 32))
        rank = 3 if name == "k" else 2
        shapes |= {f"A.{name}": (1, rank, inputs), f"B.{name}": (1, outputs, rank)}
    random = torch.Generator().manual_seed(0)
    tensors = {n: 0.2 * torch.randn(1, *shape, generator=random) for n, shape in shapes.items()}
    return MemoryState(StateSpec("lowrank", shapes, (1,)), tensors)


def test_low_rank_weights_are_a_lora(base: Path, tmp_path: Path) -> None:
    state = matrices()
    memory = memory_of(base, "per-example-lora", state.spec)
    memory.save(state, tmp_path / "state.safetensors")
    export_state(tmp_path / "state.safetensors", tmp_path / "peft")
    found = by_peft(base, tmp_path / "peft")
    assert_close(found, logits(memory, state), **CLOSE)
    plain = memory_of(base, "key-value")
    assert float((found - logits(plain, plain.writer.init(1))).abs().max()) > 0.01
    import_state(tmp_path / "peft", tmp_path / "back.safetensors", base)
    assert_close(
        logits(*Memory.load(tmp_path / "back.safetensors")), logits(memory, state), **CLOSE
    )


def test_the_commands(base: Path, tmp_path: Path) -> None:
    memory, state = key_values(base, whole)
    state_file, folder, back = (
        str(tmp_path / name) for name in ("state.safetensors", "peft", "back.safetensors")
    )
    memory.save(state, state_file)
    run = CliRunner().invoke
    assert run(main, ["export", state_file, folder, "--format", "peft"]).exit_code == 0
    again = run(main, ["export", state_file, folder, "--format", "peft"])
    assert again.exit_code == 2
    assert "exists already" in again.output
    assert run(main, ["import", "peft", folder, "--base", str(base), "--out", back]).exit_code == 0
    assert_close(logits(*Memory.load(back)), logits(memory, state), **CLOSE)


def exported(base: Path, tmp_path: Path) -> Path:
    memory, state = key_values(base, whole)
    memory.save(state, tmp_path / "state.safetensors")
    export_state(tmp_path / "state.safetensors", tmp_path / "peft")
    return tmp_path / "peft"


def test_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    folder, out = exported(base, tmp_path), tmp_path / "back.safetensors"
    other = Memory.from_config({"backbone": {"type": "llama", "params": LLAMA}, "seed": 1})
    other.backbone.save(tmp_path / "other", torch.float32)
    with pytest.raises(
        StorageError, match="another model than this one, as their fingerprints say"
    ):
        import_state(folder, out, tmp_path / "other")
    with pytest.raises(ConfigError, match="--base"):
        import_state(folder, out, None)


def test_a_cartridge_of_other_sizes_is_refused(base: Path, tmp_path: Path) -> None:
    folder = exported(base, tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["num_virtual_tokens"] += 1
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="prompt_embeddings"):
        import_state(folder, tmp_path / "back.safetensors", base)
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match="cannot be read"):
        import_state(folder, tmp_path / "back.safetensors", base)


def test_what_peft_has_no_form_for_is_refused(base: Path, tmp_path: Path) -> None:
    memory, state = key_values(base, whole)
    backbone, past = memory.backbone, memory.reader.condition(state).key_values
    assert past is not None
    gate = StaticAdapter({}, lambda _, hidden: {"o": Gate(hidden)})
    for conditioning, said in (
        (Conditioning(prefix=torch.zeros(1, 2, 32)), "neither key-values nor low-rank weights"),
        (
            Conditioning(key_values=replace(past, bias=torch.ones_like(past.keys[..., 0]))),
            "a bias on its slots",
        ),
        (Conditioning(key_values=replace(past, mask=torch.zeros_like(past.mask))), "has no slots"),
        (Conditioning(corrections={0: gate}), "more than low-rank weights"),
    ):
        with pytest.raises(ConfigError, match=said):
            peft_state.save(conditioning, backbone, "base", tmp_path / "peft")
