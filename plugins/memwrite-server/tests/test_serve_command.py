"""`memwrite serve` as a process: it starts with a line, stops in order, and a kill loses nothing acknowledged."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
import yaml
from click.testing import CliRunner
from running_server import MODEL, WRITER

from memwrite import Memory
from memwrite.cli.main import main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    parts = {"writer": WRITER, "reader": {"name": "prefix"}}
    path.write_text(yaml.safe_dump({"backbone": MODEL, **parts}))
    return path


@contextmanager
def served(config: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    store = str(config.with_name("memories.db"))
    command = [sys.executable, "-m", "memwrite", "serve", str(config), "--store", store]
    process = subprocess.Popen([*command, "--port", "0", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        found = (re.match(r"Serving mine at (http://\S+)", line) for line in lines)
        url = next((match[1] for match in found if match), None)
        assert url, "the server did not start"
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_a_kill_loses_nothing_acknowledged_and_a_stop_nothing_begun(config: Path) -> None:
    tokens = config.with_name("tokens.txt")
    made = CliRunner().invoke(main, ["serve-token", "ava", "--tokens", str(tokens)])
    token = made.output.strip()
    headers = {"Authorization": f"Bearer {token}"}
    acknowledged: set[str] = set()

    def load(url: str, number: int) -> None:
        with httpx2.Client(base_url=url, headers=headers, timeout=30) as client:
            for i in range(1000):
                key = f"{number}-{i}"
                try:
                    got = client.put(f"/v1/memories/{key}", json={"text": f"Text {key}."})
                except httpx2.HTTPError:
                    return
                assert got.status_code == 200
                acknowledged.add(key)

    with served(config, "--tokens", str(tokens)) as (process, url):
        clients = [threading.Thread(target=load, args=(url, n)) for n in range(4)]
        for client in clients:
            client.start()
        while len(acknowledged) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for client in clients:
            client.join()
    with served(config, "--tokens", str(tokens)) as (process, url):
        listed = httpx2.get(f"{url}/v1/memories", params={"limit": 1000}, headers=headers).json()
        assert acknowledged <= {memory["id"] for memory in listed["data"]}
        memory, key = Memory.from_config(config), min(acknowledged)
        state = memory.write(f"Text {key}.").state
        expected = memory.ask(state, "Text", raw=True, max_new_tokens=200)
        with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as own:
            stream = own.completions.create(
                model="mine",
                prompt="Text",
                max_tokens=200,
                stream=True,
                extra_body={"memory": key},
            )
            first = next(stream)
            process.send_signal(signal.SIGTERM)
            said = [first, *stream]
        assert "".join(chunk.choices[0].text for chunk in said) == expected
        assert said[-1].choices[0].finish_reason is not None
        assert process.wait(60) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give run folders or configs"),
        (["mine.yaml", "--host", "0.0.0.0"], "needs tokens"),
        (["mine.yaml", "--tokens", "none.txt"], "cannot be read"),
        (["mine.yaml", "./mine.yaml"], "two of the models"),
        (["mine.yaml", "--model", "x"], "--writer"),
        (["mine.yaml", "writer.name=no-memory", "reader.name=no-memory"], "keeps nothing"),
        (["mine.yaml", "--store", "nowhere/m.db"], "no folder"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(
    config: Path, words: Sequence[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    done = CliRunner().invoke(main, ["serve", "--store", "m.db", *words])
    assert (done.exit_code, says in done.stderr) == (2, True), done.output
