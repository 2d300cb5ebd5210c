"""The rules against reference files made with other people's code: reads, states and gradients (data/README.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_problems import Tensors, assert_same
from memwrite_fastweights import kinds, lact
from memwrite_fastweights.chunks import COUNT, Rule, scan
from memwrite_fastweights.lact import LactRule
from memwrite_fastweights.titans import MOMENTUM, START, TitansRule
from memwrite_fastweights.ttt import GRADIENT, TttRule
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

FOLDER = Path(os.environ.get("MEMWRITE_FASTWEIGHTS_PARITY") or Path(__file__).with_name("data"))
FILES = sorted(FOLDER.rglob("*.safetensors"))
LEAVES = ("queries", "keys", "values", "step", "decay", "momentum", "rates", "tau")


def titans(given: Tensors, said: dict[str, str]) -> tuple[Rule, Tensors, Tensors]:
    """Gates are given by their scores."""
    names = ("S",) if "start.S" in given else ("W1", "W2")
    tokens = {
        "keys": given["keys"],
        "values": given["values"],
        "step": float(said["max_step"]) * given["step"].sigmoid(),
        "log_keep": F.logsigmoid(-given["decay"]),
    }
    if "momentum" in given:
        tokens["log_momentum"] = F.logsigmoid(given["momentum"])
    state = {}
    for name in names:
        start = given["start." + name].expand(len(given["keys"]), -1, -1, -1)
        state |= {name: start, START + name: start}
        if "momentum" in given:
            state[MOMENTUM + name] = torch.zeros_like(start)
    return TitansRule(names, int(said["chunk"])), tokens, state


def ttt(given: Tensors, said: dict[str, str]) -> tuple[Rule, Tensors, Tensors]:
    names = kinds.ONE if said["kind"] == "ttt-linear" else kinds.TWO
    rows = len(given["keys"])
    state = {}
    for name in (letter + name for letter in "Wb" for name in names):
        start = given["start." + name]
        state[name] = start.expand(rows, *start.shape)
        state[GRADIENT + name] = torch.zeros_like(state[name])
    state |= {"norm." + n: given["norm." + n].expand(rows, -1, -1) for n in ("scale", "shift")}
    state["rate"] = given["tau"].new_zeros(rows)
    tokens = {name: given[name] for name in ("keys", "values", "step")}
    return TttRule(names, int(said["chunk"]), given["tau"]), tokens, state


def lact_(given: Tensors, said: dict[str, str]) -> tuple[Rule, Tensors, Tensors]:
    state = {}
    for name in lact.NAMES:
        start = given["start." + name]
        state |= {name: start, lact.START + name: start, lact.LENGTH + name: start.norm(dim=-1)}
        state[lact.GRADIENT + name] = torch.zeros_like(start)
        if "momentum" in given:
            state |= {lact.STEP + name: torch.zeros_like(start)}
            state[lact.MOMENTUM] = start.new_zeros(start.shape[:2])
    tokens = {n: given[n] for n in ("keys", "values", "rates", "momentum") if n in given}
    return LactRule(int(said["chunk"]), said["muon"] == "True"), tokens, state


Build = Callable[[Tensors, dict[str, str]], tuple[Rule, Tensors, Tensors]]
BUILDS: dict[str, tuple[Build, Any]] = {
    "titans": (titans, None),
    "ttt-linear": (ttt, kinds.TTT_LINEAR),
    "ttt-mlp": (ttt, kinds.TTT_MLP),
    "lact": (lact_, kinds.SWIGLU),
}


def run(given: Tensors, said: dict[str, str]) -> Tensors:
    """Reads and states. But for LaCT a query is read there when its token is written, here before: so it asks a token late,
    and the last one asks the state at rest."""
    build, kind = BUILDS[said["kind"]]
    rule, tokens, state = build(given, said)
    rows = len(given["queries"])
    state[COUNT] = torch.zeros(rows, dtype=torch.long)
    queries = given["queries"]
    if said["kind"] == "lact":
        reads, after = scan(rule, tokens, queries, state)
    else:
        reads, after = scan(rule, tokens, F.pad(queries[:, :-1], (0, 0, 0, 0, 1, 0)), state)
        kind = kind or (kinds.MATRIX if "S" in after else kinds.MLP)
        reads = torch.cat([reads[:, 1:], kind.recall(after, queries[:, -1:])], 1)
    return {"reads": reads, **after}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference(path: Path) -> None:
    with safe_open(path, "pt") as file:
        said, held = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    inputs = {n: x for n, x in held.items() if n in LEAVES or n.startswith(("start.", "norm."))}
    given = {n: x.requires_grad_() for n, x in inputs.items()}
    found = run(given, said)
    # The slope of TTT's GELU has constants of eight digits there.
    bar = 1e-7 if said["kind"] == "ttt-mlp" else 1e-10
    assert_same(found, part(held, "result."), bar)
    wanted = part(held, "grad.")
    if wanted:
        mixed = sum((found[n] * weights).sum() for n, weights in part(held, "mix.").items())
        grads = torch.autograd.grad(mixed, [given[n] for n in wanted])
        assert_same(dict(zip(wanted, grads, strict=True)), wanted, bar)


def part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
