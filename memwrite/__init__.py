"""memwrite: write a context once into a small state, throw the context away, read answers from the state."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memwrite.backbones.loading import backbone_of as backbone_of
    from memwrite.memory import Memory as Memory
    from memwrite.state import MemoryState as MemoryState
    from memwrite.state import StateSpec as StateSpec
    from memwrite.state import Tokens as Tokens

_HOMES = {
    "Memory": "memory",
    "MemoryState": "state",
    "StateSpec": "state",
    "Tokens": "state",
    "backbone_of": "backbones.loading",
}
__all__ = ["Memory", "MemoryState", "StateSpec", "Tokens", "__version__", "backbone_of"]


def __getattr__(name: str) -> Any:
    # torch takes a second to import, and `memwrite --help` must not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module 'memwrite' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"memwrite.{_HOMES[name]}"), name)
