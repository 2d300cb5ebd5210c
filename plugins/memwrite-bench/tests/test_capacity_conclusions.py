"""What the capacity page says first: sentences that its figures bear out."""

from __future__ import annotations

from dataclasses import replace

from capacity_runs import fake_result, fake_run
from memwrite_bench.capacity.conclusions import conclusions
from memwrite_bench.capacity.grid import plan
from memwrite_bench.capacity.summary import Group, summarise


def groups(exact: dict[tuple[str, int], float], seeds: int = 3, zeros: float = 0.0) -> list[Group]:
    """Groups by label, with an exact match at each number of pairs; of -1 a context that is too long."""
    labels = dict.fromkeys(label for label, _ in exact)
    runs = [
        fake_run(f"{label}-{seed}", seed, learning_rate=1.0 + place)
        for place, label in enumerate(labels)
        for seed in range(seeds)
    ]
    cells = plan(runs, sorted({pairs for _, pairs in exact}), [1], [0], 4)

    results = []
    for cell in cells:
        value = exact[cell.run.label.rpartition("-")[0], cell.pairs]
        found = fake_result(cell, value) if value >= 0 else fake_result(cell, 0, "too long")
        if found.recall is not None:
            scores = replace(found.recall.zero_state, exact_match=zeros)
            found = replace(found, recall=replace(found.recall, zero_state=scores))
        results.append(found)
    return summarise(cells, results)


def test_the_largest_number_of_pairs_that_is_held() -> None:
    made = groups(
        {("a", 2): 1.0, ("a", 4): 0.96, ("a", 8): 0.5, ("b", 2): 0.4, ("b", 4): 0.3, ("b", 8): -1}
    )
    held, not_held, densest = conclusions(made)
    assert held == (
        "a holds 4 pairs with K = 1 in 128 bytes (12.8% of the key-value cache): 96.0% of them come back right (written "
        "in 250 ms)."
    )
    assert not_held.startswith(
        "b holds no number of pairs that was measured at 95%: at best 40.0% of 2 with K = 1"
    )
    assert densest.startswith("The densest state is that of a: ")
    assert densest.endswith("at 4 pairs with K = 1.")


def test_what_cannot_be_concluded() -> None:
    made = groups({("a", 2): 1.0}, seeds=2, zeros=0.2)
    *_, guessed, few = conclusions(made)
    assert guessed == "Not all that a answers comes from its state: it answers 20.0% from zeros."
    assert (
        few
        == "No claim that one is better than another can rest on a: fewer than 3 training seeds."
    )
    assert not any("densest" in sentence for sentence in conclusions(made))


def test_nothing_measured() -> None:
    assert conclusions(groups({("a", 2): -1.0})) == ["a could not be measured."]
    assert conclusions([]) == []
