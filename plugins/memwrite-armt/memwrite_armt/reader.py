"""ARMT's reader: every layer receives, beside its hidden states, what the memory associates with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from memwrite.errors import ContractViolation, InputError
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas
from memwrite.state import MemoryState, StateSpec
from memwrite_armt.config import AssociativeReaderConfig
from memwrite_armt.memory import associated, features


class AssociativeReader(nn.Module):
    """Adds S φ(W_q h) / z·φ(W_q h) to the hidden states h that each layer receives.

    The authors have one W_q for segments that are written and for the one that is answered; here writer and reader have
    one each, since any writer may be read by any reader.

    Args:
        config: see `AssociativeReaderConfig`.
        backbone: the model that reads; never changed.
        spec: of the states.

    Raises:
        ContractViolation: the states' keys are not of the width that `rank` and `order` give.
    """

    accepts = frozenset({"associative"})

    def __init__(
        self, config: AssociativeReaderConfig, backbone: Backbone, spec: StateSpec
    ) -> None:
        super().__init__()
        width, dtype = backbone.info.hidden_size, backbone.info.state_dtype
        keys = 2 * config.order * config.rank
        if spec.sizes["Dk"] != keys or spec.sizes["Dv"] != width:
            raise ContractViolation(
                f"reader 'associative' has features of {keys} numbers and hidden states of {width}, but the states are of "
                f"{spec.sizes['Dk']} and {spec.sizes['Dv']}: give writer and reader the same rank and order"
            )
        self._spec, self._order = spec, config.order
        self.queries = nn.ModuleDict(
            {str(n): nn.Linear(width, config.rank, bias=False, dtype=dtype) for n in spec.layers}
        )

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Let every layer read its own part of the state.

        Raises:
            InputError: the state has other shapes or layers than the reader was built for.
        """
        if (
            dict(state.spec.shapes) != dict(self._spec.shapes)
            or state.spec.layers != self._spec.layers
        ):
            raise InputError(
                f"the reader was built for states of shapes {dict(self._spec.shapes)}, but this one has "
                f"{dict(state.spec.shapes)}"
            )
        return Conditioning(
            corrections={
                n: _Reading(self._query(n), self._order, state.layer(n)) for n in self._spec.layers
            }
        )

    def _query(self, number: int) -> nn.Linear:
        return cast(nn.Linear, self.queries[str(number)])


class _Reading:
    """One layer's memory at rest; a `ResidualAdapter`."""

    def __init__(self, query: nn.Linear, order: int, tensors: Mapping[str, Tensor]) -> None:
        self._query, self._order, self._tensors = query, order, tensors

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        memory, z = self._tensors["S"], self._tensors["z"]
        wide = hidden.to(memory.dtype)
        return wide + associated(memory, z, features(self._query(wide), self._order))[0]

    def leaving(self, hidden: Tensor) -> Tensor:
        return hidden

    def rows(self, index: Tensor) -> _Reading:
        """Return the adapter of these rows."""
        tensors = {name: tensor[index.to(tensor.device)] for name, tensor in self._tensors.items()}
        return _Reading(self._query, self._order, tensors)
