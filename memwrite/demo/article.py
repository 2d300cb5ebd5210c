"""The demo on a pretrained model: an article written by several writers, dropped, and read in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memwrite.backbones.segmentation import sentences
from memwrite.backbones.sources import NAMED, is_local, model_folder
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig, Config, PartConfig, load_config
from memwrite.demo.reading import READINGS, TASK, StateReading
from memwrite.errors import ConfigError, InputError, MemwriteError
from memwrite.evaluation.value_kept import value_kept
from memwrite.memory import Memory
from memwrite.plugins.registry import registry
from memwrite.utils.atomic import write_bytes
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.extras import MissingExtra
from memwrite.utils.progress import track

#: Charles Darwin, On the Origin of Species (London: John Murray, 1859), from the introduction; in the public domain.
ARTICLE = Path(__file__).with_name("article.txt")
QUESTION = "What is Mr. Wallace studying?"
#: Share of an article that is written; the rest is what goes on behind it.
WRITTEN = 0.8


@dataclass(frozen=True)
class Kept:
    """One memory of the article.

    Attributes:
        name: of the memory, for people.
        state_bytes: measured from the tensors.
        seconds: the write took.
        cpu_seconds: processor time of the write, of all threads.
        value: value kept, from one passage behind one article; None where the article is worth nothing.
        reading: what another process read from the state file.
    """

    name: str
    state_bytes: int
    seconds: float
    cpu_seconds: float
    value: float | None
    reading: StateReading


@dataclass(frozen=True)
class ArticleResults:
    """All that was measured on one article.

    Attributes:
        model: `backbone.path`.
        article: what was written, and dropped.
        following: the text behind it.
        tokens: of the article.
        question: that was asked.
        kept: no memory, then one row for each writer, then the whole KV cache.
    """

    model: str
    article: str
    following: str
    tokens: int
    question: str
    kept: list[Kept]

    def lines(self) -> list[str]:
        """Return a table for people, and what each memory says."""
        heads = ["", "bytes", "of KV cache", "value kept", "recited", "write s", "CPU s"]
        columns = zip(heads, *(self.cells(kept) for kept in self.kept), strict=True)
        padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
        lines = ["   ".join(row).rstrip() for row in zip(*padded, strict=True)]
        for title, said in (("goes on", "continuation"), ("answers", "answer")):
            lines += ["", f"how the model {title}:"]
            lines += [f"  {k.name}: {_line(getattr(k.reading, said))}" for k in self.kept]
        return lines

    def cells(self, kept: Kept) -> list[str]:
        """Return the figures of one memory as the tables show them."""
        value = "-" if kept.value is None else f"{kept.value:.2f}"
        return [
            kept.name,
            f"{kept.state_bytes:,}",
            f"{kept.state_bytes / self.kept[-1].state_bytes:.1%}",
            value,
            f"{kept.reading.recited:.0%}",
            f"{kept.seconds:.1f}",
            f"{kept.cpu_seconds:.1f}",
        ]


def _line(text: str) -> str:
    return " ".join(text.split())


def available(model: str) -> str:
    """Say why a model cannot be had on this machine; "" where it can. Nothing is downloaded.

    A model that nobody has installed has no more than a reason; one that is there and broken is an error later on.
    """
    if not is_local(model):
        return f"the model '{model}' is not on this machine"
    if model not in NAMED:
        return ""
    try:
        model_folder(model)
    except (ConfigError, MissingExtra) as error:
        return str(error)
    return ""


def split(text: str) -> tuple[str, str]:
    """Cut an article into what is written and what goes on behind it, between two sentences.

    Raises:
        InputError: it has fewer than two sentences.
    """
    pieces = sentences(text.strip())
    if len(pieces) < 2:
        raise InputError("the article needs two sentences at least: one to write, and one to go on")
    count, length = 0, 0
    while count < len(pieces) - 1 and length < WRITTEN * len(text):
        length += len(pieces[count])
        count += 1
    return "".join(pieces[:count]), "".join(pieces[count:])


@tuned_cpu()
def remember(
    model: str, configs: Sequence[str], text: str, question: str, folder: Path
) -> ArticleResults:
    """Write an article by each config's writer, and read the state files in a new process.

    Args:
        model: `backbone.path`, in place of the configs' own.
        configs: YAML files, each with a writer and a reader.
        text: the article, of which the last sentences are kept back.
        question: is asked of each memory.
        folder: where the state files go.

    Raises:
        ConfigError: the model or a config cannot be built.
        InputError: the article is too short.
        MemwriteError: the other process failed.
    """
    article, following = split(text)
    backbone = Memory.from_config({"backbone": {"path": model}}).backbone
    if len(backbone.tokenizer.encode(following)) < 2:
        raise InputError(f"the article's last sentence, '{following}', is too short to predict")
    written: list[tuple[str, str, int, float, float]] = []
    for memory in track(_memories(model, configs, backbone), "article", "write"):
        begun, cpu = time.perf_counter(), time.process_time()
        state = memory.write(article).state
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        file = folder / f"article-{len(written)}.safetensors"
        memory.save(state, file)
        written.append((_name(memory), file.name, state.nbytes, seconds, cpu))
    readings = _read(folder, [row[1] for row in written], article, following, question)
    without, visible = readings[0].bits, readings[-1].bits
    kept = []
    for (name, _, size, seconds, cpu), reading in zip(written, readings, strict=True):
        value = value_kept([without], [reading.bits], [visible])
        mean = None if value is None else value.mean
        kept.append(Kept(name, size, seconds, cpu, mean, reading))
    tokens = len(backbone.tokenizer.encode(article))
    return ArticleResults(model, article, following, tokens, question, kept)


def _memories(model: str, configs: Sequence[str], backbone: TransformersBackbone) -> list[Memory]:
    """Return a memory for each writer, between the two baselines."""

    def built(writer: PartConfig, reader: PartConfig) -> Memory:
        return Memory.from_config(
            Config(BackboneConfig(path=model), writer, reader), backbone=backbone
        )

    own = [load_config(path) for path in configs]
    return [
        built(PartConfig("no-memory"), PartConfig("no-memory")),
        *(built(config.writer, config.reader) for config in own),
        built(PartConfig("full-context"), PartConfig("key-value")),
    ]


def _name(memory: Memory) -> str:
    """Return the writer's name, with its number of slots where it declares one."""
    part = memory.config.writer
    slots = part.params.get(registry().writer(part.name).slots or "")
    return part.name if slots is None else f"{part.name}, {slots} slots"


def _read(
    folder: Path, files: Sequence[str], article: str, following: str, question: str
) -> list[StateReading]:
    """Read the state files in a new process, which is told the texts only to score what it reads."""
    task = {"files": files, "article": article, "following": following, "question": question}
    write_bytes(folder / TASK, json.dumps(task).encode())
    command = [sys.executable, "-m", "memwrite.demo.reading", str(folder)]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise MemwriteError(
            f"the process that reads the demo's state files ended with exit code {done.returncode}: "
            f"{' '.join(command)} shows why"
        )
    return [StateReading(**reading) for reading in json.loads((folder / READINGS).read_bytes())]
