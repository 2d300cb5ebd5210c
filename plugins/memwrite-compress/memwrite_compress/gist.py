"""Gist tokens (Mu et al. 2023, arXiv 2304.08467)."""

from __future__ import annotations

from memwrite_compress.key_values import KeyValueCompressor


class GistWriter(KeyValueCompressor):
    """Keeps the keys and values of m gist tokens, which alone see the context and alone are seen by what follows.

    The authors train the whole model (`backbone.trainable`); a LoRA of rank above 0 takes its place around a frozen one. A
    further segment sees the gist of those before, and its own gist takes that one's place.
    """
