"""The laws, each a plain function whose docstring is the specification."""

from memwrite_specs.law import LAWS

# Importing a module declares its laws, in this order.
from memwrite_specs.laws import shape  # isort: skip
from memwrite_specs.laws import writes  # isort: skip
from memwrite_specs.laws import leakage as reach

from memwrite_specs.laws import rows  # isort: skip
from memwrite_specs.laws import sessions  # isort: skip
from memwrite_specs.laws import information  # isort: skip
from memwrite_specs.laws import capabilities  # isort: skip

__all__ = ["LAWS", "capabilities", "information", "reach", "rows", "sessions", "shape", "writes"]
