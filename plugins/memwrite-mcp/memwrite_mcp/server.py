"""The tools: write a text into a memory, ask it, write on, forget it, list what there is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from threading import Lock
from typing import Annotated, ParamSpec, TypeVar

import torch
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

import memwrite
from memwrite.errors import MemwriteError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores import Entry, Store

P = ParamSpec("P")
T = TypeVar("T")

Key = Annotated[str, Field(description="Names a memory, as in 'trips/2026'.")]
Lifetime = Annotated[
    float | None,
    Field(gt=0, le=3.2e9, description="Seconds until it is gone; by default it stays."),
]

_INSTRUCTIONS = (
    "Memories that outlive this conversation. A text that is written is read once, by another model, into a state of fixed "
    "size, and thrown away; that model answers questions from the state alone, so answers may be wrong or incomplete. Ask "
    "short, self-contained questions."
)


class Written(BaseModel):
    """What was written: tokens of text into so many bytes of state."""

    key: str
    tokens: int
    state_bytes: int


class Listed(BaseModel):
    """A memory, as it is listed; times are of ISO 8601."""

    key: str
    created: str
    expires: str | None


def create_server(memory: Memory, store: Store, max_tokens: int = 128) -> MCPServer:
    """Return a server of the memories in `store`.

    Args:
        memory: writes and reads them.
        store: keeps them.
        max_tokens: of an answer.
    """
    server = MCPServer("memwrite", version=memwrite.__version__, instructions=_INSTRUCTIONS)
    # Calls come in several threads, and a text that is written must not be lost to another that is written meanwhile.
    changing = Lock()

    @server.tool()
    @_in_a_sentence
    def write(key: Key, text: str, expires_in: Lifetime = None) -> Written:
        """Write a text into a new memory, in place of any that has this key."""
        lifetime = None if expires_in is None else timedelta(seconds=expires_in)
        with changing:
            return _kept(memory, store, key, text, None, lifetime)

    @server.tool()
    @_in_a_sentence
    def append(key: Key, text: str) -> Written:
        """Write a further text into a memory that there is."""
        with changing:
            state, entry = store.get(key, memory), store.find([key])[key]
            return _kept(memory, store, key, text, state, entry.left(datetime.now(UTC)))

    @server.tool()
    @_in_a_sentence
    def ask(key: Key, question: str) -> str:
        """Answer a question from a memory alone, which stays as it is."""
        return memory.ask(store.get(key, memory), question, max_new_tokens=max_tokens)

    @server.tool()
    @_in_a_sentence
    def forget(key: Key) -> bool:
        """Delete a memory without a trace, and say whether there was one."""
        with changing:
            return bool(store.delete(key))

    @server.tool(name="list")
    @_in_a_sentence
    def list_(prefix: str = "") -> list[Listed]:
        """List the memories whose keys begin with `prefix`, by key."""
        return [_listed(entry) for entry in store.list(prefix)]

    return server


def _kept(
    memory: Memory,
    store: Store,
    key: str,
    text: str,
    state: MemoryState | None,
    lifetime: timedelta | None,
) -> Written:
    tokens = memory.encode(text, state=state)
    with torch.no_grad():
        new = memory.write(tokens, state).state
    store.put(key, memory, new, lifetime=lifetime)
    return Written(key=key, tokens=int(tokens.lengths), state_bytes=new.nbytes)


def _listed(entry: Entry) -> Listed:
    until = entry.expires
    return Listed(
        key=entry.key,
        created=entry.created.isoformat(timespec="seconds"),
        expires=None if until is None else until.isoformat(timespec="seconds"),
    )


def _in_a_sentence(tool: Callable[P, T]) -> Callable[P, T]:
    """Return a tool whose errors an agent reads as what memwrite says of them."""

    @wraps(tool)
    def called(*given: P.args, **options: P.kwargs) -> T:
        try:
            return tool(*given, **options)
        except MemwriteError as error:
            raise ToolError(str(error)) from None

    return called
