"""ARMT beside the authors' code: state, logits, loss and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from memwrite_armt.reader import AssociativeReader
from memwrite_armt.writer import AssociativeWriter
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, Tokens

FILE = Path(__file__).parent / "data" / "armt.safetensors"
#: Their name of a map -> ours.
NAMES = {"W_mq.weight": "query.weight", "W_mk.weight": "key.weight", "W_mv.weight": "value.weight",
         "W_mb.weight": "gate.weight", "W_mb.bias": "gate.bias"}  # fmt: skip


def loaded() -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("case", ["corrected", "plain"])
def test_it_is_the_authors(case: str) -> None:
    tensors, about = loaded()
    expected = {k.removeprefix(f"{case}/"): t for k, t in tensors.items() if k.startswith(case)}
    sizes = {"rank": int(about["rank"]), "order": int(about["order"])}
    params = {**sizes, "slots": int(about["slots"]), "correction": case == "corrected"}
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama", "params": json.loads(about["sizes"]), "dtype": "float64",
                "attention": "eager", "tokenizer": "characters", "trainable": True,
            },
            "writer": {"name": "associative", "params": {**params, "segment": 6}},
            "reader": {"name": "associative", "params": sizes},
        }
    )  # fmt: skip
    weights = {name: t for name, t in tensors.items() if "/" not in name}
    memory.model.load_state_dict(weights)
    memory.train()
    writer, reader = memory.writer, memory.reader
    assert isinstance(writer, AssociativeWriter)
    assert isinstance(reader, AssociativeReader)
    writer.slots.data.copy_(expected["memory"])
    for layer in range(2):
        for theirs, ours in NAMES.items():
            value = expected[f"layers.{layer}.{theirs}"]
            writer.layers[str(layer)].get_parameter(ours).data.copy_(value)
        reader.queries[str(layer)].weight.data.copy_(expected[f"layers.{layer}.W_mq.weight"])

    context = torch.cat([expected["segment.0"], expected["segment.1"]], 1)
    state = memory.write(Tokens(context, torch.ones_like(context, dtype=torch.bool))).state
    close(state["S"].mT, expected["S"])
    close(state["z"], expected["z"])
    query = expected["query"]
    logits = memory.read(state, Tokens(query, torch.ones_like(query, dtype=torch.bool))).logits
    close(logits, expected["logits"])
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), query[:, 1:].flatten())
    close(loss, expected["loss"])
    loss.backward()  # type: ignore[no-untyped-call]
    close(writer.slots.grad, expected["grad.memory"])
    for layer in range(2):
        for theirs, ours in NAMES.items():
            found = writer.layers[str(layer)].get_parameter(ours).grad
            assert found is not None
            if theirs == "W_mq.weight":  # they have one for writing and reading
                found = found + reader.queries[str(layer)].weight.grad
            close(found, expected[f"grad.layers.{layer}.{theirs}"])


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    bar = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bar)
