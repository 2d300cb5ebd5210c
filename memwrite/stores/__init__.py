"""Many memories under keys, in a place that several processes share."""

from memwrite.stores.record import Entry
from memwrite.stores.store import Store

__all__ = ["Entry", "Store"]
