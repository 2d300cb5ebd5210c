"""The same run in float64 throughout, to know how much of a difference float32 kernels can explain.

Llama-like models take norms and softmax in float32 whatever their dtype, and float32 sums depend on how wide the
machine's vectors are: the official code itself differs by some 1e-8 from one machine to the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Double(TorchFunctionMode):
    """Within this, what is float64 stays float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        source = args[0] if args else None
        if isinstance(source, Tensor) and source.dtype == torch.float64:
            if func is Tensor.float:
                return source
            if func is Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")):
                return source
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
