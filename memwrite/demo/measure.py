"""The demo's measurements: one text written into fewer and fewer vectors, beside both baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memwrite.config import Config, PartConfig, load_config, part_config, to_dict
from memwrite.errors import ConfigError
from memwrite.evaluation.machine import machine
from memwrite.evaluation.recall import Recall, recall
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite.utils.progress import track

PARAGRAPH = Path(__file__).with_name("paragraph.txt")
STATE_FILE = "doc.safetensors"
#: A text counts as recalled from this share of bytes right on.
RECALLED = 0.99


@dataclass(frozen=True)
class Point:
    """One write and its recall.

    Attributes:
        vectors: M; 0 for a baseline.
        state_bytes: measured from the tensors.
        state_floats: likewise.
        seconds: the write took.
        accuracy: per step, the share of tokens that were the model's first choice, from 0 to 1.
        recall: what came back.
    """

    vectors: int
    state_bytes: int
    state_floats: int
    seconds: float
    accuracy: list[float]
    recall: Recall


@dataclass(frozen=True)
class Results:
    """All that the demo measured; bits are for the whole text."""

    text: str
    tokens: int
    main: Recall
    points: list[Point]
    no_memory: Point
    full_context: Point
    config: Config

    @property
    def text_bytes(self) -> int:
        """Bytes of the original."""
        return len(self.text.encode())

    @property
    def best(self) -> Point:
        """The write into the most vectors, which is the config's own."""
        return self.points[-1]

    def bits_gained(self, point: Point) -> float:
        """Bits that this memory saves when the text is encoded with the model."""
        return self.no_memory.recall.bits - point.recall.bits

    @property
    def fewest(self) -> Point | None:
        """The write into the fewest vectors that still recalls the text."""
        return next((p for p in self.points if p.recall.bytes_right >= RECALLED), None)

    def lines(self) -> list[str]:
        """The figures as sentences."""
        best, fewest = self.best, self.fewest
        gained = self.bits_gained(best)
        lines = [
            f"bytes right: {best.recall.bytes_right:.1%} from {best.vectors} vectors, written in "
            f"{len(best.accuracy)} steps, {best.seconds:.1f} s",
            f"size: state {best.state_bytes:,} bytes, KV cache {self.full_context.state_bytes:,} bytes",
            f"bits gained: {gained:.0f} of {self.no_memory.recall.bits:.0f} "
            f"({gained / best.state_floats:.3f} bits per state float)",
            f"baselines, bytes right: no memory {self.no_memory.recall.bytes_right:.1%}, full context "
            f"{self.full_context.recall.bytes_right:.1%} ({self.bits_gained(self.full_context):.0f} bits "
            f"gained)",
        ]
        for point in self.points:
            lines.append(
                f"{point.vectors:>4} vectors: {point.recall.bytes_right:6.1%} of the bytes, "
                f"{self.bits_gained(point):5.0f} bits gained, {len(point.accuracy):4d} steps, "
                f"{point.seconds:5.1f} s"
            )
        lines.append(self.limit(fewest))
        return lines

    def limit(self, fewest: Point | None) -> str:
        """How many bytes one vector holds, and what the measurement says about the limit."""
        if fewest is None:
            return f"No write recalled {RECALLED:.0%}: more vectors or more steps are needed."
        rate = f"{self.text_bytes / fewest.vectors:.0f} bytes per vector"
        smaller = [p for p in self.points if p.vectors < fewest.vectors]
        if not smaller:
            return f"{rate}; no limit was met."
        last = smaller[-1]
        return (
            f"{rate} at {fewest.vectors} vectors. What limits it: with {last.vectors} the descent still "
            f"stood at {last.accuracy[-1]:.0%} of the tokens after all {len(last.accuracy)} steps, "
            f"{self.bits_gained(last) / last.state_floats:.2f} bits per float in place."
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data, with the config and the machine."""
        return {
            "text": self.text,
            "text_bytes": self.text_bytes,
            "tokens": self.tokens,
            "recalled": self.main.text,
            "bytes_right": self.main.bytes_right,
            "state_bytes": self.best.state_bytes,
            "kv_cache_bytes": self.full_context.state_bytes,
            "bits_gained": self.bits_gained(self.best),
            "bits_per_state_float": self.bits_gained(self.best) / self.best.state_floats,
            "writes": [
                {**to_dict(point), "bits_gained": self.bits_gained(point)} for point in self.points
            ],
            "no_memory": to_dict(self.no_memory),
            "full_context": to_dict(self.full_context),
            "config": to_dict(self.config),
            "machine": machine(),
        }


def measure(source: str | Path, text: str, folder: Path) -> Results:
    """Write `text` with the config and with fewer vectors, and read it back each time.

    Args:
        source: YAML config of a writer that declares its number of slots.
        text: the original.
        folder: the state file of the config's own write goes here.

    Raises:
        ConfigError: the config cannot be built.
    """
    config = load_config(source)
    writer = registry().writer(config.writer.name)
    if writer.slots is None:
        raise ConfigError(
            f"the demo varies the number of memory vectors, and the writer '{writer.name}' has no such parameter: "
            f"give a config of another writer, as in --config configs/cram.yaml"
        )
    params: Any = part_config(writer.config, config.writer.params, "writer.params")
    most = getattr(params, writer.slots)
    points = []
    for vectors in track([*_halvings(most)], "demo", "write"):
        params = {**config.writer.params, writer.slots: vectors}
        memory = Memory.from_config(replace(config, writer=PartConfig(config.writer.name, params)))
        points.append(_write(memory, text, folder / STATE_FILE, vectors))
    baselines = [
        Memory.from_config(replace(config, writer=PartConfig(writer), reader=PartConfig(reader)))
        for writer, reader in (("no-memory", "no-memory"), ("full-context", "key-value"))
    ]
    no_memory, full_context = (_write(memory, text, None, 0) for memory in baselines)
    tokens = int(baselines[0].encode(text).lengths)
    return Results(text, tokens, points[-1].recall, points, no_memory, full_context, config)


def _halvings(most: int) -> Sequence[int]:
    return [most // 2**power for power in range(most.bit_length() - 1, -1, -1)]


def _write(memory: Memory, text: str, file: Path | None, vectors: int) -> Point:
    begun = time.perf_counter()
    written = memory.write(text)
    seconds = time.perf_counter() - begun
    reader, state = memory, written.state
    if file is not None:
        memory.save(state, file)
        reader, state = Memory.load(file)
    accuracy = written.trace["accuracy"][:, 0].tolist() if "accuracy" in written.trace else []
    floats = max(state.floats, 1)
    return Point(vectors, state.nbytes, floats, seconds, accuracy, recall(reader, state, text))
