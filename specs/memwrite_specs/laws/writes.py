"""Laws of WRITE and READ as functions: nothing in, nothing out, but what the signature says."""

from __future__ import annotations

import gc
import random
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from memwrite.inference import read as reading
from memwrite.protocols import BackboneOutput
from memwrite.state import MemoryState, Tokens
from memwrite_specs.case import Case, row
from memwrite_specs.law import law
from memwrite_specs.object_digest import object_digest


@law()
def context_erasure(case: Case) -> None:
    """What is done to the context's tensors after a write changes nothing in the state."""
    writer = case.memory.writer
    tokens = case.context(rows=2)
    with torch.no_grad():
        state = writer.write(writer.init(2), tokens).state
        before = state.clone()
        tokens.ids.fill_(7)
        tokens.mask.fill_(False)
    case.same("the state after its context was overwritten", state, before)


@law()
def isolation(case: Case) -> None:
    """A write changes nothing that it is given, and no state that is there: not the context, not the state it goes on
    from, not another memory's."""
    first, second = case.context("first", 2), case.context("second", 2)
    writer = case.memory.writer
    given = second.clone()
    with torch.no_grad():
        writer.write(writer.init(2), given)
    case.require(
        torch.equal(given.ids, second.ids) and torch.equal(given.mask, second.mask),
        "the context's tensors were changed",
    )
    empty = writer.init(2)
    states = {
        "an empty state": empty,
        "the state of a write": case.write(first),
        "another memory's": case.write(second),
    }
    before = {what: state.clone() for what, state in states.items()}
    case.write(second, states["the state of a write"])
    case.write(first, empty)
    for what, state in states.items():
        case.same(f"{what} after a later write", state, before[what])
    case.same("a new empty state", writer.init(2), before["an empty state"])


@law()
def determinism(case: Case) -> None:
    """The same context gives the same state and logits again, whatever the random seeds and the writes before."""
    context = case.context(rows=2)
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = case.write(context)
            found.append((state, case.read(state)))
        case.write(case.tokens([[seed + 70, 71], [72]]))
    case.same("the state of a second write", found[1][0], found[0][0])
    case.same("the logits of a second read", found[1][1], found[0][1])
    state, query = found[0][0], case.question(found[0][0].batch_size or 2)
    conditioning = case.memory.reader.condition(state)
    with torch.no_grad():
        first, again = (reading.read(case.memory.backbone, conditioning, query) for _ in range(2))
    case.same("the logits of one conditioning, read again", again.logits, first.logits)


def _remembers_nothing(case: Case) -> str | None:
    spec = case.memory.writer.spec
    return "its state has no room for anything" if spec.bounded and not spec.floats else None


@law(examples=1, binds=_remembers_nothing, pairing=True)
def sensitivity(case: Case) -> None:
    """It does write: other contexts make other states, and the state makes a difference to what is read."""
    contexts = [Tokens.from_rows([case.secret(8)]) for _ in range(3)]
    contexts = [case.tokens(context.ids.tolist()) for context in contexts]
    states = [case.write(context) for context in contexts]
    empty: MemoryState = case.memory.writer.init(1)
    case.require(
        all(case.differ(state, empty) for state in states),
        "a context leaves the empty state as it was",
    )
    case.require(
        case.differ(states[0], states[1]) and case.differ(states[1], states[2]),
        "different contexts leave the same state",
    )
    logits = [case.read(state) for state in states]
    gap = min(float((a - b).abs().max()) for a, b in pairwise(logits))
    case.require(
        gap > 1e-6, f"what is read does not depend on the state: logits differ by {gap:.2g}"
    )


@law(examples=6, leakage=True)
def purity(case: Case) -> None:
    """Writers and readers remember nothing between calls: no attribute, buffer, closure or global of theirs depends on
    what was written or read, or how often."""
    memory = case.memory
    lists = case.lists(rows=2)
    backbone = memory.backbone
    digests = []
    # Of the same shape, so that what is kept for a shape is allowed. The first is there to fill it.
    for turn in range(3):
        tokens = case.tokens([[(i * 7 + 31 * turn) % 256 for i in ids] for ids in lists])
        for training in (True, False):
            memory.train(training)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                state = memory.write(tokens).state
                memory.read(state, tokens)
        digests.append(
            object_digest(memory.writer, memory.reader, skip=(backbone, backbone.model, memory))
        )
    before, after = digests[1], digests[2]
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    case.require(not changed, f"a write or read changed {', '.join(sorted(changed)[:3])}")


