"""Laws of what a state is: its size, its tensors, its numbers, its file."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path

import torch
from hypothesis import strategies as st

from memwrite.checkpoints.state_file import load_state
from memwrite.errors import DivergenceError
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_specs.case import IDS, LONGEST, Case
from memwrite_specs.law import law

MANY = 400


def grows(case: Case) -> str | None:
    """Say why a law of states whose size is known beforehand does not bind: the state grows."""
    return (
        None
        if case.memory.writer.spec.bounded
        else "it declares a state that grows with the context"
    )


@law(pairing=True)
def contract(case: Case) -> None:
    """A state is what the plugin declares: the declared kind, tensors of the declared shapes and dtypes, nothing else."""
    memory = case.memory
    spec = memory.writer.spec
    case.require(
        spec.kind == case.pair.writer.emits,
        f"the writer's spec is of kind '{spec.kind}', but the plugin emits '{case.pair.writer.emits}'",
    )
    case.require(
        memory.reader.accepts == case.pair.reader.accepts,
        f"the reader accepts {set(memory.reader.accepts)}, but its plugin {set(case.pair.reader.accepts)}",
    )
    context = case.context()
    for what, state in (("init", memory.writer.init(2)), ("write", case.write(context))):
        case.require(type(state) is MemoryState, f"{what} gives a {type(state).__name__}")
        case.require(
            vars(state).keys() == {"spec", "tensors"},
            f"the state of {what} carries more than tensors: {sorted(vars(state))}",
        )
        case.require(
            state.spec == spec or not spec.bounded, f"{what} gives {state.spec}, declared is {spec}"
        )
        plain = {
            "the spec": (state.spec, StateSpec, {field.name for field in fields(StateSpec)}),
            "the spec's kind": (state.spec.kind, str, set()),
            "the spec's shapes": (state.spec.shapes, dict, set()),
            "the mapping of tensors": (state.tensors, dict, set()),
            **{f"tensor '{n}'": (t, torch.Tensor, set()) for n, t in state.tensors.items()},
        }
        for part, (thing, kind, names) in plain.items():
            extra = sorted(getattr(thing, "__dict__", {}).keys() - names)
            case.require(not extra, f"{part} of {what} carries the attributes {extra}")
            found = type(thing).__name__
            case.require(type(thing) is kind, f"{part} of {what} is a {found}, no {kind.__name__}")
        grads = [name for name, t in state.tensors.items() if t.is_leaf and t.grad is not None]
        case.require(not grads, f"tensors {grads} of {what} carry gradients")
    empty = memory.writer.init(3)
    for row in range(1, 3):
        index = torch.tensor([row])
        case.same(f"row {row} of an empty state", empty.rows(index), empty.rows(torch.tensor([0])))


@law(binds=grows)
def capacity(case: Case) -> None:
    """The size of a state never depends on the context: not its shapes, not the storage behind them, not its file."""
    short, long = case.lists(rows=1), case.draw("times", st.integers(2, 6))
    states = [case.write(case.tokens(short)), case.write(case.tokens([short[0] * long]))]
    lengths = f"{len(short[0])} tokens", f"{len(short[0]) * long} tokens"
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for state in states:
            path = Path(folder) / "state.safetensors"
            case.memory.save(state, path)
            sizes.append((state.floats, state.nbytes, path.stat().st_size))
    for what, first, second in zip(("numbers", "bytes", "bytes of the file"), *sizes, strict=True):
        case.require(
            first == second, f"{what}: {first} for {lengths[0]}, {second} for {lengths[1]}"
        )
    for state, tokens in zip(states, lengths, strict=True):
        declared = case.memory.writer.spec.nbytes
        case.require(
            state.nbytes == declared, f"{state.nbytes} bytes for {tokens}, declared are {declared}"
        )
        storages = {t.untyped_storage().data_ptr(): t for t in state.tensors.values()}
        behind = sum(t.untyped_storage().nbytes() for t in storages.values())
        case.require(
            behind <= declared, f"the storage behind {declared} bytes has {behind}, for {tokens}"
        )


@law(examples=4)
def precision(case: Case) -> None:
    """States are float32 around a language model of half precision, and float64 around one of float64."""
    context = case.lists(rows=2)
    for dtype, expected in (("bfloat16", torch.float32), ("float64", torch.float64)):
        memory = case.pair.memory(dtype)
        state = memory.write(Tokens.from_rows(context)).state
        for name, tensor in state.tensors.items():
            exact = not tensor.is_floating_point() or not memory.writer.spec.bounded
            # Keys and values are the language model's own numbers.
            exact = exact or name in ("keys", "values")
            case.require(
                exact or tensor.dtype == expected,
                f"tensor '{name}' is {tensor.dtype} around a {dtype} model, not {expected}",
            )
        logits = memory.read(state, case.question(2)).logits
        case.require(bool(logits.isfinite().all()), f"logits around a {dtype} model are not finite")


@law(examples=6)
def finite(case: Case) -> None:
    """For any tokens, and any state that it made itself, a writer gives finite numbers or raises DivergenceError."""
    memory = case.memory
    token = case.draw("token", st.integers(0, IDS - 1))
    other = case.draw("other", st.integers(0, IDS - 1))
    room = memory.backbone.info.positions - memory.writer.reserved_positions - LONGEST
    writes = 5 if memory.writer.spec.bounded else 1
    longest = case.draw("length", st.sampled_from([1, 16, min(MANY, max(room, 1))]))

    def attempt(length: int) -> None:
        tokens = case.tokens([[token if i % 2 else other for i in range(length)]])
        state = memory.writer.init(1)
        for turn in range(writes):
            try:
                with torch.no_grad():
                    state = memory.writer.write(state, tokens).state
            except DivergenceError:
                return
            for name, tensor in state.tensors.items():
                # A bias of -inf hides a slot from a head.
                numbers = tensor[~tensor.isneginf()] if name == "bias" else tensor
                case.require(
                    bool(numbers.isfinite().all()),
                    f"'{name}' is not finite after write {turn + 1} of {length} tokens",
                )
        logits = case.read(state)
        case.require(bool(logits.isfinite().all()), "the logits read from it are not finite")

    case.within_positions(attempt, longest)


@law(examples=6, pairing=True)
def round_trip(case: Case) -> None:
    """A state comes back from its file bit for bit, with its spec; moved, stacked and taken apart it stays the same."""
    state = case.write(case.context(rows=2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        case.memory.save(state, path)
        loaded = load_state(path)
    case.require(loaded.state.spec == state.spec, f"saved {state.spec}, loaded {loaded.state.spec}")
    for name, tensor in state.tensors.items():
        case.require(
            torch.equal(loaded.state[name], tensor), f"tensor '{name}' changed in its file"
        )
    case.same("logits read from the file", case.read(loaded.state), case.read(state))
    if state.batch_size is not None:
        parts = [state.rows(torch.tensor([row])) for row in range(2)]
        case.same("a state stacked from its rows", MemoryState.stack(parts), state)
        case.same("logits read from its second row", case.read(parts[1]), case.read(state)[1:])


@law(examples=4)
def weights(case: Case) -> None:
    """All that was learned is in the state dict: another memory of the same config with these weights writes and reads alike."""
    memory, other = case.memory, case.pair.memory(seed=1)
    for part in ("writer", "reader"):
        getattr(other, part).load_state_dict(getattr(memory, part).state_dict())
    context = case.context(rows=2)
    state = case.write(context)
    with torch.no_grad():
        written = other.write(context).state
        logits = other.read(state, case.question(2)).logits
    case.same("the state that a memory with the same weights wrote", written, state)
    case.same("the logits that it read", logits, case.read(state, case.question(2)))
