"""What the writers say to people about a write."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from memwrite.plugins import WriteReport


def recited(trace: Mapping[str, Tensor]) -> WriteReport:
    """Say how much of the context the memory gives back."""
    accuracy = trace["accuracy"]
    if not len(accuracy):
        return WriteReport()
    facts = [f"{float(accuracy[-1]):.1%} of the tokens right after {len(accuracy)} steps"]
    if accuracy[-1] == 1:
        return WriteReport(facts)
    lacks = "the state does not hold the whole text: give the writer a larger state or more steps."
    return WriteReport(facts, [lacks])


def worth(trace: Mapping[str, Tensor]) -> WriteReport:
    """Say how much better the memory is than none, on texts that it was not descended on."""
    kept, step, steps = (
        float(trace["value_kept"][-1]),
        int(trace["kept_step"][-1]),
        len(trace["loss"]),
    )
    told, start = f"{kept:.0%}", f"{float(trace['value_kept_at_start'][-1]):.0%}"
    if "quotes_kept" in trace:
        told += f", and {float(trace['quotes_kept'][-1]):.0%} for its repetition,"
        start += f" and {float(trace['quotes_kept_at_start'][-1]):.0%}"
    facts = [
        f"keeps {told} of what the text is worth to the model, measured on texts held out from the descent ({start} at its "
        f"start; of {steps} steps it was best after {step})"
    ]
    if kept >= 0.5:
        return WriteReport(facts)
    if kept < 0:
        return WriteReport(
            facts, ["this memory is worse than none: use more slots or another start."]
        )
    return WriteReport(facts, ["most of the text is lost: use more slots, steps or study.texts."])
