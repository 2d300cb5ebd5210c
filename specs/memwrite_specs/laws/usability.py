"""The law of what people do with a memory: build, convert, save, open and train it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memwrite.memory import Memory
from memwrite.state import Tokens
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss
from memwrite_specs.case import QUESTION, Case
from memwrite_specs.law import law
from memwrite_specs.pair import shake

#: What a module may define although `nn.Module` does.
ALLOWED = {"forward", "extra_repr"}


@law(examples=1, pairing=True)
def usable(case: Case) -> None:
    """A memory can be used as people use it: built from its config, moved to a device, saved as a run folder, opened from
    there in the same or another dtype, and trained.

    Everything goes through `Memory.from_config`, as in the product. Moving must reach every tensor, so each is a parameter
    or a buffer; and no method of `nn.Module` may be overridden, as torch calls them for purposes of its own.
    """
    tokens = case.tokens([case.secret(6), case.secret(3)])
    with case.pair.installed(), tempfile.TemporaryDirectory() as folder:
        memory = Memory.from_config(case.pair.config("float32"))
        parts = {"writer": memory.writer, "reader": memory.reader}
        for name, part in parts.items():
            _check_names(case, name, part)
            shake(part)
        memory.to("cpu")
        memory.save_run(folder)
        logits = _write_and_read(case, memory, tokens)
        opened = Memory.from_config(folder)
        case.same(
            "the logits of the memory opened from its run folder",
            _write_and_read(case, opened, tokens),
            logits,
        )
        for dtype in ("float64", "bfloat16"):
            converted = Memory.from_config(folder, [f"backbone.dtype={dtype}"])
            found = _write_and_read(case, converted, tokens)
            case.require(bool(found.isfinite().all()), f"the logits in {dtype} are not finite")
        _train_one_step(case, opened, tokens)
        for name, part in parts.items():
            part.to("meta")
            for path in _left_behind(name, part, {id(memory.backbone), id(memory.model)}):
                case.require(
                    False, f"{path} is a tensor that `to` does not move: register it as a buffer"
                )


def _check_names(case: Case, name: str, part: nn.Module) -> None:
    """Refuse names of `nn.Module` that the classes of `part` define or its instances hide."""
    reserved = {n for n in dir(nn.Module) if not n.startswith("__")} - ALLOWED
    package = type(part).__module__.split(".")[0]
    for path, module in part.named_modules():
        kind = type(module)
        own = [c for c in kind.__mro__ if c.__module__.split(".")[0] == package]
        if kind not in own:
            continue
        names = {n for c in own for n in vars(c)}
        names |= vars(module).keys() - vars(nn.Module()).keys()
        names |= module._modules.keys() | module._parameters.keys() | module._buffers.keys()
        taken = sorted(names & reserved)
        where = f"{name}.{path}" if path else f"the {name}"
        case.require(
            not taken,
            f"{where} ({kind.__name__}) defines {', '.join(taken)}, which nn.Module defines, too, and torch calls: "
            f"choose another name",
        )


def _write_and_read(case: Case, memory: Memory, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        state = memory.write(tokens).state
        return memory.read(state, case.question(tokens.ids.shape[0])).logits


def _train_one_step(case: Case, memory: Memory, tokens: Tokens) -> None:
    """Take one step of gradient descent with the loss that `memwrite train` has, and write and read once more."""
    memory.train()
    queries = Tokens.from_rows([[*QUESTION, answer] for answer in (65, 66)])
    labels = queries.ids.clone()
    labels[:, : len(QUESTION)] = -100
    loss = training_loss(memory, Batch(tokens, queries, labels)).loss
    case.require(bool(loss.isfinite()), "the training loss is not finite")
    weights = [weight for weight in memory.parameters() if weight.requires_grad]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        torch.optim.SGD(weights, lr=1e-3).step()
    memory.eval()
    logits = _write_and_read(case, memory, tokens)
    case.require(bool(logits.isfinite().all()), "the logits after a training step are not finite")


def _left_behind(path: str, part: object, seen: set[int]) -> Iterator[str]:
    """Yield the paths of tensors that hang on `part`, in whatever container or object, and are still on a real device."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Tensor):
        if part.device.type != "meta":
            yield path
        return
    for name, inner in _contents(part):
        yield from _left_behind(f"{path}{name}", inner, seen)


def _contents(part: Any) -> Iterable[tuple[str, object]]:
    if isinstance(part, dict):
        return [(f"['{key}']", value) for key, value in part.items()]
    if isinstance(part, (list, tuple, set, frozenset)):
        return [(f"[{i}]", value) for i, value in enumerate(part)]
    if isinstance(part, type) or not hasattr(part, "__dict__"):
        return []
    if isinstance(part, nn.Module) or type(part).__module__.split(".")[0] not in (
        "torch",
        "builtins",
    ):
        return [(f".{key}", value) for key, value in vars(part).items()]
    return []
