"""What is left behind in a process: objects that hold a text, and what an object knows."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import types
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def freeze() -> list[Any]:
    """Make this process's garbage collector see new objects only, which takes seconds off every search in it.

    Returns:
        The containers that are there already and could be given new things to hold.
    """
    old = [thing for thing in gc.get_objects() if type(thing) in (dict, list, set, deque)]
    gc.freeze()
    return old


def holders(
    texts: Sequence[Sequence[int]], embedded: Sequence[Tensor], old: Sequence[Any]
) -> list[str]:
    """Objects of this process that hold one of these texts: as ids, letters or embeddings, in a row.

    Args:
        texts: ids, all of them ASCII.
        embedded: for each of them (T, D), their embeddings.
        old: what `freeze` gave.

    Returns:
        A description of each.
    """
    gc.collect()
    sequences = [list(ids) for ids in texts]
    words = [word for ids in sequences for word in _spelled(ids)]
    patterns = [np.asarray(ids, np.float32).tobytes() for ids in sequences]
    patterns += [part[:3].float().numpy().tobytes() for part in embedded]
    own = {id(x) for group in (texts, embedded, sequences, words, patterns) for x in group}
    own |= {id(group) for group in (texts, embedded, sequences, words, patterns)}
    found = []
    for how, thing in _things(old):
        if id(thing) in own:
            continue
        if how == "text":
            letters = thing if isinstance(thing, str) else bytes(thing).decode("latin-1")
            hit = len(letters) >= len(sequences[0]) and any(word in letters for word in words)
        elif how == "array":
            hit = _holds(thing, patterns)
        else:
            hit = any(_contains(thing, ids) for ids in sequences)
        if hit:
            found.append(_described(thing))
    return found


def _spelled(ids: Sequence[int]) -> list[str]:
    """As a text, backwards, as numbers, and in hexadecimal."""
    text = bytes(ids).decode("ascii")
    return [text, text[::-1], ", ".join(map(str, ids)), bytes(ids).hex()]


def _things(old: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Everything that could hold a text, once, with how it would."""
    seen: set[int] = set()
    kinds: dict[type, str] = {}
    for container in chain(gc.get_objects(), old):
        for thing in (container, *gc.get_referents(container)):
            kind = type(thing)
            if kind not in kinds:
                kinds[kind] = _how(kind)
            if (how := kinds[kind]) and id(thing) not in seen:
                seen.add(id(thing))
                yield how, thing
                if kind is tuple:  # the collector does not follow those without containers in them
                    yield from ((found, x) for x in thing if (found := _how(type(x))))


def _how(kind: type) -> str:
    if issubclass(kind, (str, bytes, bytearray)):
        return "text"
    if issubclass(kind, (Tensor, np.ndarray)):
        return "array"
    return "numbers" if issubclass(kind, (list, tuple, deque)) else ""


def _holds(array: Tensor | np.ndarray[Any, Any], patterns: Sequence[bytes]) -> bool:
    if isinstance(array, Tensor):
        if array.device.type == "meta" or array.is_sparse or array.is_complex():
            return False
        values = array.detach().float().cpu().contiguous().numpy()
    elif array.dtype.kind in "iuf":
        values = array.astype(np.float32)
    else:
        return False
    data = values.tobytes()
    return any(len(data) >= len(pattern) and pattern in data for pattern in patterns)


def _contains(numbers: Any, sequence: list[int]) -> bool:
    numbers = list(numbers) if isinstance(numbers, deque) else numbers
    first, length = sequence[0], len(sequence)
    if len(numbers) < length or not isinstance(numbers[0], int):
        return False
    return any(
        numbers[i] == first and list(numbers[i : i + length]) == sequence
        for i in range(len(numbers) - length + 1)
    )


def _described(thing: Any) -> str:
    shape = f" of shape {tuple(thing.shape)}" if isinstance(thing, (Tensor, np.ndarray)) else ""
    what = f"a {type(thing).__name__}{shape}"
    for owner in gc.get_referrers(thing):
        if type(owner) is dict:
            keys = [key for key, value in owner.items() if value is thing]
            if keys and "__name__" in owner:
                return f"{what}, '{keys[0]}' of the module {owner['__name__']}"
            if keys:
                return f"{what}, '{keys[0]}' in a dict"
    return what


