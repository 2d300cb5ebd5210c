"""Which memory a command builds: that of a config or a run folder, or a language model with a writer and a reader."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

import click

#: What `Memory.from_config` takes.
Source: TypeAlias = str | Mapping[str, Any]

# A hub id or a short name.
_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")


class NotAConfig(click.ClickException):
    """A language model was given where a config or a run folder belongs; the message has a line to copy."""

    exit_code = 2


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says which memory a command builds, and hand it on as `source` and `overrides`."""

    @wraps(command)
    def called(
        words: tuple[str, ...],
        model: str | None,
        writer: str | None,
        reader: str | None,
        **rest: Any,
    ) -> None:
        source: Source
        if model is None:
            source, overrides = _config(words, writer or reader)
        else:
            source, overrides = _described(model, writer, reader), words
            if words and "=" not in words[0]:
                raise click.UsageError(f"give either a config ('{words[0]}') or --model, not both")
        command(source=source, overrides=overrides, **rest)

    for option in (
        click.option("--reader", help="With --model: by default the first that reads its states."),
        click.option("--writer", help="With --model: its name; `memwrite plugins` lists them."),
        click.option(
            "--model",
            help="In place of CONFIG: a model's folder, a GGUF file, smollm2-135m or a hub id.",
        ),
        click.argument("words", nargs=-1, metavar="[CONFIG] [OVERRIDES]..."),
    ):
        called = option(called)
    return called


def _config(words: tuple[str, ...], part: str | None) -> tuple[str, tuple[str, ...]]:
    if part is not None:
        raise click.UsageError(
            "--writer and --reader go with --model; in a config writer.name=NAME sets another"
        )
    if not words or "=" in words[0]:
        raise click.UsageError("give a config or a run folder, or a language model with --model")
    check_config(words[0])
    return words[0], words[1:]


def _described(model: str, writer: str | None, reader: str | None) -> dict[str, Any]:
    from memwrite.plugins.registry import registry

    plugins = registry()
    if writer is None:
        names = ", ".join(sorted(plugin.name for plugin in plugins.writers.all()))
        raise click.UsageError(f"--model needs a --writer (known: {names})")
    reader = reader or plugins.reader_for(writer).name
    return {"backbone": {"path": model}, "writer": {"name": writer}, "reader": {"name": reader}}


def check_config(source: str) -> None:
    """Refuse a language model in place of a config, before anything is imported that takes time.

    Raises:
        NotAConfig: it is the folder or file of a model, or no file and perhaps the name of one.
    """
    path = Path(source)
    named = _NAME.fullmatch(source) and path.suffix not in (".yaml", ".yml")
    if path.is_dir() and not (path / "config.yaml").is_file() and (path / "config.json").is_file():
        problem = f"'{source}' is the folder of a language model, not a config or a run folder."
    elif path.suffix == ".gguf" or source.startswith("package:"):
        problem = f"'{source}' is a language model, not a config or a run folder."
    elif not path.exists() and named:
        problem = (
            f"there is no config or run folder '{source}' (`memwrite train CONFIG` makes run folders). "
            f"Is it the name of a language model?"
        )
    else:
        return
    command = click.get_current_context().command_path
    raise NotAConfig(
        f"{problem} Then give it as such, with a writer (`memwrite plugins` lists them) and the other options as they "
        f"are:\n\n{command} --model {shlex.quote(source)} --writer full-context"
    )
