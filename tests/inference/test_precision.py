"""Every dtype and device against float64 on the CPU: states stay float32, reads and writes stay close."""

from __future__ import annotations

import pytest
import torch
from support import MODELS

from memwrite import Memory, Tokens

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
PAIRS = [("gradient", "prefix"), ("full-context", "key-value"), ("no-memory", "no-memory")]


def logits(
    model: str, writer: str, reader: str, dtype: str, device: str
) -> tuple[torch.Tensor, torch.dtype]:
    sizes = {**MODELS[model]["params"], "initializer_range": 0.1}
    backbone = {"type": model, "params": sizes, "dtype": dtype, "device": device}
    params = {"slots": 3, "steps": 2, "lr": 0.5} if writer == "gradient" else {}
    memory = Memory.from_config(
        {
            "backbone": backbone,
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    )
    # The start of the slots is drawn in the state's own dtype: give every dtype the same one.
    if writer == "gradient":
        start = torch.linspace(-0.3, 0.3, 96, dtype=torch.float64).sin().reshape(3, 32)
        memory.writer.fast.slots.data.copy_(start)
    state = memory.write(Tokens.from_rows([[5, 6, 7, 8], [9, 10]])).state
    query = Tokens.from_rows([[1, 2], [3]])
    return memory.read(state, query).logits.double().cpu(), state.spec.dtype


@pytest.fixture(autouse=True)
def _device_is_there(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["device"] == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("writer", "reader"), PAIRS)
@pytest.mark.parametrize("model", MODELS)
def test_every_dtype_is_close_to_float64(
    model: str, writer: str, reader: str, dtype: str, device: str
) -> None:
    wanted, _ = logits(model, writer, reader, "float64", "cpu")
    found, kept = logits(model, writer, reader, dtype, device)
    error = (found - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype]
    assert kept == torch.float32 or writer == "full-context"
