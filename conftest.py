"""A deterministic hypothesis, for the tests of the core and of every plugin."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("memwrite", deadline=None, derandomize=True, max_examples=25)
# `make soak`: other and more examples every time.
settings.register_profile("soak", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("memwrite")
