"""What stays in a process: new objects that are still alive, and old objects that hold something else."""

from __future__ import annotations

import array
import gc
import hashlib
import mmap
import types
import weakref
from collections.abc import Iterable, Iterator
from contextvars import Context
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BUFFERS = (bytearray, array.array, mmap.mmap)
_RUNNING = (types.FrameType, types.GeneratorType, types.CoroutineType)
#: What holds the same for ever, or in another object: looking at all of them would double the time.
_FIXED = {
    tuple, frozenset, type, property, staticmethod, classmethod, weakref.ref, types.FunctionType,
    types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType,
}  # fmt: skip


class HeapSnapshot:
    """Keeps every object of this process that the garbage collector knows, as it is now.

    For a process that ends soon: the collector looks at none of these objects any more.
    """

    def __init__(self) -> None:
        gc.callbacks.clear()  # those who count collections would be counted among what has changed
        gc.collect()
        # Not frames, which come and go, nor what this class is made of.
        passed = _FIXED.union(_RUNNING)
        self._old = [thing for thing in gc.get_objects() if type(thing) not in passed]
        self._held = {id(thing): _held(thing) for thing in self._old}
        # What they hold is kept alive, lest something that comes in its place gets its id.
        self._parts = {id(part): part for thing in self._old for part in _parts(thing)}
        self._contexts = _values(_contexts(self._old))
        gc.freeze()

    def leaks(self) -> list[str]:
        """Describe the objects that have come since and stayed, and those that hold something else than before."""
        gc.collect()
        # Nothing of ours may be alive here but this frame, so the rest is another function.
        return self._differences(gc.get_objects())

    def _differences(self, everything: list[Any]) -> list[str]:
        own = {id(x) for x in (self, self.__dict__, *vars(self).values())}
        new = [x for x in everything if type(x) not in _RUNNING and id(x) not in own]
        contexts = _contexts(new)
        found = [f"{_described(thing)} stays" for thing in new if not _is_context(thing)]
        if not _values(contexts) <= self._contexts:
            found.append("a context variable holds something else")
        for thing in self._old:
            changed = self._held[id(thing)] != _held(thing)
            if changed and id(thing) not in own and not _is_context(thing):
                found.append(f"{_described(thing)} holds something else")
        return found


def _held(thing: Any) -> int:
    """Return a hash of what a container holds, by identity, or of data, by value."""
    if _is_data(thing):
        return hash(_bytes(thing))
    held: list[int] = []
    for part in _parts(thing):
        held.append(id(part))
        if type(part) in _BUFFERS:
            held.append(hash(_bytes(part)))
        elif type(part) is torch.Generator:
            held.append(hash(_bytes(part.get_state())))
        elif type(part) is count:
            held.append(hash(repr(part)))
    return hash(tuple(held))


def _parts(thing: Any) -> Iterator[Any]:
    for part in gc.get_referents(thing):
        yield part
        # The collector does not follow a dict of texts and numbers, nor give its owner away.
        if type(part) is dict and not gc.is_tracked(part):
            yield from part.values()


def _is_data(thing: Any) -> bool:
    # Not of isinstance, which asks proxies that warn; nor numpy's subclasses, some of which cannot be read.
    kind = type(thing)
    return kind in (np.ndarray, *_BUFFERS) or issubclass(kind, Tensor)


def _bytes(data: Any) -> bytes:
    if isinstance(data, Tensor):
        if data.device.type != "cpu" or data.layout is not torch.strided:
            return b""
        data = data.detach().contiguous().flatten().view(torch.uint8).numpy()
    plain = data.tobytes() if isinstance(data, np.ndarray) else memoryview(data)
    return hashlib.sha256(plain).digest()


def _is_context(thing: object) -> bool:
    """Whether it is a part of context variables' maps, which are made anew whenever one of them is set."""
    return type(thing) is Context or type(thing).__name__.startswith("hamt")


def _contexts(things: Iterable[Any]) -> list[Any]:
    return [thing for thing in things if _is_context(thing)]


def _values(contexts: Iterable[Any]) -> set[int]:
    """Return the ids of context variables and of what they hold."""
    parts = (part for context in contexts for part in gc.get_referents(context))
    return {id(part) for part in parts if not _is_context(part)}


def _described(thing: Any) -> str:
    kind = type(thing)
    what = f"a {kind.__module__.removeprefix('builtins')}.{kind.__name__}".replace(" .", " ")
    if isinstance(thing, (Tensor, np.ndarray)):
        what += f" of shape {tuple(thing.shape)}"
    if kind is dict:
        if "__name__" in thing:
            return f"the module {thing['__name__']}"
        for owner in gc.get_referrers(thing):
            if getattr(owner, "__dict__", None) is thing:
                return f"a {type(owner).__module__}.{type(owner).__name__}"
        what += f" with the keys {', '.join(map(str, list(thing)[:3]))}"
    for owner in gc.get_referrers(thing):
        if type(owner) is dict:
            keys = [key for key, value in owner.items() if value is thing]
            where = f"the module {owner['__name__']}" if "__name__" in owner else "a dict"
            return f"{what} ('{keys[0]}' of {where})" if keys else what
    return what
