"""Where something was measured, and with what."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch
import transformers

import memwrite


def machine(device: torch.device | None = None) -> str:
    """Describe processor, cores, threads, GPU if `device` is one, and versions, in one line."""
    parts = [_processor()]
    if device is not None and device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join(
        [
            *parts,
            f"{os.cpu_count()} cores",
            f"{torch.get_num_threads()} threads",
            platform.system(),
            f"python {platform.python_version()}",
            f"torch {torch.__version__}",
            f"transformers {transformers.__version__}",
            f"memwrite {memwrite.__version__}",
        ]
    )


def _processor() -> str:
    """Return the processor's name where the system tells it, as Linux does in a file; else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
