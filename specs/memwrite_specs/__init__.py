"""The laws that a memwrite memory must keep: a conformance kit for authors of plugins."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memwrite_specs.laws import LAWS as LAWS
    from memwrite_specs.laws import PAIR_LAWS as PAIR_LAWS
    from memwrite_specs.pair import Pair as Pair
    from memwrite_specs.pytest_binding import conformance as conformance
    from memwrite_specs.runner import Result as Result
    from memwrite_specs.runner import hold as hold

_HOMES = {
    "LAWS": "laws", "PAIR_LAWS": "laws", "Pair": "pair", "Result": "runner", "conformance": "pytest_binding",
    "hold": "runner",
}  # fmt: skip
__all__ = ["LAWS", "PAIR_LAWS", "Pair", "Result", "conformance", "hold"]


def __getattr__(name: str) -> Any:
    # pytest imports this package in every environment where it is installed, and must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'memwrite_specs' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"memwrite_specs.{_HOMES[name]}"), name)
