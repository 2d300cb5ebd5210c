"""Moving a model and the parts around it to a device or dtype, where the parts keep the dtype of states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import ConfigError


def move(
    backbone: TransformersBackbone,
    parts: Sequence[nn.Module],
    fn: Callable[[Tensor], Tensor],
    recurse: bool,
) -> None:
    """Apply to a model and its parts what `nn.Module.to` and its like apply to every tensor, but cast the model alone.

    Raises:
        ConfigError: states would have another dtype than the one that the parts were built for.
    """
    info = backbone.info
    dtype = fn(torch.empty(0, dtype=info.dtype, device=info.device)).dtype
    if torch.promote_types(dtype, torch.float32) != info.state_dtype:
        raise ConfigError(
            f"this memory was built with states of {info.state_dtype}, which a backbone of {dtype} does not have: "
            f"build it anew with backbone.dtype={str(dtype).removeprefix('torch.')}"
        )
    backbone.model._apply(fn, recurse)
    for part in parts:
        part._apply(lambda tensor: _moved(tensor, fn), recurse)  # type: ignore[no-untyped-call]


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `fn(tensor)` in the dtype that the tensor has."""
    probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
    return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)
