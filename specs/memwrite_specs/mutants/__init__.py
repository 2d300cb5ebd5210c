"""Mutants: tests of the laws. Each is broken on purpose in one way, and its law must kill it."""

from memwrite_specs.mutants import capabilities, leaks, numbers, readers, rows
from memwrite_specs.mutants.base import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant", "capabilities", "leaks", "numbers", "readers", "rows"]
