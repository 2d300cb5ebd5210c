"""The folder of a run while it is not finished: who may train in it, and what is left over in the end."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import cast

import yaml

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import Config, load_config, to_dict
from memwrite.errors import ConfigError
from memwrite.training.stages import LOG, STAGES
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.extras import extra

with extra("train"):
    import accelerate  # noqa: F401  transformers' trainer needs it, and would not name it
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import get_last_checkpoint

REQUESTED, RECIPE = "requested.yaml", "recipe.yaml"
CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer"

# What a kill leaves of files that were being written.
_TEMPORARY = (".saving.*", f".{TOKENIZER}", ".*.yaml.*", ".log.jsonl.*", ".weights.safetensors.*")


def finished(out: Path) -> bool:
    """Say whether the run is complete; leftovers of its training may still be there."""
    return (out / CONFIG_FILE).exists()


def claim(config: Config, write: bool) -> None:
    """Make the run folder, or find an unfinished run of this very config in it.

    Args:
        config: of the whole training, as requested.
        write: whether to leave a mark, which one of several processes does.

    Raises:
        ConfigError: the folder holds another or a finished run.
    """
    out, text = Path(config.training.out), yaml.safe_dump(to_dict(config), sort_keys=False)
    make_folder(out)
    mark = out / REQUESTED
    same = False
    with suppress(ConfigError):  # another process may be removing it
        same = load_config(mark) == config
    marked = same or mark.exists()
    if marked and not same and any(out.rglob(LOG)):
        raise ConfigError(
            f"'{out}' holds an unfinished run of another configuration ({mark}): set training.out to "
            f"another folder"
        )
    if finished(out) and not marked:
        raise ConfigError(
            f"'{out}' already holds a finished run: set training.out to another folder"
        )
    if write:
        if marked and not same:  # which failed before it trained
            shutil.rmtree(out / STAGES, ignore_errors=True)
            tidy(out, staged=False)
        write_bytes(mark, text.encode())


def last_checkpoint(out: Path) -> str | None:
    """Return the newest complete checkpoint, and remove those begun after it."""
    folder = out / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    while (newest := get_last_checkpoint(folder)) is not None:
        try:
            json.loads((Path(newest) / TRAINER_STATE_NAME).read_bytes())  # written last
        except (OSError, ValueError):
            shutil.rmtree(newest)
        else:
            break
    return cast("str | None", newest)


def tidy(out: Path, staged: bool) -> None:
    """Remove from the folder of a finished run what only its training needed.

    Args:
        out: the folder.
        staged: whether to keep the requested config, as a recipe that repeats the whole.
    """
    for name in (CHECKPOINTS, TOKENIZER, *_TEMPORARY):
        for leftover in out.glob(name):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
    if (mark := out / REQUESTED).exists():
        if staged:
            mark.replace(out / RECIPE)
        else:
            mark.unlink()
