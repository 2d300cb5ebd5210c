"""What is compared: a writer at one budget, with the reader of its states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memwrite.config import Config, PartConfig, load_config
from memwrite.errors import IncompatiblePair
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite_bench.language import retrieval

#: Without a memory, and with the whole context kept: what value kept is measured between.
NOTHING, FULL = ANCHORS = ("no-memory", "full-context")


@dataclass(frozen=True)
class Candidate:
    """A pair to be measured.

    Attributes:
        label: what the report calls it.
        slots: the budget; None for a writer that has none.
        writer: name and parameters.
        reader: likewise.
        sentences: that are found in the kept text for each query; None where the state is read as it is.
    """

    label: str
    slots: int | None
    writer: PartConfig
    reader: PartConfig
    sentences: int | None = None

    @property
    def name(self) -> str:
        """Return the label with the budget."""
        budget = self.slots if self.sentences is None else self.sentences
        return self.label if budget is None else f"{self.label} {budget}"

    def memory(self, beside: Memory) -> Memory:
        """Build the memory around the backbone of another one.

        Raises:
            ConfigError, PluginError: it cannot be built.
        """
        config = replace(beside.config, writer=self.writer, reader=self.reader)
        return Memory.from_config(config, backbone=beside.backbone).eval()


def candidates(
    given: Sequence[str], budgets: Sequence[int], sentences: Sequence[int]
) -> list[Candidate]:
    """Return the anchors, then what is to be measured.

    Args:
        given: names of writers, "bm25" for retrieval, and YAML files, whose writer and reader are taken as they are.
            None at all: retrieval and every installed writer for which there is a reader.
        budgets: numbers of slots, for each writer that counts its slots.
        sentences: numbers of sentences, for retrieval.

    Raises:
        ConfigError, PluginError: a file or a name is wrong.
    """
    names = given or [*(plugin.name for plugin in registry().writers.all()), retrieval.NAME]
    chosen = [c for name in ANCHORS for c in _of_writer(name, budgets)]
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            chosen.append(_of_file(load_config(name), Path(name).stem))
        elif name == retrieval.NAME:
            writer, reader = PartConfig(retrieval.WRITER), PartConfig(retrieval.READER)
            chosen += [Candidate(name, None, writer, reader, count) for count in sentences]
        elif name not in ANCHORS:
            try:
                chosen += _of_writer(name, budgets)
            except IncompatiblePair:
                if given:
                    raise
    return chosen


def _of_writer(name: str, budgets: Sequence[int]) -> Iterator[Candidate]:
    plugin, reader = registry().writer(name), PartConfig(registry().reader_for(name).name)
    if plugin.slots is None:
        yield Candidate(name, None, PartConfig(name), reader)
        return
    for slots in budgets:
        yield Candidate(name, slots, PartConfig(name, {plugin.slots: slots}), reader)


def _of_file(config: Config, label: str) -> Candidate:
    slots = registry().writer(config.writer.name).slots
    count = None if slots is None else config.writer.params.get(slots)
    return Candidate(label, count, config.writer, config.reader)