def knowledge(*things: object, skip: Sequence[object] = (), deep: bool = True) -> dict[str, str]:
    """A digest of everything that objects know: attributes, tensors, closures, and globals of their classes' modules.

    Args:
        things: modules of torch, or any objects.
        skip: what is not looked into.
        deep: whether to look into classes, functions and globals of the packages they come from.

    Returns:
        Path -> digest.
    """
    found: dict[str, str] = {}
    packages = {type(thing).__module__.split(".")[0] for thing in things} if deep else set()
    walk = _Walk(found, {id(thing): thing for thing in skip}, packages)
    for thing in things:
        walk(type(thing).__name__, thing)
    return found


class _Walk:
    """Visits each object once; other packages than those of the objects asked about are not entered."""

    def __init__(self, found: dict[str, str], seen: dict[int, object], packages: set[str]) -> None:
        # The objects, too, so that no other one comes by their ids meanwhile.
        self.found, self.seen = found, seen
        self.packages = packages

    def __call__(self, path: str, thing: Any) -> None:
        if isinstance(thing, (bool, int, float, str, bytes, type(None), torch.dtype)):
            self.found[path] = repr(thing)
            return
        if id(thing) in self.seen:
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            self._tensor(path, thing)
        elif isinstance(thing, np.ndarray):
            self.found[path] = hashlib.sha256(thing.tobytes()).hexdigest()
        elif isinstance(thing, dict):
            self.found[path] = f"{len(thing)} entries"
            for key, value in list(thing.items()):
                self(f"{path}[{key!r}]" if isinstance(key, str) else f"{path}[…]", value)
                if not isinstance(key, (str, int)):
                    self(f"{path}.key", key)
        elif isinstance(thing, (list, tuple, set, frozenset, deque)):
            self.found[path] = f"{len(thing)} items"
            for i, value in enumerate(list(thing)):
                self(f"{path}[{i}]", value)
        elif isinstance(thing, type):
            if self._ours(thing.__module__):
                self(path, dict(vars(thing)))
        elif isinstance(thing, types.FunctionType):
            self._function(path, thing)
        elif isinstance(thing, types.MethodType):
            self(path, thing.__func__)
            self(f"{path}.__self__", thing.__self__)
        elif hasattr(thing, "cache_info"):
            self.found[f"{path}.cache"] = str(thing.cache_info().currsize)
        elif isinstance(thing, types.ModuleType):
            if self._ours(thing.__name__):
                self(path, dict(vars(thing)))
        else:
            self._instance(path, thing)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        grad = "" if tensor.grad is None else f" grad {float(tensor.grad.double().sum())}"
        self.found[path] = (
            f"{tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad} {digest}{grad}"
        )
        self(f"{path}.__dict__", vars(tensor))

    def _function(self, path: str, function: types.FunctionType) -> None:
        if not self._ours(function.__module__ or ""):
            return
        for i, cell in enumerate(function.__closure__ or ()):
            try:
                self(f"{path}.closure[{i}]", cell.cell_contents)
            except ValueError:
                continue
        self(f"{path}.defaults", function.__defaults__)
        self(f"{path}.__dict__", vars(function))
        self(f"{path}.globals", function.__globals__)

    def _instance(self, path: str, thing: object) -> None:
        if (
            dataclasses.is_dataclass(thing)
            or isinstance(thing, nn.Module)
            or self._ours(type(thing).__module__)
        ):
            attributes = dict(getattr(thing, "__dict__", {}))
            for kind in type(thing).__mro__:
                for name in getattr(kind, "__slots__", ()):
                    if hasattr(thing, name):
                        attributes[name] = getattr(thing, name)
            self(f"{path}.", attributes)
            self(f"{path}.__class__", type(thing))

    def _ours(self, module: str) -> bool:
        return module.split(".")[0] in self.packages
