"""Trainings in processes that are killed, or that train together, for test_training_parts.

A program of its own, so that torch is imported once and every process begins as a fork of one that has not trained.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ragged
import yaml
from support import SOAK

from memwrite.training.run import train

# What a training does to its folder, as Python's audit hooks call it.
_TOUCHES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")

# How many of them each attempt lives to see: it ends between steps, within checkpoints, and while a stage is saved.
KILLS = (14, 30, 40)
#: In a soak, so many more that come soon after each other.
MORE_KILLS = tuple(3 + 5 * turn % 14 for turn in range(17)) if SOAK > 1 else ()


def forked(config: Path, overrides: Sequence[str], kill: int | None, env: Mapping[str, str]) -> int:
    """Train in a new process, which is killed at the `kill`-th change of its folder; returns its id."""
    if child := os.fork():
        return child
    os.environ.update(env)
    out, left = str(config.parent), kill

    def touched(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if left is None or event not in _TOUCHES or not str(args[0]).startswith(out):
            return
        if event == "open" and args[1] == "r":
            return
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(touched)
        train(config, overrides)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(config: Path, overrides: Sequence[str], kill: int | None = None) -> None:
    """Train in two processes as torchrun starts them; with `kill`, the first is killed, and then the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    children = [
        forked(
            config,
            overrides,
            kill if rank == "0" else None,
            {**shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    code = ended(children[0])
    assert code == (0 if kill is None else -signal.SIGKILL), code
    if kill is not None:
        os.kill(children[1], signal.SIGKILL)
    assert kill is not None or ended(children[1]) == 0


def main(folder: Path) -> None:
    """Everything that the tests look at, in `folder`."""
    ragged.install()
    _killed_over_and_over(folder)
    _two_processes(folder)


def _killed_over_and_over(folder: Path) -> None:
    config = folder / "staged.yaml"
    config.write_text(yaml.safe_dump(staged(folder)))
    assert ended(forked(config, [f"training.out={folder / 'whole'}"], None, {})) == 0
    for kill in (*KILLS, *MORE_KILLS):
        code = ended(forked(config, [f"training.out={folder / 'killed'}"], kill, {}))
        assert code == -signal.SIGKILL, code
    assert ended(forked(config, [f"training.out={folder / 'killed'}"], None, {})) == 0


def _two_processes(folder: Path) -> None:
    config = folder / "parts.yaml"
    config.write_text(yaml.safe_dump(ragged.described(folder / "one", every=2)))
    assert ended(forked(config, [], None, {})) == 0
    shared = [f"training.out={folder / 'two'}", "training.accumulate=2"]
    together(config, shared)
    shared[0] = f"training.out={folder / 'two_killed'}"
    together(config, shared, kill=20)
    assert (folder / "two_killed" / "checkpoints").is_dir()
    together(config, shared)


def staged(folder: Path) -> dict[str, Any]:
    """Three stages, the last one by LoRA and until something is learnt, with dropout."""
    stages = [
        ["writer.name=full-context", "reader.name=key-value"],
        ["task.params.advance=0.5"],
        ["backbone.trainable=false", "backbone.lora_rank=2", "training.until=0.01"],
    ]
    described = ragged.described(
        folder / "run", steps=4, every=2, stages=[{"overrides": stage} for stage in stages]
    )
    del described["backbone"]["params"]["resid_pdrop"]
    return described


if __name__ == "__main__":
    main(Path(sys.argv[1]))
