"""Code that comes with a model is never run, nor asked for on standard input: a model folder is data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memwrite.errors import ConfigError

_WAY_OUT = "memwrite never runs code that comes with a model: take a model of a family that transformers knows"


def load_error(error: Exception) -> str:
    """Return why transformers could not load something, and what to do where that is code of its own."""
    if "trust_remote_code" in str(error):
        return f"it needs code of its own, and {_WAY_OUT}"
    return str(error) or type(error).__name__


def check_attention(data: Mapping[str, Any], where: str) -> None:
    """Refuse a model's description that names an attention kernel of the hub, which is code too.

    Raises:
        ConfigError: it names one.
    """
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(data.get(name, "")):
            raise ConfigError(f"{where} asks for the attention code '{data[name]}', but {_WAY_OUT}")
