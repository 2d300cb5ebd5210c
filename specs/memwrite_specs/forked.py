"""Processes that share only a copy of the past with this one, and a record of what such a process does."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from memwrite.errors import PositionsExceeded
from memwrite_specs.law import LawBroken, NotRun

_FORK = multiprocessing.get_context("fork")


class NoReply(LawBroken):
    """The other process ended, or took too long."""


class ForkedProcess:
    """A process that is forked when this is made and answers one question later: nothing in between reaches it.

    Args:
        answer: runs in that process; takes the question, gives tensors, and may raise LawBroken.
        seconds: to wait for the answer.

    Raises:
        LawBroken: in `call`, if `answer` raised.
        NotRun: in `call`, if `answer` raised it or ran out of the model's positions.
        NoReply: in `call`, if there was none in time.
    """

    def __init__(
        self, answer: Callable[[bytes], Mapping[str, Tensor]], seconds: float = 120.0
    ) -> None:
        self._seconds = seconds
        self._ours, theirs = _FORK.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            self._process = _FORK.Process(target=_serve, args=(theirs, answer))
            self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    def call(self, question: bytes = b"") -> dict[str, Tensor]:
        """Ask the question and return the answer. No object crosses, only bytes."""
        self._ours.send_bytes(question)
        if not self._ours.poll(self._seconds):
            raise NoReply(f"another process gave no answer within {self._seconds:.0f} seconds")
        try:
            status, *rest = self._ours.recv_bytes()
        except EOFError:
            raise NoReply("another process ended without an answer") from None
        if status:
            raise (LawBroken, NotRun)[status - 1](bytes(rest).decode())
        return safetensors.torch.load(bytes(rest))


def _serve(pipe: Connection, answer: Callable[[bytes], Mapping[str, Tensor]]) -> None:
    faulthandler.disable()  # whoever waits for us is told of a crash
    torch.set_num_threads(1)  # the threads of the process we come from are not ours
    try:
        question = pipe.recv_bytes()
    except EOFError:
        return
    try:
        found = {name: t.detach().contiguous().clone() for name, t in answer(question).items()}
        reply = b"\0" + safetensors.torch.save(found)
    except (NotRun, PositionsExceeded) as error:
        reply = b"\2" + str(error).encode(errors="backslashreplace")
    except LawBroken as error:
        reply = b"\1" + str(error).encode(errors="backslashreplace")
    except Exception as error:
        sentence = f"in another process: {type(error).__name__}: {error}"
        reply = b"\1" + sentence.encode(errors="backslashreplace")
    pipe.send_bytes(reply)


#: Audit events of Python itself, and of reading; any other one is something that a memory has no business with.
_HARMLESS = (
    "open", "import", "compile", "exec", "marshal.", "object.__", "sys._getframe", "code.__new__", "function.__new__",
    "builtins.id", "gc.", "os.listdir", "os.scandir", "cpython.", "sys.unraisablehook", "sys.excepthook", "array.__new__",
    "pickle.find_class", "os.walk", "os.fwalk", "glob.",
)  # fmt: skip


@contextmanager
def side_effects_recorded(found: list[str], secrets: list[str]) -> Iterator[None]:
    """Add to `found` what this process does to files, environment, network and other processes meanwhile, and whether it
    prints one of `secrets`; anything else it may print.

    For processes that are about to end: what watches cannot be taken away again.
    """
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open":
            path, _, flags = args
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                found.append(f"opened the file '{path}' for writing")
        elif not event.startswith(_HARMLESS):
            found.append(f"did {event} {' '.join(str(arg)[:80] for arg in args[:2])}".strip())

    with tempfile.TemporaryFile() as printed:
        for descriptor in (1, 2):
            os.dup2(printed.fileno(), descriptor)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
        before, place, written = dict(os.environ), os.getcwd(), _bytes_written()
        threads = threading.active_count()
        sys.addaudithook(hook)
        try:
            yield
        finally:
            watching = False
        sys.stdout.flush()
        said = os.pread(printed.fileno(), os.fstat(printed.fileno()).st_size, 0)
        more = _bytes_written() - written - len(said)
    changed = {name for name, _ in set(before.items()) ^ set(os.environ.items())}
    found += [f"changed the environment variable '{name}'" for name in sorted(changed)]
    if os.getcwd() != place:
        found.append("changed the working directory")
    if threading.active_count() > threads:
        found.append("started a thread that goes on")
    if any(secret.encode() in said for secret in secrets):
        found.append("printed the context")
    if more > 0 and not found:
        found.append(f"wrote {more} bytes somewhere")


def _bytes_written() -> int:
    """Return how many bytes this process has written into files and pipes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar")), 0)
