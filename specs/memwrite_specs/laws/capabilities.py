"""Laws bought by capability: whoever declares one is held to its law."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from memwrite.inference import online
from memwrite.protocols import (
    DeletingWriter,
    LayerInput,
    LayerReader,
    MergingWriter,
    OnlineWriter,
)
from memwrite.state import Tokens
from memwrite_specs.case import IDS, Case, row
from memwrite_specs.law import law

STEP = 1e-6


def needs(capability: str) -> Callable[[Case], str | None]:
    """Make the `binds` of a law that is for those who declare the capability."""

    def binds(case: Case) -> str | None:
        declared = getattr(case.pair.writer.capabilities, capability.replace("-", "_"))
        return None if declared else f"capability '{capability}' is not declared"

    return binds


@law(examples=1, binds=needs("streaming"))
def streaming(case: Case) -> None:
    """A context may come in pieces, each written onto the state of those before, and no piece wipes out an earlier one.

    Needs the capability "streaming".
    """
    pieces = [case.tokens([case.secret(3)]) for _ in range(4)]
    others = [case.tokens([case.secret(3)]), *pieces[1:]]
    state = other = case.memory.writer.init(1)
    for turn, (piece, another) in enumerate(zip(pieces, others, strict=True)):
        state, other = case.write(piece, state), case.write(another, other)
        case.require(
            case.differ(state, other), f"after {turn} further pieces nothing is left of the first"
        )


@law(binds=needs("chunk-exact"))
def chunk_exact(case: Case) -> None:
    """Cut anywhere, a context leaves the state that it leaves as a whole.

    For an online writer: its `scan` does, on given hidden states, and the reads are the same. Needs the capability
    "chunk-exact".
    """
    writer = case.memory.writer
    if isinstance(writer, OnlineWriter):
        _scan_in_pieces(case, writer)
        return
    ids = case.draw("context", st.lists(st.integers(0, IDS - 1), min_size=2, max_size=9))
    cut = case.draw("cut", st.integers(1, len(ids) - 1))
    pieces = case.write(Tokens.from_rows([ids[cut:]]), case.write(Tokens.from_rows([ids[:cut]])))
    case.same("the state of two pieces", pieces, case.write(Tokens.from_rows([ids])))


def _scan_in_pieces(case: Case, writer: OnlineWriter) -> None:
    length = case.draw("length", st.integers(2, 12))
    cut = case.draw("cut", st.integers(1, length - 1))
    random = torch.Generator().manual_seed(case.draw("seed of hidden states", st.integers(0, 99)))
    info, reader = case.memory.backbone.info, case.memory.reader
    start = case.write(Tokens.from_rows([case.draw("before", row)]))
    for layer in writer.spec.layers:
        hidden = torch.randn(1, length, info.hidden_size, generator=random, dtype=info.dtype)
        queries = reader.queries(layer, hidden) if isinstance(reader, LayerReader) else None
        before = start.layer(layer)

        def part(
            state: Any,
            a: int,
            b: int,
            layer: int = layer,
            hidden: Tensor = hidden,
            queries: Any = queries,
        ) -> Any:
            asked = None if queries is None else queries[:, a:b]
            step = LayerInput(layer, hidden[:, a:b], queries=asked)
            return writer.scan(step, state, write=True)

        with torch.no_grad():
            whole = part(before, 0, length)
            first = part(before, 0, cut)
            second = part(first.state, cut, length)
        for name, tensor in whole.state.items():
            case.same(f"'{name}' of layer {layer} after two pieces", second.state[name], tensor)
        if whole.reads is not None:
            reads = torch.cat([first.reads, second.reads], 1)
            case.same(f"the reads of layer {layer} in two pieces", reads, whole.reads)


@law(examples=6, binds=needs("online"), pairing=True)
def online_is_offline(case: Case) -> None:
    """Text that comes in pieces, its keys and values kept, is read and written as in one piece; with writing off the
    state stays as it is.

    Needs the capability "online".
    """
    memory = case.memory
    writer: Any = memory.writer
    backbone = memory.backbone
    case.require(isinstance(writer, OnlineWriter), "it has no `scan` and no `granularity`")
    reader = memory.reader if isinstance(memory.reader, LayerReader) else None
    ids = case.draw("text", st.lists(st.integers(0, IDS - 1), min_size=4, max_size=9))
    cut = case.draw("cut", st.integers(1, len(ids) - 1))
    text = case.tokens([ids])
    start = case.write(case.tokens([case.draw("before", row)]))
    with torch.no_grad():
        whole = online.run(backbone, writer, reader, text, start)
        first = online.run(backbone, writer, reader, text.columns(0, cut), start, use_cache=True)
        second = online.run(
            backbone, writer, reader, text.columns(cut, len(ids)), first.written.state,
            past=first.run.key_values, use_cache=True,
        )  # fmt: skip
        resting = online.run(backbone, writer, reader, text, start, write=False).written.state
    case.same("the state that was read with writing off", resting, start)
    # Messages and sentences come whole, and may be read all of them before any is written.
    if memory.granularity != "token":
        return
    case.same("the state of a text in two pieces", second.written.state, whole.written.state)
    hidden = torch.cat([first.run.hidden, second.run.hidden], 1)
    case.same("the hidden states of a text in two pieces", hidden, whole.run.hidden)


def _differentiable(case: Case) -> str | None:
    if not case.pair.build.exact:
        return f"gradients are compared on exact backbones, which {case.pair.backbone} is not"
    return needs("differentiable")(case)


@law(examples=1, binds=_differentiable)
def differentiable(case: Case) -> None:
    """Gradients through WRITE and READ are those of finite differences, in float64: of the weights of writer, reader and
    language model, and of the state written onto.

    Needs the capability "differentiable".
    """
    memory = case.pair.memory().train()
    memory.model.requires_grad_(True)
    context, query = case.tokens([case.secret(5)]), Tokens.from_rows([case.secret(3)])
    start = case.write(case.tokens([case.secret(4)])).map(
        lambda t: t.clone().requires_grad_(t.is_floating_point())
    )
    random = torch.Generator().manual_seed(case.seed)
    weights: Tensor | None = None

    def outcome() -> Tensor:
        nonlocal weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            written = memory.write(context, start)
            logits = memory.read(written.state, query).logits
        if weights is None:
            weights = torch.randn(logits.shape, generator=random, dtype=logits.dtype)
        losses = torch.stack(
            [loss.sum() for loss in written.losses.values()] or [logits.new_zeros(())]
        )
        return (logits * weights).sum() + losses.sum()

    groups = {
        "the writer": _floats(memory.writer.parameters()),
        "the reader": _floats(memory.reader.parameters()),
        "the language model": _floats(memory.model.parameters()),
        "the state": _floats(start.tensors.values()),
    }
    for name, tensors in groups.items():
        if not tensors:
            continue
        directions = [torch.randn(t.shape, generator=random, dtype=t.dtype) for t in tensors]
        grads = torch.autograd.grad(outcome(), tensors, allow_unused=True)
        claimed = sum(
            float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None
        )
        measured = _slope(outcome, tensors, directions)
        gap, scale = abs(claimed - measured), max(1.0, abs(measured))
        case.require(
            gap < 1e-4 * scale,
            f"along a direction of {name} the gradient is {claimed:.6g}, but finite differences give {measured:.6g}",
        )


def _floats(tensors: Any) -> list[Tensor]:
    return [t for t in tensors if t.is_floating_point() and t.requires_grad]


@torch.no_grad()
def _slope(outcome: Callable[[], Tensor], tensors: list[Tensor], directions: list[Tensor]) -> float:
    """Return the slope of `outcome` along the directions, by central differences."""

    def at(sign: float) -> float:
        for tensor, direction in zip(tensors, directions, strict=True):
            tensor.add_(direction, alpha=sign * STEP)
        value = float(outcome())
        for tensor, direction in zip(tensors, directions, strict=True):
            tensor.sub_(direction, alpha=sign * STEP)
        return value

    return (at(1) - at(-1)) / (2 * STEP)


@law(binds=needs("order-free"))
def order_free(case: Case) -> None:
    """Contexts written one after the other leave the same state in any order.

    Needs the capability "order-free".
    """
    contexts = [Tokens.from_rows([ids]) for ids in case.lists("contexts", 3)]

    def written(order: Iterator[Tokens]) -> Any:
        state = case.memory.writer.init(1)
        for context in order:
            state = case.write(context, state)
        return state

    case.same(
        "the state of contexts in reverse", written(reversed(contexts)), written(iter(contexts))
    )


@law(binds=needs("mergeable"))
def mergeable(case: Case) -> None:
    """Two states can be made one: that of a memory which has read both contexts. Merging with an empty state changes
    nothing, and neither state is touched.

    Needs the capability "mergeable".
    """
    writer: Any = case.memory.writer
    case.require(isinstance(writer, MergingWriter), "it has no `merge`")
    first, second = (Tokens.from_rows([ids]) for ids in case.lists("contexts", 2))
    states = case.write(first), case.write(second)
    before = tuple(state.clone() for state in states)
    with torch.no_grad():
        merged = writer.merge(*states)
        unchanged = writer.merge(states[0], writer.init(1))
    case.same("the merged state", merged, case.write(second, states[0]))
    case.same("a state merged with an empty one", unchanged, states[0])
    for state, old in zip(states, before, strict=True):
        case.same("a state after it was merged", state, old)


@law(binds=needs("deletion"))
def deletion(case: Case) -> None:
    """A context that was written by itself can be taken out again, whenever it came: what is left is the state of a memory
    that never read it. Nothing else is taken with it, and the state it is taken from is not touched.

    Needs the capability "deletion".
    """
    memory = case.memory
    case.require(isinstance(memory.writer, DeletingWriter), "it has no `forget`")
    contexts = [case.tokens([ids, other]) for ids, other in zip(
        case.lists("contexts", 3), case.lists("contexts of the second row", 3), strict=True
    )]  # fmt: skip
    gone = case.draw("the one that is forgotten", st.integers(0, 2))
    state = left = memory.writer.init(2)
    for number, context in enumerate(contexts):
        state = case.write(context, state)
        left = left if number == gone else case.write(context, left)
    before = state.clone()
    found = memory.forget(contexts[gone], state).state
    case.same("the state after it forgot a context", found, left)
    case.same("the state that it was taken from", state, before)
    for number, context in enumerate(contexts):
        found = found if number == gone else memory.forget(context, found).state
    case.same("the state after it forgot everything", found, memory.writer.init(2))
