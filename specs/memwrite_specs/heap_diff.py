"""What stays in a process: new objects that are still alive, and old objects that hold something else."""

from __future__ import annotations

import array
import gc
import hashlib
import mmap
import types
import weakref
from collections.abc import Iterable
from contextvars import Context
from itertools import compress, count
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BUFFERS = (bytearray, array.array, mmap.mmap)
_CHANGING = {*_BUFFERS, torch.Generator, count, dict}
_BLOCK = 1000
_RUNNING = (types.FrameType, types.GeneratorType, types.CoroutineType)
#: What holds the same for ever, or in another object: looking at all of them would double the time.
_FIXED = {
    tuple, frozenset, type, property, staticmethod, classmethod, weakref.ref, types.FunctionType,
    types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType,
}  # fmt: skip


class HeapSnapshot:
    """Keeps every object of this process that the garbage collector knows, as it is now.

    Objects are compared in blocks of many, and one by one only where a block has changed: a process has millions.

    For a process that ends soon: the collector looks at none of these objects any more.
    """

    def __init__(self) -> None:
        gc.callbacks.clear()  # those who count collections would be counted among what has changed
        gc.disable()  # what is made here is kept, but so many new objects make the collector look at all old ones
        everything = gc.get_objects()
        each = [*map(type, everything)]
        kinds = {*each}
        data, contexts = {*filter(_is_data, kinds)}, {*filter(_is_context, kinds)}
        self._contexts = _values(_of(contexts, everything, each))
        self._data = [(x, _bytes(x)) for x in _of(data, everything, each)]
        # Not frames, which come and go, nor context variables' maps, nor what this class is made of.
        others = _of(kinds - {*_FIXED, *_RUNNING, HeapSnapshot} - contexts - data, everything, each)
        others = [x for x in others if x is not self.__dict__]
        self._blocks = [_Block(others[i : i + _BLOCK]) for i in range(0, len(others), _BLOCK)]
        gc.freeze()  # garbage, too: nobody will collect it, and collecting it first would take as long as all the rest
        gc.enable()

    def leaks(self) -> list[str]:
        """Describe the objects that have come since and stayed, and those that hold something else than before."""
        gc.collect()
        # Nothing of ours may be alive here but this frame, so the rest is another function.
        return self._differences(gc.get_objects())

    def _differences(self, everything: list[Any]) -> list[str]:
        new = [x for x in everything if type(x) not in _RUNNING]
        contexts = [x for x in new if _is_context(type(x))]
        found = [f"{_described(thing)} stays" for thing in new if not _is_context(type(thing))]
        if not _values(contexts) <= self._contexts:
            found.append("a context variable holds something else")
        changed = [thing for thing, before in self._data if _bytes(thing) != before]
        changed += [thing for block in self._blocks for thing in block.changed()]
        return found + [f"{_described(thing)} holds something else" for thing in changed]


class _Block:
    """Objects, and what they hold together: one call of the collector tells that of all of them."""

    def __init__(self, things: list[Any]) -> None:
        self._things = things
        # What they hold is kept alive, lest something that comes in its place gets its id.
        self._parts = gc.get_referents(*things)
        self._inner = _inner(self._parts)

    def changed(self) -> list[Any]:
        """Return the first object that holds something else than before, and the parts with another value."""
        parts = gc.get_referents(*self._things)
        if _differ(parts, self._parts):
            return [self._first_changed()]
        now = {id(part): value for part, value in _inner(parts)}
        return [part for part, before in self._inner if now.get(id(part)) != before]

    def _first_changed(self) -> Any:
        start = 0
        for thing in self._things:
            parts = gc.get_referents(thing)
            if _differ(parts, self._parts[start : start + len(parts)]):
                return thing
            start += len(parts)
        return self._things[-1]


def _differ(some: list[Any], others: list[Any]) -> bool:
    """Say whether they are not the same objects in the same order."""
    return len(some) != len(others) or any(map(is_not, some, others))


def _inner(parts: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Return the parts that can change without holding other parts, each with what is compared of it."""
    found: list[tuple[Any, list[Any]]] = []
    for part in _of(_CHANGING, parts, map(type, parts)):
        kind = type(part)
        if kind in _BUFFERS:
            found.append((part, [_bytes(part)]))
        elif kind is torch.Generator:
            found.append((part, [_bytes(part.get_state())]))
        elif kind is count:
            found.append((part, [repr(part)]))
        elif kind is dict and not gc.is_tracked(part):
            # The collector does not follow a dict of texts and numbers, nor give its owner away.
            found.append((part, [*part.values()]))
    return found


def _of(kinds: set[type], things: Iterable[Any], types: Iterable[type]) -> list[Any]:
    """Return the `things` whose types, given beside them, are of these kinds: no Python for each of a million."""
    return [*compress(things, map(kinds.__contains__, types))]


def _is_data(kind: type) -> bool:
    # Numpy's subclasses are left out, some of which cannot be read.
    return kind in (np.ndarray, *_BUFFERS) or issubclass(kind, Tensor)


def _bytes(data: Any) -> bytes:
    if isinstance(data, Tensor):
        if data.device.type != "cpu" or data.layout is not torch.strided:
            return b""
        data = data.detach().contiguous().flatten()
        if data.stride() != (1,):  # of one element, whose stride does not matter but to a view
            data = data.as_strided(data.shape, (1,))
        data = data.view(torch.uint8).numpy()
    plain = data.tobytes() if isinstance(data, np.ndarray) else memoryview(data)
    return hashlib.sha256(plain).digest()


def _is_context(kind: type) -> bool:
    """Say whether it is a part of context variables' maps, which are made anew whenever one of them is set."""
    return kind is Context or kind.__name__.startswith("hamt")


def _values(contexts: Iterable[Any]) -> set[int]:
    """Return the ids of context variables and of what they hold."""
    parts = (part for context in contexts for part in gc.get_referents(context))
    return {id(part) for part in parts if not _is_context(type(part))}


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
