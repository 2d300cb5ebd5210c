"""Digests of everything that an object holds, to be compared with earlier ones."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import types
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def object_digest(
    *things: object, skip: Sequence[object] = (), deep: bool = True
) -> dict[str, str]:
    """Return digests of all that objects hold: attributes, tensors, closures, and globals of their classes' modules.

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
        elif isinstance(thing, torch.Generator):
            self.found[path] = hashlib.sha256(thing.get_state().numpy().tobytes()).hexdigest()
        elif isinstance(thing, (count, random.Random, np.random.Generator)):
            inner = getattr(thing, "bit_generator", thing)
            self.found[path] = str(getattr(inner, "state", None) or _drawn(inner))
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


def _drawn(source: Any) -> str:
    return str(hash(source.getstate())) if isinstance(source, random.Random) else repr(source)
