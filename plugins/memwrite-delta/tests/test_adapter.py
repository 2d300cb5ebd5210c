"""δ-mem's adapter folders: taken as they are, made as they should be, and refused by name where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from memwrite_delta import delta_mem
from memwrite_delta.delta_mem_fields import FIELDS, FIXED
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from memwrite import Memory, Tokens
from memwrite.cli.main import main
from memwrite.errors import ConfigError, StorageError

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 258, "max_position_embeddings": 64}  # fmt: skip
WIDTHS = {"q": 32, "k": 16, "v": 16, "o": 32}
ROW = Tokens.from_rows([[1, 2, 3, 4, 5, 6]])
pytestmark = pytest.mark.filterwarnings("ignore:writer 'delta'")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **SIZES, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    return out


def adapter(folder: Path, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """An adapter folder as the authors' code writes it, with random weights."""
    settings = {**FIELDS, **fields}
    rank, heads = settings["rank"], settings["num_state_heads"]
    reads, gates = rank * heads, (rank if settings["rankwise_gates"] else 1) * heads
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.3).to(dtype)

    weights = {}
    for layer in settings["target_layers"] or range(2):
        own = {f"memory_{name}_proj": drawn(reads, 32) for name in "qkv"}
        own |= {f"delta_{name}_proj": drawn(width, reads) for name, width in WIDTHS.items()}
        own |= {"beta_proj": drawn(gates, 32), "beta_bias": drawn(gates)}
        if not settings["couple_lambda"]:
            own |= {"lambda_proj": drawn(gates, 32), "lambda_bias": drawn(gates)}
        if settings["delta_o_rmsnorm"]:
            own["delta_o_rmsnorm_weight"] = drawn(32)
        if settings["trainable_delta_scale"]:
            own["delta_scale_raw"] = drawn(
                4 if settings["delta_scale_granularity"] == "head" else 1
            )
        weights |= {f"model.layers.{layer}.self_attn.{name}": t for name, t in own.items()}
    folder.mkdir()
    (folder / delta_mem.CONFIG_FILE).write_text(json.dumps(fields))
    torch.save(weights, folder / delta_mem.WEIGHTS_FILE)
    return folder


def imported(folder: Path, base: Path, out: Path) -> Any:
    words = ["import", "delta", str(folder), "--base", str(base), "--out", str(out)]
    return CliRunner().invoke(main, words)


SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "released": {"output_init": "base_slice_fixed", "delta_heads": ["q", "o"]},
    "heads": {"num_state_heads": 3, "rank": 4, "rankwise_gates": False, "target_layers": [1]},
    "free": {"couple_lambda": False, "state_update_mode": "lambda_outside"},
    "norm": {"delta_o_rmsnorm": True, "trainable_delta_scale": True, "delta_heads": "v, o"},
    "scales": {
        "trainable_delta_scale": True,
        "delta_scale_granularity": "head",
        "delta_heads": ["v", "q"],
        "normalize_qk": False,
    },
    "messages": {"memory_write_granularity": "message_mean", "state_update_mode": "no_lambda"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_there_and_back(name: str, base: Path, tmp_path: Path) -> None:
    """Imported, saved as a run, opened, exported, imported again: the same memory, which does something."""
    first = adapter(tmp_path / "first", **SETTINGS[name])
    assert imported(first, base, tmp_path / "run").exit_code == 0
    words = ["export", str(tmp_path / "run"), str(tmp_path / "second"), "--format", "delta"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert imported(tmp_path / "second", base, tmp_path / "again").exit_code == 0
    memories = [Memory.from_config(tmp_path / run) for run in ("run", "again")]
    states = [memory.write(ROW).state for memory in memories]
    assert torch.equal(states[0]["S"], states[1]["S"])
    outputs = [m.read(s, ROW).logits for m, s in zip(memories, states, strict=True)]
    assert torch.equal(*outputs)
    plain = memories[0].model(ROW.ids, use_cache=False).logits
    assert (outputs[0] - plain).abs().max() > 1e-3
    written = json.loads((tmp_path / "second" / delta_mem.CONFIG_FILE).read_text())
    assert written.keys() == {*FIELDS, *FIXED}
    weights = [
        torch.load(tmp_path / folder / delta_mem.WEIGHTS_FILE, weights_only=True)
        for folder in ("first", "second")
    ]
    assert weights[0].keys() >= weights[1].keys()
    assert not (tmp_path / "run" / "backbone").exists()


def test_half_precision_weights(base: Path, tmp_path: Path) -> None:
    """As released: in bfloat16, which is read exactly, and computed with in float32."""
    folder = adapter(tmp_path / "half", torch.bfloat16)
    weights = delta_mem.load(folder, base).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert imported(folder, base, tmp_path / "run").exit_code == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_r": 8}, "rank_r"),
        ({"num_memory_partitions": 2}, "num_memory_partitions = 2"),
        ({"memory_readout_mode": "latent"}, "memory_readout_mode"),
        ({"latent_memory_layers": [1]}, "latent_memory_layers"),
        ({"target_modules": ["mlp"]}, "target_modules"),
        ({"state_update_mode": "half"}, "state_update_mode"),
        ({"memory_write_granularity": "message_proposals"}, "memory_write_granularity"),
        ({"delta_heads": []}, "projections"),
        ({"delta_heads": ["q", "x"]}, "delta_heads"),
        ({"rank": 0}, "rank"),
        ({"rank": "many"}, "rank"),
        ({"target_layers": [7]}, "layer 7"),
    ],
)
def test_fields_that_cannot_be_done(
    fields: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / delta_mem.CONFIG_FILE).write_text(json.dumps(fields))
    result = imported(folder, base, tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def test_files_that_are_no_weights(base: Path, tmp_path: Path) -> None:
    """Truncated, of other names or shapes, or a pickle that would run code: one sentence, and nothing runs."""
    folder = adapter(tmp_path / "adapter")
    path = folder / delta_mem.WEIGHTS_FILE
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)
    name = next(iter(weights))
    damaged: list[Any] = [
        whole[: len(whole) // 2],
        b"",
        {**weights, "model.layers.0.self_attn.other": torch.zeros(1)},
        {**weights, name: torch.zeros(2, 2)},
        {n: t for n, t in weights.items() if n != name},
        [1, 2],
        {"x": 1},
        Bomb(tmp_path / "bomb"),
    ]
    for content in damaged:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        result = imported(folder, base, tmp_path / "run")
        assert result.exit_code == 2, content
        assert result.output.startswith("Error: ")
    assert not (tmp_path / "bomb").exists()
    path.unlink()
    assert imported(folder, base, tmp_path / "run").exit_code == 2
    with pytest.raises(ConfigError, match="--base"):
        delta_mem.load(folder, None)


def test_what_the_format_cannot_say(base: Path, tmp_path: Path) -> None:
    imported_run = adapter(tmp_path / "adapter")
    assert imported(imported_run, base, tmp_path / "run").exit_code == 0
    memory = Memory.from_config(tmp_path / "run", ["writer.params.writes=2"])
    with pytest.raises(ConfigError, match=r"writer\.params\.writes"):
        delta_mem.save(memory, tmp_path / "out")
    other = Memory.from_config("configs/cram.yaml")
    with pytest.raises(ConfigError, match="writer delta with reader lora"):
        delta_mem.save(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_knows_its_language_model(base: Path, tmp_path: Path) -> None:
    """Weights that were learnt around another model are refused."""
    assert imported(adapter(tmp_path / "adapter"), base, tmp_path / "run").exit_code == 0
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SIZES))
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(StorageError, match="trained with the backbone"):
        Memory.from_config(tmp_path / "run", [f"backbone.path={tmp_path / 'other'}"])
