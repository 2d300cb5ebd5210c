"""The examples do what they say, at the length that they promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from memwrite_specs import conformance

from memwrite import Memory, Tokens
from memwrite.plugins import register, registry
from memwrite.protocols import LayerInput

FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    register(module)
    return module


TITANS, GIST = example("titans").TITANS, example("gist").GIST


@pytest.mark.parametrize(("name", "lines"), [("titans", 70), ("gist", 55)])
def test_an_example_is_short(name: str, lines: int) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= lines


@conformance(TITANS, reader="lora", reader_params={"init": "random"})
def test_titans(law) -> None:
    law()


@torch.no_grad()
def test_titans_learns_what_it_reads() -> None:
    """After one pair came again and again, M answers its key with nearly its value."""
    config = {"type": "gpt2", "params": {"n_embd": 32, "n_layer": 1, "n_head": 2}}
    memory = Memory.from_config(
        {"backbone": config, "writer": {"name": "titans"}, "reader": {"name": "lora"}}
    )
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1, 32, generator=random).expand(1, 300, 32)
    mapped = hidden[:, :1] @ memory.writer.maps[0] / 8
    key = torch.nn.functional.normalize(mapped[..., None, :4], dim=-1)
    value = mapped[..., None, 4:-3].tanh()
    before = memory.writer.init(1).layer(0)
    after = memory.writer.scan(LayerInput(0, hidden), before, write=True).state
    recall = registry().kinds.get("titans", []).recall
    assert recall is not None
    errors = [float((recall(state, key) - value).norm()) for state in (before, after)]
    assert errors[1] < errors[0] / 5


@conformance(GIST, reader="key-value", backbone="llama")
def test_gist(law) -> None:
    law()


def test_gist_is_written_on_without_end() -> None:
    """A memory that has read many more tokens than the model has positions still reads, and stays of its size."""
    config = {
        "type": "llama",
        "params": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "max_position_embeddings": 64,
        },
    }  # fmt: skip
    memory = Memory.from_config(
        {"backbone": config, "writer": {"name": "gist"}, "reader": {"name": "key-value"}}
    )
    state = memory.write(Tokens.from_rows([[5] * 300])).state
    assert state.nbytes == memory.writer.spec.nbytes
    assert int(state["next_position"]) == 4
    assert memory.read(state, Tokens.from_rows([[7] * 60])).logits.isfinite().all()
