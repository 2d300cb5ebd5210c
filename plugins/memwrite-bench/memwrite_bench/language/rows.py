"""One row of the language report: what a candidate is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memwrite.evaluation.value_kept import Prediction, Reading, share_right, summarise
from memwrite_bench.language.candidates import Candidate
from memwrite_bench.language.cells import Result


@dataclass(frozen=True)
class Row:
    """What one candidate is worth, and what it costs.

    Attributes:
        name: with its budget.
        label: without it.
        slots: the budget; None for a writer that has none.
        untrained: whether it has parameters that nobody trained.
        reading: of the texts behind the contexts; None where nothing could be measured.
        recall: share of a context's tokens that are the first choice when it is read again behind its memory; None where
            it is too long for that.
        bits: that the memory saves, of one text.
        state_bytes, state_floats: of one memory.
        write_seconds: of one context, measured on several that are written together.
        read_seconds: of one text, likewise.
        first_token_seconds: from one state to the token behind a query of one.
        failure: why nothing was measured; "" if it was.
    """

    name: str
    label: str
    slots: int | None
    untrained: bool
    reading: Reading | None
    recall: float | None
    bits: float
    state_bytes: int
    state_floats: int
    write_seconds: float
    read_seconds: float
    first_token_seconds: float
    failure: str

    @property
    def kept(self) -> float | None:
        """Return the mean of value kept; None where there is none."""
        value = self.reading and self.reading.value_kept
        return value.mean if value else None


def row_of(
    candidate: Candidate,
    results: Sequence[Result],
    without: Sequence[Prediction],
    visible: Sequence[Prediction],
) -> Row:
    failure = next((result.failure for result in results if result.failure), "")
    behind, again = joined(results, "behind"), joined(results, "again")
    count = sum(result.contexts for result in results)
    bits = [sum(prediction.bits) for prediction in behind]
    return Row(
        name=candidate.name,
        label=candidate.label,
        slots=candidate.slots,
        untrained=any(result.untrained for result in results),
        reading=None if failure else summarise(behind, without, visible),
        recall=share_right(again) if len(again) == count else None,
        bits=0.0 if failure else (sum(sum(p.bits) for p in without) - sum(bits)) / count,
        state_bytes=max(result.state_bytes for result in results),
        state_floats=max(result.state_floats for result in results),
        write_seconds=sum(result.write_seconds for result in results) / count,
        read_seconds=sum(result.read_seconds for result in results) / count,
        first_token_seconds=sum(r.first_token_seconds for r in results) / len(results),
        failure=failure,
    )


def joined(results: Sequence[Result], name: str) -> list[Prediction]:
    return [prediction for result in results for prediction in getattr(result, name)]
