"""Calls that mean something else than they do are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MODELS

from memwrite import Memory
from memwrite.errors import ConfigError, InputError
from memwrite.session import Session

MEMORY = Memory.from_config(
    {
        "backbone": MODELS["llama"],
        "writer": {"name": "forward", "params": {"slots": 2}},
        "reader": {"name": "prefix"},
    }
)
STATE = MEMORY.write("a boat").state
MESSAGES: Any = [{"role": "user", "content": "hello"}]
UNMEANT: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: MEMORY.write(b"a boat"), "got a bytes"),  # type: ignore[arg-type]
    "numbers": (lambda: MEMORY.write([1, 2]), "holds a int"),  # type: ignore[list-item]
    "none": (lambda: MEMORY.write(None), "got a NoneType"),  # type: ignore[arg-type]
    "messages as a context": (lambda: MEMORY.write(MESSAGES), "not chat messages"),
    "messages": (lambda: MEMORY.ask(STATE, MESSAGES), "not chat messages: use a session"),
    "one message": (lambda: MEMORY.ask(STATE, MESSAGES[0]), "got a dict"),
    "a session of a path": (lambda: Session("run"), "needs a Memory"),  # type: ignore[arg-type]
    "a session from a path": (lambda: Session(MEMORY, "a.st"), "session.load"),  # type: ignore[arg-type]
    "numbers said": (lambda: Session(MEMORY).append(3), "a text or chat messages"),  # type: ignore[arg-type]
    "a message said": (lambda: Session(MEMORY).ask(MESSAGES[0]), "a text or chat messages"),
    "texts said": (lambda: Session(MEMORY).ask(["a"]), "{'role': ..., 'content': ...}"),  # type: ignore[list-item]
    "parts as content": (
        lambda: Session(MEMORY).ask([{"role": "user", "content": [{"type": "text"}]}]),  # type: ignore[dict-item]
        "{'role': ..., 'content': ...}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNMEANT)
def test_one_sentence(what: str) -> None:
    act, message = UNMEANT[what]
    with pytest.raises(InputError) as caught:
        act()
    assert message in str(caught.value)


def test_an_open_file_is_no_context(tmp_path: Path) -> None:
    """Its lines would become memories of their own."""
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    with (
        (tmp_path / "two.txt").open() as file,
        pytest.raises(InputError, match="TextIOWrapper: read a file first"),
    ):
        MEMORY.write(file)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("writer", "reader"), [("forward", "prefix"), ("full-context", "key-value"), ("delta", "lora")]
)
@pytest.mark.filterwarnings("ignore:writer 'delta'")
def test_a_memory_in_half_precision_is_used(dtype: torch.dtype, writer: str, reader: str) -> None:
    """Its backbone is cast; states and what makes them stay as precise as they were."""
    memory = Memory.from_config(
        {"backbone": MODELS["llama"], "writer": {"name": writer}, "reader": {"name": reader}}
    )
    before = [p.clone() for m in (memory.writer, memory.reader) for p in m.parameters()]
    assert memory.to(dtype) is memory
    assert memory.backbone.info.dtype == dtype
    after = [p for m in (memory.writer, memory.reader) for p in m.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
    session = Session(memory)
    session.append("a boat")
    session.ask("hello", max_new_tokens=2)


def test_states_of_another_dtype_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"build it anew with backbone\.dtype=float64"):
        MEMORY.double()
    assert MEMORY.backbone.info.dtype == torch.float32
