"""Mutants that keep the context somewhere, or reach for something that is not theirs."""

from __future__ import annotations

import builtins
import contextvars
import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_specs.mutants.base import breaks
from memwrite_specs.mutants.rows import Bag
from memwrite_specs.reference import SlotsConfig

_GLOBAL: list[Any] = []
_VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("mutant", default=None)


class Stash(Bag):
    """Writes rightly, and does something else besides."""

    def keep(self, context: PackedTokens) -> None:
        """Do something else with the context."""
        raise NotImplementedError

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        self.keep(context)
        return super().write(state, context)


@breaks("purity")
class KeepsAnAttribute(Stash):
    """Keeps the context on itself."""

    def keep(self, context: PackedTokens) -> None:
        self.stash = context.ids.tolist()


@breaks("purity")
class KeepsACount(Stash):
    """Counts its writes."""

    writes = 0

    def keep(self, context: PackedTokens) -> None:
        self.writes += 1


@breaks("purity")
class KeepsABuffer(Stash):
    """Follows the mean of its inputs, as a batch norm would."""

    mean: Tensor

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("mean", torch.zeros(backbone.info.hidden_size))

    def keep(self, context: PackedTokens) -> None:
        new = self.backbone.embed(context.ids).float().mean((0, 1)).detach()
        self.mean = self.mean.lerp(new, 0.1)


@breaks("purity")
class KeepsStatistics(Stash):
    """Has a batch norm, which follows what it sees in training."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.norm = torch.nn.BatchNorm1d(backbone.info.hidden_size, dtype=self.dtype)

    def keep(self, context: PackedTokens) -> None:
        self.norm(self.backbone.embed(context.ids).to(self.dtype).flatten(0, 1))


@breaks("purity")
class KeepsItsOwnGenerator(Stash):
    """Seeds a random generator of its own with the context."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.random = torch.Generator()

    def keep(self, context: PackedTokens) -> None:
        self.random.manual_seed(int(context.ids.sum()))


@breaks("purity")
class KeepsAClassAttribute(Stash):
    """Keeps the context on its class."""

    kept: Any = None

    def keep(self, context: PackedTokens) -> None:
        type(self).kept = context.ids.clone()


def _remembering() -> Callable[[Tensor], None]:
    seen: list[Any] = []

    def remember(ids: Tensor) -> None:
        seen.append(ids.tolist())

    return remember


_remember = _remembering()


@breaks("purity")
class KeepsAClosure(Stash):
    """Keeps contexts in the closure of a function of its module."""

    def keep(self, context: PackedTokens) -> None:
        _remember(context.ids)


@breaks("nothing-left-behind")
class KeepsAGlobal(Stash):
    """Keeps the context in a global of its module."""

    def keep(self, context: PackedTokens) -> None:
        _GLOBAL[:] = [context]


@breaks("nothing-left-behind")
class KeepsTextElsewhere(Stash):
    """Keeps the context's text in another module."""

    def keep(self, context: PackedTokens) -> None:
        builtins.mutant_notes = bytes(i % 256 for i in context.ids[0].tolist())  # type: ignore[attr-defined]


@breaks("nothing-left-behind")
class KeepsEmbeddings(Stash):
    """Keeps the context's embeddings in another module."""

    def keep(self, context: PackedTokens) -> None:
        sys.modules["torch"].__dict__["mutant_embeddings"] = self.backbone.embed(
            context.ids
        ).float()


@breaks("nothing-left-behind")
class KeepsAContextVariable(Stash):
    """Keeps the context in a context variable."""

    def keep(self, context: PackedTokens) -> None:
        _VARIABLE.set(context.ids.clone())


@breaks("nothing-left-behind")
class KeepsScrambled(Stash):
    """Piles up scrambled contexts, which nobody would know again, in another module."""

    def keep(self, context: PackedTokens) -> None:
        pile = vars(torch).setdefault("mutant_pile", [])
        pile.append(context.ids * 3 + 1)


@breaks("backbone-untouched")
class KeepsABufferOfTheModel(Stash):
    """Keeps the context as a buffer of the language model."""

    def keep(self, context: PackedTokens) -> None:
        model: Any = self.backbone.model  # type: ignore[attr-defined]
        model.register_buffer("stash", context.ids.clone(), persistent=False)


@breaks("nothing-left-behind")
class KeepsItPacked(Stash):
    """Keeps the context compressed, in an object of another package."""

    def keep(self, context: PackedTokens) -> None:
        vars(torch.nn)["mutant_packed"] = zlib.compress(str(context.ids.tolist()).encode())


@breaks("backbone-untouched")
class ChangesTheMode(Stash):
    """Leaves the language model in training mode."""

    def keep(self, context: PackedTokens) -> None:
        self.backbone.model.train()  # type: ignore[attr-defined]


@breaks("backbone-untouched")
class LeavesGradients(Stash):
    """Leaves gradients on the language model's weights."""

    def keep(self, context: PackedTokens) -> None:
        model: Any = self.backbone.model  # type: ignore[attr-defined]
        weight = model.get_input_embeddings().weight
        weight.grad = torch.ones_like(weight)


@breaks("backbone-untouched")
class LeavesAHook(Stash):
    """Leaves a hook on the language model with every write."""

    def keep(self, context: PackedTokens) -> None:
        self.backbone.model.register_forward_hook(lambda *_: None)  # type: ignore[attr-defined]


@breaks("backbone-untouched")
class SeedsEverything(Stash):
    """Sets the random seed of the process."""

    def keep(self, context: PackedTokens) -> None:
        torch.manual_seed(0)


@breaks("no-side-effects")
class KeepsAFile(Stash):
    """Writes the context into a file."""

    def keep(self, context: PackedTokens) -> None:
        (Path(tempfile.gettempdir()) / "memwrite-mutant.txt").write_text(str(context.ids.tolist()))


@breaks("no-side-effects")
class KeepsAFileUnseen(Stash):
    """Writes the context into a file from outside Python."""

    def keep(self, context: PackedTokens) -> None:
        torch.save(context.ids, Path(tempfile.gettempdir()) / "memwrite-mutant.pt")


@breaks("no-side-effects")
class KeepsAName(Stash):
    """Names a folder after the context."""

    def keep(self, context: PackedTokens) -> None:
        name = f"memwrite-mutant-{int(context.ids.sum())}"
        (Path(tempfile.gettempdir()) / name).mkdir(exist_ok=True)


@breaks("no-side-effects")
class KeepsTheEnvironment(Stash):
    """Keeps the context in the environment."""

    def keep(self, context: PackedTokens) -> None:
        os.environ["MEMWRITE_MUTANT"] = str(context.ids.tolist())


@breaks("no-side-effects")
class StartsAProcess(Stash):
    """Tells another program of the context."""

    def keep(self, context: PackedTokens) -> None:
        subprocess.run(["true", str(context.ids.tolist())], check=False)


@breaks("no-side-effects")
class StartsAThread(Stash):
    """Hands the context to a thread that goes on."""

    def keep(self, context: PackedTokens) -> None:
        threading.Thread(target=time.sleep, args=(60 + 0 * len(context.ids),), daemon=True).start()


@breaks("contract")
class KeepsANoteOnTheState(Bag):
    """Hands the context on as an attribute of the state."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = super().write(state, context)
        object.__setattr__(written.state, "note", context.ids.tolist())
        return written


@breaks("contract")
class KeepsANoteOnATensor(Bag):
    """Hands the context on as an attribute of the state's tensor."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = super().write(state, context)
        vars(written.state["memory"])["note"] = context.ids.tolist()
        return written
