"""What kvpress (github.com/NVIDIA/kvpress) keeps of passages, beside memwrite's writers of the same scores.

    python benchmarks/kvpress_rows.py write passages.json --backbone smollm2-135m --texts book.txt
    PYTHONPATH=. KVPRESS/bin/python benchmarks/kvpress_rows.py press passages.json

kvpress asks for another version of transformers, so it has an environment of its own, KVPRESS: `write` runs in memwrite's and
`press` in that one. `write` takes the passages of `memwrite bench language` and measures our writers with kvpress's settings. `press` compresses the same passages by kvpress's presses as its own pipeline does, predicts the text behind
them from its cache, one passage at a time, and prints the value kept.
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F

from memwrite.evaluation.value_kept import value_kept

WINDOW = 8
#: Press, its settings, our writer of the same score, and the settings that make it the same; None for no such writer.
PRESSES: tuple[tuple[str, dict[str, Any], str | None, dict[str, Any]], ...] = (
    ("ObservedAttentionPress", {}, "h2o", {"value_norm": False, "sinks": 0, "queries": None}),
    ("SnapKVPress", {"window_size": WINDOW}, "snapkv", {"window": WINDOW, "recent": WINDOW, "sinks": 0}),
    ("ExpectedAttentionPress", {}, "expected-attention", {}),
    ("KeyDiffPress", {}, "keydiff", {"sinks": 0}),
    ("KnormPress", {}, "knorm", {"sinks": 0}),
    ("StreamingLLMPress", {}, "streaming-llm", {"rewind": False}),
    ("KVzipPress", {}, "kvzip", {"sinks": 4}),
    ("AdaKVPress(SnapKVPress)", {"window_size": WINDOW}, None, {}),
    ("AdaKVPress(ExpectedAttentionPress)", {}, None, {}),
)  # fmt: skip


@click.group()
def main() -> None:
    """Compare kvpress with memwrite on the same passages."""


@main.command()
@click.argument("out", type=Path)
@click.option("--backbone", required=True)
@click.option("--texts", multiple=True, required=True)
@click.option("--slots", multiple=True, type=int, default=(16, 32))
@click.option("--contexts", default=24)
@click.option("--context", default=160)
@click.option("--length", default=96)
def write(
    out: Path,
    backbone: str,
    texts: Sequence[str],
    slots: Sequence[int],
    contexts: int,
    context: int,
    length: int,
) -> None:
    """Measure our writers, and leave passages and bits in OUT."""
    from memwrite import Memory
    from memwrite.evaluation.value_kept import predict
    from memwrite.state import Tokens
    from memwrite.tasks.language import LanguageConfig, LanguageTask

    beside = Memory.from_config({"backbone": {"path": backbone}})
    config = LanguageConfig(
        [*texts], held_out=1.0, context=context, length=length, examples=contexts
    )
    found = LanguageTask(config, beside.backbone.tokenizer).evaluation()
    examples = [found[index] for index in range(len(found))]
    before = [example.context for example in examples]
    behind = [example.queries[0] for example in examples]

    def bits(name: str, params: dict[str, Any]) -> list[float]:
        parts: dict[str, Any] = {"writer": {"name": name, "params": params}}
        if name == "no-memory":
            parts["reader"] = {"name": name}
        memory = Memory.from_config({"reader": {"name": "key-value"}, **parts}, (), beside.backbone)
        saved = []
        with torch.no_grad():
            for passage, text in zip(before, behind, strict=True):
                state = memory.write(Tokens.from_rows([passage])).state
                saved.append(sum(predict(memory, state, [text])[0].bits))
        click.echo(f"{name} {params}: {sum(saved):.1f} bits", err=True)
        return saved

    ours: dict[str, list[float]] = {}
    for name, _, writer, same in PRESSES:
        for count in slots:
            if writer is not None:
                ours[f"{name} {count}"] = bits(writer, {**same, "slots": count})
    saved = {
        "model": str(beside.backbone.model.config.name_or_path),
        "opening": [*beside.backbone.tokenizer.opening],
        "contexts": before,
        "texts": behind,
        "slots": [*slots],
        "without": bits("no-memory", {}),
        "visible": bits("full-context", {}),
        "ours": ours,
    }
    out.write_text(json.dumps(saved))


@main.command()
@click.argument("passages", type=Path)
def press(passages: Path) -> None:
    """Compress the PASSAGES of `write` with kvpress, and print both."""
    given = json.loads(passages.read_text())
    kvpress, transformers = map(importlib.import_module, ("kvpress", "transformers"))
    folder = _without_template(Path(given["model"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.name)
    # kvpress reads a context as it stands where the tokenizer has no chat template, as this task means it.
    assert tokenizer.chat_template is None
    before, behind = (
        [torch.tensor([ids]) for ids in given[name]] for name in ("contexts", "texts")
    )

    def load(attention: str) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder.name, dtype=torch.float32, attn_implementation=attention
        )
        return model.eval()

    def bits(model: Any, make: Callable[[int], Any]) -> list[float]:
        saved = []
        for context, text in zip(before, behind, strict=True):
            cache, chosen = transformers.DynamicCache(), make(context.shape[1])
            with torch.no_grad():
                with nullcontext() if chosen is None else chosen(model):
                    model.model(input_ids=context, past_key_values=cache)
                places = context.shape[1] + torch.arange(text.shape[1])
                logits = model(
                    input_ids=text, past_key_values=cache, position_ids=places[None]
                ).logits
            saved.append(_bits(logits[0], text[0]))
        return saved

    sdpa, eager = load("sdpa"), load("eager")
    whole = bits(sdpa, lambda length: None)
    off = max(abs(a - b) for a, b in zip(whole, given["visible"], strict=True))
    print(
        f"the whole context in sight: the environments differ by at most {off:.5f} bits a passage"
    )
    print(f"{'press':<36}{'slots':>6}{'kvpress':>24}{'ours':>24}")
    for name, params, _, _ in PRESSES:
        model = eager if name == "ObservedAttentionPress" else sdpa
        for slots in given["slots"]:
            try:
                theirs = bits(model, lambda length: _press(kvpress, name, params, slots, length))  # noqa: B023
            except (ValueError, AssertionError) as error:
                print(f"{name:<36}{slots:>6} not measured: {error}")
                continue
            ours = given["ours"].get(f"{name} {slots}")
            rows = [theirs] if ours is None else [theirs, ours]
            cells = [_cell(given["without"], row, given["visible"]) for row in rows]
            print(f"{name:<36}{slots:>6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def _press(kvpress: Any, name: str, params: dict[str, Any], slots: int, length: int) -> Any:
    """Make a press that keeps so many slots of a context."""
    outer, _, inner = name.rstrip(")").partition("(")
    removed = 1 - (slots + 0.5) / length  # kvpress rounds down what is kept
    made = getattr(kvpress, inner or outer)(compression_ratio=removed, **params)
    return getattr(kvpress, outer)(made) if inner else made


def _bits(logits: torch.Tensor, text: torch.Tensor) -> float:
    """Return the bits of a text from its second token on."""
    return float(F.cross_entropy(logits[:-1].double(), text[1:], reduction="sum") / math.log(2))


def _cell(without: list[float], row: list[float], visible: list[float]) -> str:
    kept = value_kept(without, row, visible)
    if kept is None or kept.interval is None:
        return "-"
    return f"{kept.mean:.3f} ({kept.interval[0]:.2f} to {kept.interval[1]:.2f})"


def _without_template(model: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that links to a model's files, all but its chat template."""
    folder = tempfile.TemporaryDirectory()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (Path(folder.name) / file.name).symlink_to(file.resolve())
    return folder


if __name__ == "__main__":
    main()
