"""The scan in the terms of flash-linear-attention, whose documented rule is stated here in plain torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import pytest
import torch
from memwrite_delta import gated, naive
from memwrite_delta.scan import scan
from torch import Tensor
from torch.nn import functional as F

coupled_or_not = pytest.mark.parametrize("coupled", [True, False])


def inputs_of(coupled: bool) -> list[Tensor]:
    """What `scan` takes, in float32; keep and erase add up to 1 if coupled, else erase is keep times write."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = F.normalize(torch.randn(2, 2, 40, 2, 16, generator=generator), dim=-1)
    values = torch.randn(2, 40, 2, 24, generator=generator)
    score, other = torch.randn(2, 2, 40, 2, 1, generator=generator)
    write = score.sigmoid()
    log_keep = F.logsigmoid(-score if coupled else other)
    erase = write.clone() if coupled else write * log_keep.exp()
    state = torch.randn(2, 2, 24, 16, generator=generator)
    return [queries, keys, values, log_keep, erase, write, state]


def rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The library's, with a scale of 1: outputs (B, T, H, Dv) and the state (B, H, Dk, Dv)."""
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t, :, None, None].exp() * state
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def by_rule(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    *tokens, state = inputs
    later, after = rule(**gated.convert(*tokens), state=state.mT)
    first = torch.einsum("bhvk,bhk->bhv", state, tokens[0][:, 0])
    return torch.cat([first[:, None], later[:, :-1]], 1), after.mT


def results(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Reads, state, and the gradients of both."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    reads, state = run(*inputs)
    return reads, state, *torch.autograd.grad(reads.sum() + state.square().sum(), inputs)


@coupled_or_not
def test_their_rule_is_ours(coupled: bool) -> None:
    inputs = [x.double() for x in inputs_of(coupled)]
    assert gated.expressible(*inputs[3:6])
    found, expected = results(by_rule, inputs), results(naive.scan, inputs)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_padding_is_padding_there_too() -> None:
    *tokens, state = (x.double() for x in inputs_of(coupled=True))
    padding = [torch.zeros_like(x) for x in tokens[3:]]
    assert gated.expressible(*padding)
    assert torch.equal(by_rule(*tokens[:3], *padding, state)[1], state)


def test_coupled_gates_that_vanish_have_their_derivative() -> None:
    """There the library divides 0 by 0, but d/dβ is that of a token which is about to be written."""
    *tokens, state = (x.double() for x in inputs_of(coupled=True))

    def written(run: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        beta = torch.zeros_like(tokens[4]).requires_grad_()
        after = run(*tokens[:3], torch.log1p(-beta), beta, beta, state)[1]
        return torch.autograd.grad(after.square().sum(), beta)[0]

    torch.testing.assert_close(written(by_rule), written(naive.scan), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("log_keep", "erase", "write"),
    [(-50.0, 0.5, 0.5), (-float("inf"), 1.0, 1.0), (-1.0, 0.0, 1.0), (-1.0, 1e-6, 1.0)],
)
def test_what_their_rule_cannot_say(log_keep: float, erase: float, write: float) -> None:
    assert not gated.expressible(*torch.tensor([log_keep, erase, write]))


def test_it_is_not_used_on_cpu() -> None:
    assert not gated.fits(inputs_of(coupled=True))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("fla") is None,
    reason="needs a CUDA device and flash-linear-attention",
)
@coupled_or_not
def test_the_library(coupled: bool) -> None:
    """To the 10 bits of TF32."""
    inputs = [x.cuda() for x in inputs_of(coupled)]
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert gated.fits(inputs)
        found = results(scan, inputs)
    finally:
        torch.set_float32_matmul_precision(allowed)
    for one, other in zip(found, results(naive.scan, inputs), strict=True):
        assert (one - other).abs().max() < 1e-2 * other.abs().max()
