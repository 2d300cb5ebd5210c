"""The scan's algorithms against the sequential oracle, and what they must not cost."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import memwrite_delta
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_delta import chunked, naive
from memwrite_delta.scan import Algorithm, _compiled, scan, scan_with
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = ("queries", "keys", "values", "log_keep", "erase", "write", "state")
GATES = ("moderate", "tiny", "near one", "extreme")
without_numba = pytest.mark.skipif(_compiled() is None, reason="needs numba")
compiled = pytest.param(_compiled(), id="compiled", marks=without_numba)
fast = pytest.mark.parametrize("algorithm", [pytest.param(chunked, id="chunked"), compiled])


@dataclass(frozen=True)
class Problem:
    """Sizes of a scan, and a seed for what is in it."""

    batch: int
    length: int
    heads: int
    width: int
    height: int
    own: tuple[bool, bool, bool] = (True, True, True)
    gates: str = "moderate"
    seed: int = 0

    def inputs(self) -> list[Tensor]:
        """As `scan` takes them, float64, with keys and queries of length 1."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        sizes = (self.batch, self.length, self.heads)
        queries, keys = (F.normalize(normal(*sizes, self.width), dim=-1) for _ in range(2))
        draws = [
            torch.rand(*sizes, self.height if own else 1, generator=generator) for own in self.own
        ]
        keep, erase, write = (gate(self.gates, draw.double()) for draw in draws)
        state = normal(self.batch, self.heads, self.height, self.width)
        return [queries, keys, normal(*sizes, self.height), keep.log(), erase, write, state]


def gate(kind: str, draw: Tensor) -> Tensor:
    """Gates in [0, 1] of uniform draws."""
    if kind == "moderate":
        return 0.05 + 0.9 * draw
    if kind == "tiny":
        return 10 ** (-40 * draw)
    if kind == "near one":
        return 1 - 10 ** (-3 - 5 * draw)
    return (3 * draw).floor() / 2  # 0, a half and 1


def problems(**fixed: Any) -> st.SearchStrategy[Problem]:
    small = st.integers(1, 5)
    sizes = {
        "batch": st.integers(1, 2),
        "length": st.sampled_from([0, 1, 2, 31, 32, 33, 70]),
        "heads": st.integers(1, 2),
        "width": small,
        "height": small,
        "own": st.tuples(*[st.booleans()] * 3),
        "gates": st.sampled_from(GATES),
        "seed": st.integers(0, 2**32 - 1),
    }
    return st.builds(Problem, **{**sizes, **{name: st.just(x) for name, x in fixed.items()}})


Run = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]


def by(algorithm: Algorithm) -> Run:
    return lambda inputs: scan_with(algorithm, inputs)


