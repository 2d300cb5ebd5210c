"""The examples do what they say, at the length that they promise."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from memwrite_specs import conformance

from memwrite import Memory, Tokens
from memwrite.plugins import register, registry
from memwrite.protocols import LayerInput
from memwrite.state import KINDS

FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def registered(*modules: ModuleType) -> Iterator[None]:
    """Their plugins are installed within this, and nowhere else."""
    tables = [table.entries for table in registry().tables]
    before = [dict(entries) for entries in (*tables, KINDS)]
    try:
        for module in modules:
            register(module)
        yield
    finally:
        for entries, old in zip((*tables, KINDS), before, strict=True):
            entries.clear()
            entries.update(old)  # type: ignore[arg-type]


EXAMPLES = [example("titans"), example("gist")]
TITANS, GIST = EXAMPLES[0].TITANS, EXAMPLES[1].GIST


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with registered(*EXAMPLES):
        yield


@pytest.mark.parametrize(("name", "lines"), [("titans", 70), ("gist", 55)])
def test_an_example_is_short(name: str, lines: int) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= lines


with registered(*EXAMPLES):
    titans_laws = conformance(TITANS, reader="lora", reader_params={"init": "random"})
    gist_laws = conformance(GIST, reader="key-value", backbone="llama")


@titans_laws
def test_titans(law) -> None:
    law()


@torch.no_grad()
def test_titans_learns_what_it_reads() -> None:
    """After one pair came again and again, M answers its key with nearly its value."""
    config = {"type": "gpt2", "params": {"n_embd": 32, "n_layer": 1, "n_head": 2}}
    memory = Memory.from_config(
        {"backbone": config, "writer": {"name": "small-titans"}, "reader": {"name": "lora"}}
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


@gist_laws
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
        {"backbone": config, "writer": {"name": "small-gist"}, "reader": {"name": "key-value"}}
    )
    state = memory.write(Tokens.from_rows([[5] * 300])).state
    assert state.nbytes == memory.writer.spec.nbytes
    assert int(state["next_position"]) == 4
    assert memory.read(state, Tokens.from_rows([[7] * 60])).logits.isfinite().all()
