"""Memories under the lm-evaluation-harness: `MemoryLM` writes each context once and asks its questions of the memory."""

from memwrite_lm_eval.model import MemoryLM

__all__ = ["MemoryLM"]
