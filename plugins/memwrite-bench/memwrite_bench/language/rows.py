"""One row of the language report: what a candidate is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

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
        ratio: tokens of a context for each slot of its memory; likewise.
        untrained: whether it has parameters that nobody trained.
        reading: of the texts behind the contexts; None where nothing could be measured.
        recall: share of a context's tokens that are the first choice when its beginning is read again behind its memory;
            None where both are too long for that.
        bits: that the memory saves, of one text.
        state_bytes, state_floats: of one memory.
        write_seconds: of one context, measured on several that are written together.
        read_seconds: of one text, likewise.
        first_token_seconds: from one state to the token behind a query of one; median.
        disk_seconds: likewise, from the file of a state.
        times_faster: how many times as long it takes when the context is read again; median over the same passages. None
            where nothing could be measured.
        failure: why nothing was measured; "" if it was.
    """

    name: str
    label: str
    slots: int | None
    ratio: float | None
    untrained: bool
    reading: Reading | None
    recall: float | None
    bits: float
    state_bytes: int
    state_floats: int
    write_seconds: float
    read_seconds: float
    first_token_seconds: float
    disk_seconds: float
    times_faster: float | None
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
    rereading: Sequence[float],
    context: int,
) -> Row:
    """Summarise the results of a candidate.

    Args:
        candidate: what was measured.
        results: of each batch of passages.
        without, visible: the predictions of all passages without a memory, and with the context in sight.
        rereading: seconds to the first token from the context, of each batch.
        context: tokens of each passage.
    """
    failure = next((result.failure for result in results if result.failure), "")
    behind, again = joined(results, "behind"), joined(results, "again")
    count = sum(result.contexts for result in results)
    bits = [sum(prediction.bits) for prediction in behind]
    return Row(
        name=candidate.name,
        label=candidate.label,
        slots=candidate.slots,
        ratio=context / candidate.slots if candidate.slots else None,
        untrained=any(result.untrained for result in results),
        reading=None if failure else summarise(behind, without, visible),
        recall=share_right(again) if len(again) == count else None,
        bits=0.0 if failure else (sum(sum(p.bits) for p in without) - sum(bits)) / count,
        state_bytes=max(result.state_bytes for result in results),
        state_floats=max(result.state_floats for result in results),
        write_seconds=sum(result.write_seconds for result in results) / count,
        read_seconds=sum(result.read_seconds for result in results) / count,
        first_token_seconds=median(result.first_token_seconds for result in results),
        disk_seconds=median(result.disk_seconds for result in results),
        times_faster=None
        if failure
        else median(
            seconds / result.first_token_seconds
            for seconds, result in zip(rereading, results, strict=True)
        ),
        failure=failure,
    )


def joined(results: Sequence[Result], name: str) -> list[Prediction]:
    return [prediction for result in results for prediction in getattr(result, name)]
