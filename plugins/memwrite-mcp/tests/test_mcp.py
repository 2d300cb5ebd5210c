"""The tools, called by the protocol's own client: in this process, and over standard input and output."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp import Client, StdioServerParameters
from memwrite_mcp.server import create_server
from memwrite_specs.testing import MODELS

from memwrite import Memory
from memwrite.stores import Store

PARAMS = {**MODELS["llama"]["params"], "max_position_embeddings": 256}
CONFIG = {
    "backbone": {"type": "llama", "params": PARAMS},
    "writer": {"name": "forward", "params": {"slots": 4}},
    "reader": {"name": "prefix"},
}
FIRST, SECOND = "The boat is called Ava.", "She lies in the old harbour."


async def called(client: Client, tool: str, **given: Any) -> Any:
    result = await client.call_tool(tool, given)
    if result.is_error:
        return result.content[0].text
    return result.structured_content


async def everything(client: Client) -> list[Any]:
    """Call every tool, and return what the memory said and what went wrong."""
    tools = await client.list_tools()
    assert [tool.name for tool in tools.tools] == ["write", "append", "ask", "forget", "list"]
    assert all(tool.description and tool.input_schema for tool in tools.tools)
    written = await called(client, "write", key="boat", text=FIRST, expires_in=100)
    assert written["state_bytes"] == 4 * 32 * 4
    once = await called(client, "ask", key="boat", question="Where?")
    await called(client, "append", key="boat", text=SECOND)
    await called(client, "write", key="other", text=SECOND)
    twice = await called(client, "ask", key="boat", question="Where?")
    listed = (await called(client, "list"))["result"]
    assert [(m["key"], m["expires"] is None) for m in listed] == [("boat", False), ("other", True)]
    assert (await called(client, "list", prefix="x"))["result"] == []
    gone = [await called(client, "forget", key="boat") for _ in range(2)]
    assert [each["result"] for each in gone] == [True, False]
    errors = [
        await called(client, "ask", key="boat", question="Where?"),
        await called(client, "append", key="boat", text=SECOND),
        await called(client, "write", key="", text=SECOND),
        await called(client, "write", key="boat", text=" "),
        await called(client, "ask", key="other", question="Where? " * 100),
        await called(client, "write", key="boat", text=FIRST, expires_in=0),
    ]
    return [once["result"], twice["result"], *errors]


def check(said: list[Any], memory: Memory) -> None:
    """What a memory in this process says is what the tools said, and every error is a sentence."""
    one = memory.write(FIRST).state
    both = memory.write(SECOND, one).state
    once, twice, *errors = said
    assert once == memory.ask(one, "Where?", max_new_tokens=9)
    assert twice == memory.ask(both, "Where?", max_new_tokens=9) != once
    for error, part in zip(
        errors,
        (
            "nothing under 'boat'",
            "nothing under 'boat'",
            "1 to 200 bytes",
            "empty",
            "positions",
            "greater",
        ),
        strict=True,
    ):
        assert part in error


def test_what_the_tools_say_is_what_the_memory_says(tmp_path: Path) -> None:
    memory = Memory.from_config(CONFIG)

    async def session() -> list[Any]:
        with Store(tmp_path / "memories.db") as store:
            async with Client(create_server(memory, store, 9)) as client:
                return await everything(client)

    check(asyncio.run(session()), memory)


def test_nothing_is_lost_of_texts_that_are_appended_at_once(tmp_path: Path) -> None:
    memory = Memory.from_config(
        {**CONFIG, "writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    )

    async def session() -> None:
        with Store(tmp_path / "memories.db") as store:
            async with Client(create_server(memory, store)) as client:
                await called(client, "write", key="boat", text="a")
                calls = (called(client, "append", key="boat", text="b") for _ in range(8))
                sizes = {got["state_bytes"] for got in await asyncio.gather(*calls)}
                assert len(sizes) == 8

    asyncio.run(session())


def test_an_agent_starts_the_command(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    words = ["-m", "memwrite", "mcp", str(config), "--store", str(tmp_path / "m.db")]
    command = StdioServerParameters(command=sys.executable, args=[*words, "--max-tokens", "9"])

    async def session() -> list[Any]:
        async with Client(command) as client:
            return await everything(client)

    check(asyncio.run(session()), Memory.from_config(CONFIG))


@pytest.mark.parametrize("words", [[], ["writer.name=no-memory"]])
def test_what_cannot_be_served_is_told_in_a_sentence(tmp_path: Path, words: list[str]) -> None:
    from click.testing import CliRunner

    from memwrite.cli.main import main

    config = tmp_path / "mine.yaml"
    parts = {"writer": {"name": "no-memory"}, "reader": {"name": "no-memory"}}
    config.write_text(yaml.safe_dump({**CONFIG, **parts}))
    given = [str(config), "--store", str(tmp_path / "m.db")] if words else ["--store", "m.db"]
    done = CliRunner().invoke(main, ["mcp", *given])
    assert done.exit_code == 2
