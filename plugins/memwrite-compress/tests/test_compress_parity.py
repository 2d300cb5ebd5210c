"""Every compressor beside its authors' code: states, logits and losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from authors_outputs import built, of, written
from memwrite_compress.icae import IcaeWriter
from torch import Tensor
from torch.nn import functional as F

from memwrite import Tokens


def close(found: Tensor, expected: Tensor) -> None:
    bar = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=bar)


def test_gist() -> None:
    memory, tensors = built("gist", "gist")
    state = memory.write(of(tensors["context"])).state
    close(state["keys"], tensors["keys"])
    close(state["values"], tensors["values"])
    close(memory.read(state, of(tensors["query"])).logits, tensors["logits"])


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("form", ["concat", "merge"])
def test_ccm(form: str, recurrent: bool) -> None:
    params = {} if form == "concat" else {"unrotate": False}
    memory, tensors = built("ccm", f"ccm-{form}", recurrent=recurrent, **params)
    state = written(memory, tensors)
    case = f"{form}_recur" if recurrent else form
    slots = tensors[f"{case}/keys"].shape[3]
    assert state["mask"].sum(1).tolist() == [slots] * 2
    close(state["keys"][:, :, :, :slots], tensors[f"{case}/keys"])
    close(state["values"][:, :, :, :slots], tensors[f"{case}/values"])
    close(memory.read(state, of(tensors["query"])).logits, tensors[f"{case}/logits"])


@pytest.mark.parametrize(("case", "keep"), [("accumulated", 3), ("replaced", 1)])
def test_autocompressor(case: str, keep: int) -> None:
    memory, tensors = built("autocompressor", "autocompressor", keep=keep)
    state = written(memory, tensors)
    close(state["memory"], tensors[f"{case}/memory"])
    close(memory.read(state, of(tensors["query"])).logits, tensors[f"{case}/logits"])


def test_icae() -> None:
    """In one batch, which theirs cannot be, and cut into segments as theirs are."""
    memory, tensors = built("icae", "icae", segment=4, autoencoding_weight=1.0)
    cases = ("one", "two", "three")
    contexts = Tokens.from_rows([tensors[f"{case}/context"][0].tolist() for case in cases])
    memory.train()
    output = memory.write(contexts)
    logits = memory.read(output.state, of(tensors["query"].expand(3, -1))).logits
    for row, case in enumerate(cases):
        mask = output.state["mask"][row]
        close(output.state["memory"][row][mask][:-1], tensors[f"{case}/memory"])
        close(logits[row], tensors[f"{case}/logits"][0])
        close(output.losses["autoencoding"][row], tensors[f"{case}/autoencoding"][0])
    assert isinstance(memory.writer, IcaeWriter)


def test_500x() -> None:
    """Whose decoder begins at position m, before the memory that it reads; ours begins behind it."""
    memory, tensors = built("500x", "500x")
    context = tensors["context"]
    state = memory.write(of(context)).state
    close(state["keys"], tensors["keys"])
    close(state["values"], tensors["values"])
    slots = state["mask"].shape[1]
    assert state["next_position"].tolist() == [context.shape[1] + slots] * 2
    query = torch.cat([torch.ones_like(context[:, :1]), context], 1)
    theirs = replace(
        state,
        tensors={**state.tensors, "next_position": torch.full_like(state["next_position"], slots)},
    )
    logits = memory.read(theirs, of(query)).logits
    close(logits, tensors["logits"])
    labels = torch.cat([context, torch.full_like(context[:, :1], 2)], 1)
    close(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), tensors["loss"][0])
    assert (memory.read(state, of(query)).logits - logits).abs().max() > 0.1
