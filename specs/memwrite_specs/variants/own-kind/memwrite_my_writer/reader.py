"""The reader: the mean of every slot is prepended to the query."""

from torch import nn

from memwrite.protocols import Backbone, Conditioning
from memwrite.state import MemoryState, StateSpec
from memwrite_my_writer.config import NoParams


class MyReader(nn.Module):
    """Reads a `my-kind` state as a prefix of embeddings; it has no weights."""

    accepts = frozenset({"my-kind"})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Prepend the means, a little towards zero, so that a slot without tokens is zero."""
        return Conditioning(prefix=state["sums"] / (1 + state["counts"])[..., None])
