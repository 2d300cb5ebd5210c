"""Changes of files that a parser might not expect: of their bytes, and of the data that they spell."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**12, 10**40, -(10**9), 0.5, -1e308, 1e308, float("nan"),
    "", "x", "gpt2", "llama", "..", "../../../../etc/passwd", "/dev/zero", "/proc/self/mem", "${oc.env:HOME}", "???",
    "\x00", "\ud800", "é" * 3000, "__class__", "float32", "cuda:7", "meta", [], {}, [[]], [{}], {"": {}}, {"a": [1, {"b": None}]},
)  # fmt: skip


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Flipped, cut, doubled, inserted, or moved."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 5])):
        at = random.randrange(len(changed) + 1)
        to = min(len(changed), at + random.choice([1, 4, 8, 64, 512]))
        kind = random.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] = random.randrange(256)
        elif kind == 1 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            del changed[at:to]
        elif kind == 3:
            changed[at:at] = changed[at:to]
        elif kind == 4:
            changed[at:at] = random.choice(
                [b"\xff" * 8, b"\x00" * 8, b"[" * 4000, b"{", b'"', b"\n"]
            )
        else:
            del changed[at:]
    return bytes(changed)


def mutated_data(data: Any, random: Random) -> Any:
    """Plain data with one to three of its values replaced, dropped, renamed, nested or exchanged."""
    changed = {"": copy.deepcopy(data)}
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = [*_places(changed)]
        holder, key = random.choice(places)
        kind = random.randrange(7)
        if kind <= 2:
            holder[key] = copy.deepcopy(random.choice(VALUES))
        elif kind == 3 and isinstance(holder, dict) and holder is not changed:
            holder[random.choice(["x", "", "path", "type", "${a}", f"{key}_"])] = holder.pop(key)
        elif kind == 4 and holder is not changed:
            holder.pop(key)
        elif kind == 5:
            holder[key] = random.choice([[holder[key]], {"x": holder[key]}, _deep(holder[key])])
        else:
            other, name = random.choice(places)
            holder[key] = copy.deepcopy(other[name])
    return changed[""]


def _deep(value: Any) -> Any:
    for _ in range(300):
        value = [value]
    return value


def _places(data: Any) -> Any:
    """(holder, key) of every value."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield data, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
