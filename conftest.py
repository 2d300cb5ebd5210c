"""A deterministic hypothesis and a cache in the build folder, for the tests of the core and of every plugin."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("MEMWRITE_CACHE", str(Path(__file__).parent / "build" / "cache"))

settings.register_profile("memwrite", deadline=None, derandomize=True, max_examples=25)
# `make soak`: other and more examples every time.
settings.register_profile("soak", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("memwrite")
