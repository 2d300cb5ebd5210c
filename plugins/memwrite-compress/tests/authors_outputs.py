"""What the authors' code gave, see `data/README.md`, and memories with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens

DATA = Path(__file__).parent / "data"


def loaded(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def built(name: str, writer: str, **params: object) -> tuple[Memory, dict[str, Tensor]]:
    """Return a memory with the weights of a file, and the file's tensors."""
    tensors, about = loaded(name)
    params["slots"] = int(about["slots"])
    if "lora.0.A.q" in tensors:
        names = [key.split(".")[-1] for key in tensors if key.startswith("lora.0.A")]
        params |= {
            "rank": int(about["rank"]),
            "alpha": float(about["alpha"]),
            "projections": names,
        }
    reader = "prefix" if writer in ("autocompressor", "icae") else "key-value"
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama", "params": json.loads(about["sizes"]), "dtype": "float64",
                "tokenizer": "characters", "attention": "eager",
            },
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    )  # fmt: skip
    model = {key: t for key, t in tensors.items() if key.startswith(("model.", "lm_head."))}
    memory.model.load_state_dict(model)
    weights = {key: t for key, t in tensors.items() if key.startswith(("lora.", "tokens"))}
    memory.writer.load_state_dict(
        weights | {key: tensors[key] for key in ("answer", "repeat") if key in tensors}
    )
    return memory, tensors


def of(ids: Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def written(memory: Memory, tensors: dict[str, Tensor]) -> MemoryState:
    """Write the segments one after the other."""
    state = memory.writer.init(2)
    for number in range(3):
        state = memory.write(of(tensors[f"segment.{number}"]), state).state
    return state