def oracle(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return naive.scan(*inputs)


def differentiated(run: Run, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Reads, state, and the gradients of a mix of both."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    reads, state = run(inputs)
    generator = torch.Generator().manual_seed(0)
    mixed = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in (reads, state)
    )
    grads = torch.autograd.grad(mixed, inputs, materialize_grads=True)
    return {"reads": reads, "new state": state, **dict(zip(NAMES, grads, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-11) -> None:
    for name, tensor in expected.items():
        size = tensor.abs().max().item() if tensor.numel() else 0.0
        torch.testing.assert_close(
            found[name],
            tensor,
            atol=atol * max(1.0, size),
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@fast
@given(problem=problems())
def test_equals_the_oracle(algorithm: Algorithm, problem: Problem) -> None:
    inputs = problem.inputs()
    assert_same(differentiated(by(algorithm), inputs), differentiated(oracle, inputs))


@given(problem=problems())
def test_a_single_token_equals_the_oracle(problem: Problem) -> None:
    """By itself, as a decoded one is; a gate of 0 and padding included."""
    inputs = replace(problem, length=1).inputs()
    with torch.no_grad():
        found = scan(*inputs)
    for own, expected in zip(found, oracle(inputs), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-12)
    inputs[3:6] = [torch.zeros_like(gate) for gate in inputs[3:6]]
    with torch.no_grad():
        assert torch.equal(scan(*inputs)[1], inputs[-1])


@fast
@pytest.mark.parametrize("own", [(True, False, True), (False,) * 3])
def test_gradients_are_those_of_differences(algorithm: Algorithm, own: tuple[bool, ...]) -> None:
    inputs = Problem(1, 3, 2, 2, 3, own).inputs()
    assert torch.autograd.gradcheck(
        lambda *x: scan_with(algorithm, x), [x.requires_grad_() for x in inputs]
    )


@fast
@given(problem=problems(), share=st.floats(0, 1))
def test_two_scans_make_one(algorithm: Algorithm, problem: Problem, share: float) -> None:
    *tokens, state = problem.inputs()
    reads, expected = scan_with(algorithm, [*tokens, state])
    cut = round(share * problem.length)
    first, state = scan_with(algorithm, [*(x[:, :cut] for x in tokens), state])
    second, state = scan_with(algorithm, [*(x[:, cut:] for x in tokens), state])
    torch.testing.assert_close(torch.cat([first, second], 1), reads, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state, expected, atol=1e-12, rtol=1e-12)


@fast
@given(problem=problems(), padding=st.integers(1, 40))
def test_padding_leaves_the_state_as_it_is(
    algorithm: Algorithm, problem: Problem, padding: int
) -> None:
    *tokens, state = problem.inputs()
    _, expected = scan_with(algorithm, [*tokens, state])
    # Finite numbers for queries, keys and values, zeros for gates.
    fill = (2.0, 3.0, 4.0, 0.0, 0.0, 0.0)
    padded = [
        F.pad(x, (0, 0, 0, 0, 0, padding), value=y) for x, y in zip(tokens, fill, strict=True)
    ]
    reads, found = scan_with(algorithm, [*padded, state])
    assert torch.equal(found, expected)
    at_rest = 2 * expected.sum(-1)[:, None].expand(-1, padding, -1, -1)
    torch.testing.assert_close(reads[:, problem.length :], at_rest, atol=1e-12, rtol=1e-12)


@fast
@given(problem=problems(length=70), first=st.integers(0, 69))
def test_reads_know_only_earlier_tokens(algorithm: Algorithm, problem: Problem, first: int) -> None:
    *tokens, state = problem.inputs()
    reads, _ = scan_with(algorithm, [*tokens, state])
    *others, _ = replace(problem, seed=problem.seed + 1).inputs()
    pairs = zip(tokens[1:], others[1:], strict=True)
    changed = [torch.cat([x[:, :first], y[:, first:]], 1) for x, y in pairs]
    found, _ = scan_with(algorithm, [tokens[0], *changed, state])
    torch.testing.assert_close(found[:, : first + 1], reads[:, : first + 1], atol=1e-12, rtol=0)


@cache
def long(constant: bool, coupled: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Float32 inputs of 3,000 tokens with gates from 1e-7 to 1 − 1e-7, and what the oracle makes of them in float64."""
    *tokens, state = Problem(1, 3000, 1, 6, 24).inputs()
    generator = torch.Generator().manual_seed(1)

    def gates() -> Tensor:
        draw = torch.rand(
            1, 1 if constant else 3000, 1, 24, generator=generator, dtype=torch.float64
        )
        low = 10 ** (-7 * draw)
        return torch.where(torch.arange(24) % 2 == 0, low, 1 - low).expand(1, 3000, 1, 24)

    erase = gates()
    keep, write = (1 - erase, erase) if coupled else (gates(), gates())
    inputs = [x.float() for x in (*tokens[:3], keep.log(), erase, write, state)]
    return inputs, *naive.scan(*(x.double() for x in inputs))


@fast
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
def test_float32_stays_close_to_the_oracle(
    algorithm: Algorithm, constant: bool, coupled: bool
) -> None:
    inputs, reads, state = long(constant, coupled)
    found, after = scan_with(algorithm, inputs)
    assert found.dtype == after.dtype == torch.float32
    assert (found - reads).abs().max() < 1e-5
    assert (after - state).abs().max() < 1e-5


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[StorageWeakRef, int] = {}
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = [x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._sizes |= {StorageWeakRef(storage): storage.nbytes() for storage in storages}
        if sum(self._sizes.values()) > self.bytes:
            self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
            self.bytes = max(self.bytes, sum(self._sizes.values()))
        return result


@fast
@pytest.mark.parametrize("own", [True, False])
def test_memory_at_inference_is_that_of_some_inputs(algorithm: Algorithm, own: bool) -> None:
    """A state for every token would be 32 such tensors, D of all chunks at once another 32."""
    inputs = Problem(1, 8192, 1, 32, 32, own=(own,) * 3).inputs()
    with torch.no_grad(), Peak() as peak:
        scan_with(algorithm, inputs)
    assert peak.bytes < 16 * inputs[0].nbytes


@fast
def test_memory_in_training(algorithm: Algorithm) -> None:
    inputs = [x.requires_grad_() for x in Problem(1, 8192, 1, 32, 32).inputs()]
    with Peak() as peak:
        scan_with(algorithm, inputs)[0].sum().backward()
    assert peak.bytes < 32 * inputs[0].nbytes


@fast
def test_threads_do_not_meet(algorithm: Algorithm) -> None:
    work = [Problem(2, 70, 2, 4, 5, seed=seed).inputs() for seed in range(8)]
    expected = [differentiated(by(algorithm), inputs) for inputs in work]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda inputs: differentiated(by(algorithm), inputs), work))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@fast
def test_backward_changes_nothing(algorithm: Algorithm) -> None:
    inputs = [x.requires_grad_() for x in Problem(1, 40, 1, 2, 3).inputs()]
    before = [x.detach().clone() for x in inputs]
    reads, _ = scan_with(algorithm, inputs)
    once, twice = (torch.autograd.grad(reads.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, twice))
    assert all(map(torch.equal, inputs, before))


@fast
def test_gradients_of_gradients(algorithm: Algorithm) -> None:
    inputs = Problem(1, 2, 1, 2, 2).inputs()
    inputs = [x.requires_grad_(name != "erase") for x, name in zip(inputs, NAMES, strict=True)]
    assert torch.autograd.gradgradcheck(lambda *x: scan_with(algorithm, x), inputs)


@fast
def test_strides_do_not_matter(algorithm: Algorithm) -> None:
    inputs = Problem(2, 40, 3, 4, 5).inputs()
    strided = [x.mT.contiguous().mT for x in inputs]
    expected = differentiated(by(algorithm), inputs)
    assert_same(differentiated(by(algorithm), strided), expected)


def test_scan_decides_and_checks() -> None:
    inputs = Problem(2, 5, 1, 3, 4).inputs()
    reads, state = scan(*inputs)
    assert_same(
        {"reads": reads, "state": state}, dict(zip(("reads", "state"), oracle(inputs), strict=True))
    )
    nothing, same = scan(None, *inputs[1:])
    assert nothing.shape == (2, 0, 1, 4)
    assert torch.equal(same, state)
    with pytest.raises(TypeError, match="bfloat16"):
        scan(*inputs[:-1], inputs[-1].bfloat16())
    with pytest.raises(ValueError, match=r"erase has the shape .* must be \(2, 5, 1, 1 or 4\)"):
        scan(*inputs[:4], inputs[4][..., :2], *inputs[5:])


def test_numba_can_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "memwrite_delta.kernel", raising=False)
    monkeypatch.delattr(memwrite_delta, "kernel", raising=False)
    assert _compiled.__wrapped__() is None


@without_numba
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = _compiled()

    def njit(*_: Any, cache: bool = False, **__: Any) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    monkeypatch.setattr(kernel.numba, "njit", njit)
    assert kernel._compiled("int64")(print) is print


def test_importing_leaves_numba_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name == "numba" or name.startswith("memwrite_delta"):
            monkeypatch.delitem(sys.modules, name)
    importlib.import_module("memwrite_delta")
    assert "numba" not in sys.modules
