"""What the tests of a plugin need: tiny models, strategies that draw batches, and what transformers alone does.

Import from here, not from the modules of this package. Nothing in it needs a clone of memwrite's repository.
"""

from memwrite_specs.backbones import BACKBONES, Build
from memwrite_specs.testing import families
from memwrite_specs.testing.families import FAMILIES, HYBRIDS, LAYERS, NEWER_FAMILIES, WINDOW
from memwrite_specs.testing.models import MODELS, tolerance
from memwrite_specs.testing.plain import end_padded, plain_generate, plain_logits
from memwrite_specs.testing.strategies import LONGEST, Rows, padded_rows, query_batches

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "HYBRIDS",
    "LAYERS",
    "LONGEST",
    "MODELS",
    "NEWER_FAMILIES",
    "WINDOW",
    "Build",
    "Rows",
    "end_padded",
    "families",
    "padded_rows",
    "plain_generate",
    "plain_logits",
    "query_batches",
    "tolerance",
]