@law(examples=4)
def backbone_untouched(case: Case) -> None:
    """WRITE and READ leave the language model and the process as they were: weights, gradients, buffers, modes, hooks,
    attributes, random states, settings."""
    context = case.context(rows=2)
    for training in (False, True):
        memory = case.pair.memory().train(training)
        memory.model.requires_grad_(training)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
            torch.manual_seed(case.seed + 1)  # not what a write would set it to
            before = _settings(memory.backbone, dropout=training)
            state = memory.write(context).state
            memory.read(state, case.question(2))
            after = _settings(memory.backbone, dropout=training)
        changed = sorted(
            path for path in {**before, **after} if before.get(path) != after.get(path)
        )
        case.require(not changed, f"a write or read changed {', '.join(changed[:3])}")


def _settings(backbone: Any, dropout: bool) -> dict[str, str]:
    """Describe all of the language model and the process that a memory could change; dropout draws random numbers."""
    drawn = "" if dropout else str(hash(torch.get_rng_state().numpy().tobytes()))
    ours = {
        "torch's random state": drawn,
        "Python's random state": str(hash(random.getstate())),
        "numpy's random state": str(np.random.get_state()),
        "grad mode": str(torch.is_grad_enabled()),
        "default dtype": str(torch.get_default_dtype()),
        "threads": str(torch.get_num_threads()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "anomaly mode": str(torch.is_anomaly_enabled()),
        "numpy's handling of errors": str(np.geterr()),
        "the garbage collector": str(gc.isenabled()),
        "the model's config": str(sorted(map(str, vars(backbone.model.config).items()))),
        "the backbone's attributes": str(sorted(vars(backbone))),
        "the tokenizer's attributes": str(sorted(vars(backbone.tokenizer))),
    }
    return {**object_digest(backbone.model, deep=False), **ours}


@law(examples=4)
def no_graph(case: Case) -> None:
    """Where grad mode is off no graph is kept, and under inference mode it all works and gives the same."""
    context = case.context(rows=2)
    state = case.write(context)
    for name, tensor in state.tensors.items():
        case.require(
            not tensor.requires_grad and tensor.grad_fn is None,
            f"'{name}' holds a graph in no_grad",
        )
    with torch.inference_mode():
        inferred = case.memory.write(context).state
        logits = case.memory.read(inferred, case.question(2)).logits
    case.same("the state written in inference mode", inferred, state)
    case.same("the logits read in inference mode", logits, case.read(state, case.question(2)))
    case.memory.write(context)  # in evaluation mode, with grad mode on
    case.require(
        all(w.grad is None for w in case.memory.parameters()), "a write left gradients on weights"
    )


@law(examples=4)
def interleaving(case: Case) -> None:
    """Two writes at the same time do not meet: one that is begun and ended within another changes nothing in it."""
    ours = case.tokens(case.lists("ours", 1))
    theirs = case.tokens([case.draw("theirs", row)])
    expected = case.write(ours), case.write(theirs)
    backbone: Any = case.memory.backbone
    inner: list[MemoryState] = []
    busy = False

    def meanwhile(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> BackboneOutput:
            nonlocal busy
            found: BackboneOutput = method(*args, **kwargs)
            if not busy:
                busy = True
                with torch.no_grad():
                    inner.append(case.memory.write(theirs).state)
                busy = False
            return found

        return call

    backbone.embed, backbone.forward = meanwhile(backbone.embed), meanwhile(backbone.forward)
    try:
        outer = case.write(ours)
    finally:
        del backbone.embed, backbone.forward
    case.same("a state during whose write another was written", outer, expected[0])
    for state in inner:
        case.same("a state written during another write", state, expected[1])
