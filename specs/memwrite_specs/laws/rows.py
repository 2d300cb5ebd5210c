"""Laws of batches: each row is on its own, and padding is nothing."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from memwrite.state import Tokens
from memwrite_specs.case import IDS, Case, row
from memwrite_specs.law import law

longer = st.lists(st.integers(0, IDS - 1), min_size=1, max_size=30)


@law()
def batch_invariance(case: Case) -> None:
    """A row's state and logits are those of its context alone, whatever stands in the other rows."""
    few, many = st.lists(row, min_size=2, max_size=4), st.lists(longer, min_size=6, max_size=8)
    first = case.draw("first", st.one_of(few, many))
    second = case.draw("second", st.lists(row, min_size=len(first), max_size=len(first)))
    both = case.write(case.tokens(first))
    states = [both, case.write(case.tokens(second), both)]
    for i in range(len(first)):
        alone = case.write(case.tokens([first[i]]))
        for whole, single in zip(
            states, (alone, case.write(case.tokens([second[i]]), alone)), strict=True
        ):
            if whole.batch_size is None:
                return
            if case.memory.writer.spec.bounded:
                case.same(f"the state of row {i}", whole.rows(torch.tensor([i])), single)
            case.same(f"the logits of row {i}", case.read(whole)[i : i + 1], case.read(single))


@law()
def padding_invariance(case: Case) -> None:
    """Padding changes nothing: left, right or among the tokens, whatever ids stand in it, beside a longer row or not, of
    context and query."""
    ids = case.draw("context", row)
    holes = case.draw(
        "padding before each token",
        st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids)),
    )
    after = case.draw("padding at the end", st.integers(0, 3))
    filler = case.draw("id of padding", st.integers(0, IDS - 1))
    longer = case.draw("another row is longer by", st.integers(0, 3))
    wide: list[int] = []
    real: list[bool] = []
    for hole, token in zip(holes, ids, strict=True):
        wide += [filler] * hole + [token]
        real += [False] * hole + [True]
    width = max(len(wide) + after, len(ids) + longer)
    other = [7] * (len(ids) + longer)
    loose = Tokens(
        torch.tensor([_extended(wide, width, filler), _extended(other, width, filler)]),
        torch.tensor([_extended(real, width, False), _extended([True] * len(other), width, False)]),
    )
    plain = case.tokens([ids])
    if plain.segments is not None:
        place = loose.mask.cumsum(1) - 1
        loose = Tokens(loose.ids, loose.mask, place.div(3, rounding_mode="floor").clamp(min=0))
    state, padded = case.write(plain), case.write(loose)
    first = torch.tensor([0])
    if padded.batch_size is not None and case.memory.writer.spec.bounded:
        case.same("the state of a padded context", padded.rows(first), state)
    asked = case.read(padded, Tokens(loose.ids, loose.mask))[0][loose.mask[0]]
    case.same(
        "the logits of a padded query and context",
        asked,
        case.read(state, Tokens.from_rows([ids]))[0],
    )


def _extended(items: list[Any], width: int, filler: Any) -> list[Any]:
    return items + [filler] * (width - len(items))


@law(examples=6)
def losses(case: Case) -> None:
    """A loss is a finite number for each row, which depends on that row alone; traces are detached, and their size does
    not depend on the context."""
    lists = case.lists()
    tokens = case.tokens(lists)
    memory = case.memory
    with torch.no_grad():
        written = memory.write(tokens)
        longer = memory.write(case.tokens([ids * 2 for ids in lists]))
        alone = [memory.write(case.tokens([ids])).losses for ids in lists]
    for name, loss in written.losses.items():
        case.require(
            loss.shape == (len(lists),), f"loss '{name}' has the shape {tuple(loss.shape)}"
        )
        case.require(bool(loss.isfinite().all()), f"loss '{name}' is not finite")
        case.same(f"loss '{name}'", loss, torch.cat([found[name] for found in alone]))
    memory.train()
    trained = memory.write(tokens).trace
    memory.eval()
    for name, trace in trained.items():
        case.require(not trace.requires_grad, f"trace '{name}' holds a graph")
        sizes = tuple(written.trace[name].shape), tuple(longer.trace[name].shape)
        case.require(
            sizes[0] == sizes[1],
            f"trace '{name}' has the shape {sizes[0]}, or of more tokens {sizes[1]}",
        )


@law(examples=4, pairing=True)
def generation(case: Case) -> None:
    """Text is generated as it is read: greedy continuations are the first choices of READ, token by token."""
    state = case.write(case.context(rows=2))
    ids = case.draw("query", row)
    found = case.memory.generate(state, Tokens.from_rows([ids] * 2), max_new_tokens=4)
    end = case.memory.backbone.info.eos_id
    for i in range(2):
        single = state if state.batch_size is None else state.rows(torch.tensor([i]))
        text = list(ids)
        for new in found[i].tolist():
            if new == end:
                break
            scores = case.read(single, Tokens.from_rows([text]))[0, -1]
            gap = float(scores.max() - scores[new])
            case.require(
                gap <= case.tolerance * max(1.0, float(scores.abs().max())),
                f"token {len(text) - len(ids)} generated from row {i} is {new}, read is {int(scores.argmax())}",
            )
            text.append(new)


@law()
def empty_write(case: Case) -> None:
    """A row without real tokens keeps its state, bit for bit, beside rows that are written."""
    first, second = case.lists("first"), case.draw("second", row)
    state = case.write(case.tokens(first))
    blank = case.draw("empty row", st.integers(0, len(first) - 1))
    rows = [[] if i == blank else second for i in range(len(first))]
    for what, tokens in (
        ("beside written rows", case.tokens(rows)),
        ("alone", case.tokens([[]] * len(first))),
    ):
        after = case.write(tokens, state)
        if after.batch_size is None:
            return
        if not case.memory.writer.spec.bounded:
            case.same(
                f"logits of an empty row {what}", case.read(after)[blank], case.read(state)[blank]
            )
            continue
        for name, tensor in state.tensors.items():
            case.require(
                torch.equal(after[name][blank], tensor[blank]),
                f"'{name}' of an empty row {what} changed",
            )


@law(pairing=True)
def queries_apart(case: Case) -> None:
    """Many queries of one state are answered as each of them alone, and a READ changes no state."""
    state = case.write(case.context(rows=2))
    before = state.clone()
    lists = case.draw("queries", st.lists(row, min_size=4, max_size=4))
    flat = Tokens.from_rows(lists)
    many = case.read(state, flat.map(lambda tensor: tensor.reshape(2, 2, -1)))
    for i, ids in enumerate(lists):
        single = state if state.batch_size is None else state.rows(torch.tensor([i // 2]))
        alone = case.read(single, Tokens.from_rows([ids]))[0]
        case.same(f"the logits of query {i}", many[i // 2, i % 2, : len(ids)], alone)
    for name, tensor in before.tensors.items():
        case.require(torch.equal(state[name], tensor), f"READ changed '{name}' of its state")
