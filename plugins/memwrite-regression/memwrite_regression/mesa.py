"""The Mesa layer as a memory: ridge regression that forgets, and is read while it is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memwrite.inference import online
from memwrite.protocols import Backbone, Granularity, LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_regression.cells import MesaCell
from memwrite_regression.config import MesaConfig
from memwrite_regression.kind import condition_number, recall, ridge_of
from memwrite_regression.scan import Solver, scan
from memwrite_regression.writer import RegressionWriter


class MesaWriter(RegressionWriter):
    """Writes every token as it is read, and forgets a little with each (von Oswald et al. 2025, arXiv 2506.05233).

    An `OnlineWriter`: in a Memory with a layer reader the model reads the memory while it is written. So what a text adds
    depends on what the memory held, and it cannot be taken out again; `RidgeWriter` can do that.
    """

    def __init__(self, config: MesaConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone, MesaCell)
        self._solver = Solver(None if config.solver == "exact" else config.iterations)

    @property
    def granularity(self) -> Granularity:
        """Return that tokens are written one by one."""
        return "token"

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read `context` without any reads of the state, and write it."""
        return online.run(self._backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """See `OnlineWriter.scan`."""
        if not write:
            return ScanOutput(None if step.queries is None else recall(state, step.queries), state)
        writes = self.cell(step.layer)(step.hidden.to(self.spec.dtype)).at(step.mask)
        reads, after, gram = scan(
            step.queries, writes.keys, writes.values, writes.log_keep, writes.weight,
            ridge_of(state), state["S"], state["G"], self._solver,
        )  # fmt: skip
        done = {"S": after, "G": gram, "log_ridge": state["log_ridge"]}

        def trace() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"condition": condition_number(done).amax(1)}

        return ScanOutput(None if step.queries is None else reads, done, trace=trace)
