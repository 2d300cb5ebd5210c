"""Memories over HTTP: each call does what the library does, and what has expired or was deleted is gone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_server import Running, Serve, running, tiny

from memwrite import Memory

FIRST, SECOND = "The boat is called Ava.", "She lies in the old harbour."


def said(server: Running, key: str, question: str = "Where?") -> str:
    with server.http() as client:
        got = client.post(f"/v1/memories/{key}/ask", json={"question": question, "max_tokens": 9})
    assert got.status_code == 200, got.text
    answer: str = got.json()["answer"]
    return answer


def test_write_ask_append_fork_delete(server: Running) -> None:
    memory = server.service.models["tiny"]
    one = memory.write(FIRST).state
    both = memory.write(SECOND, one).state
    with server.http() as client:
        put = client.put("/v1/memories/log/1", json={"text": FIRST, "model": "tiny"}).json()
        assert put["tokens"] == int(memory.encode(FIRST).lengths)
        assert (put["id"], put["model"], put["kind"], put["expires"]) == (
            "log/1",
            "tiny",
            "prefix",
            None,
        )
        assert put["state_bytes"] == one.nbytes
        assert said(server, "log/1") == memory.ask(one, "Where?", max_new_tokens=9)
        forked = client.post("/v1/memories/log/1/fork", json={"to": "log/2"}).json()
        assert forked["id"] == "log/2"
        assert client.post("/v1/memories/log/2/append", json={"text": SECOND}).status_code == 200
        assert said(server, "log/2") == memory.ask(both, "Where?", max_new_tokens=9)
        assert said(server, "log/1") == memory.ask(one, "Where?", max_new_tokens=9)
        assert client.post("/v1/memories/log/1/fork", json={"to": "log/2"}).status_code == 409
        assert client.get("/v1/memories/log/1").json() == {
            k: v for k, v in put.items() if k != "tokens"
        }
        assert client.delete("/v1/memories/log/1").json()["deleted"]
        for gone in (client.get("/v1/memories/log/1"), client.delete("/v1/memories/log/1")):
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "memory_not_found")
        assert client.get("/v1/memories/log/2").status_code == 200


def test_memories_are_listed_in_pages(server: Running) -> None:
    with server.http() as client:
        for i in range(5):
            client.put(f"/v1/memories/page/{i}", json={"text": FIRST, "model": "other"})
        first = client.get("/v1/memories", params={"prefix": "page/", "limit": 3}).json()
        rest = client.get("/v1/memories", params={"prefix": "page/", "after": "page/2"}).json()
    assert [m["id"] for m in first["data"]] == ["page/0", "page/1", "page/2"]
    assert [m["id"] for m in rest["data"]] == ["page/3", "page/4"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"][0]["model"] == "other"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"text": FIRST}, 400, "name one of the models tiny, other"),
        ({"text": "  ", "model": "tiny"}, 400, "empty"),
        ({"text": FIRST, "model": "tiny", "expires_in": 0}, 400, "expires_in"),
        ({"text": FIRST, "model": "tiny", "expires_in": 1e300}, 400, "expires_in"),
        ({"text": 1}, 400, "text"),
        ({}, 400, "text"),
    ],
)
def test_what_cannot_be_written_is_refused(
    server: Running, body: dict[str, object], status: int, says: str
) -> None:
    with server.http() as client:
        got = client.put("/v1/memories/wrong", json=body)
        assert (got.status_code, says in got.json()["error"]["message"]) == (status, True), got.text
        assert client.get("/v1/memories/wrong").status_code == 404


@pytest.mark.parametrize(("key", "says"), [("a%07b", "printed"), ("k" * 200, "196 bytes")])
def test_what_can_be_no_key_is_refused(server: Running, key: str, says: str) -> None:
    with server.http() as client:
        got = client.put(f"/v1/memories/{key}", json={"text": FIRST, "model": "tiny"})
    assert (got.status_code, says in got.json()["error"]["message"]) == (400, True), got.text


def test_what_has_expired_is_gone(serve: Serve) -> None:
    server = serve(tenants=("ava",))
    with server.http() as client:
        put = client.put("/v1/memories/short", json={"text": FIRST, "expires_in": 1.5}).json()
        appended = client.post("/v1/memories/short/append", json={"text": SECOND}).json()
        forked = client.post(
            "/v1/memories/short/fork", json={"to": "long", "expires_in": 99}
        ).json()
        assert abs(appended["expires"] - put["expires"]) <= 1
        assert forked["expires"] > put["expires"] + 90
        time.sleep(1.6)
        assert client.get("/v1/memories/short").status_code == 404
        asked = client.post("/v1/memories/short/ask", json={"question": "Where?"})
        assert asked.status_code == 404
        assert [m["id"] for m in client.get("/v1/memories").json()["data"]] == ["long"]
    assert server.service.shelf.expire() == 1


def test_memories_outlive_the_server(tmp_path: Path) -> None:
    with running(tmp_path, {"tiny": tiny()}) as server, server.http() as client:
        client.put("/v1/memories/boat", json={"text": FIRST})
        before = said(server, "boat")
    with running(tmp_path, {"tiny": tiny()}) as server:
        assert said(server, "boat") == before
    # A server of another model does not read it.
    with running(tmp_path, {"tiny": tiny(seed=1)}) as server, server.http() as client:
        got = client.post("/v1/memories/boat/ask", json={"question": "Where?"})
        assert (got.status_code, got.json()["error"]["code"]) == (409, "other_model")


@pytest.mark.parametrize(("writer", "reader"), [("full-context", "key-value"), ("delta", "lora")])
def test_every_kind_of_state_is_kept_and_asked(serve: Serve, writer: str, reader: str) -> None:
    memory: Memory = tiny({"name": writer}, reader)
    server = serve({"tiny": memory}, tenants=("ava",))
    expected = memory.write(SECOND, memory.write(FIRST).state).state
    with server.http() as client:
        client.put("/v1/memories/boat", json={"text": FIRST})
        got = client.post("/v1/memories/boat/append", json={"text": SECOND})
        assert got.status_code == 200, got.text
        assert got.json()["state_bytes"] == expected.nbytes
    assert said(server, "boat") == memory.ask(expected, "Where?", max_new_tokens=9)


def test_nothing_is_lost_of_texts_that_are_appended_at_once(serve: Serve) -> None:
    server = serve({"tiny": tiny({"name": "full-context"}, "key-value")}, tenants=("ava",))
    with server.http() as client, ThreadPoolExecutor(8) as pool:
        client.put("/v1/memories/boat", json={"text": "a"})

        def append(_: int) -> int:
            got = client.post("/v1/memories/boat/append", json={"text": "b"})
            size: int = got.json()["state_bytes"]
            return size

        assert len({*pool.map(append, range(8))}) == 8


def test_a_memory_is_measured_beside_none_and_the_whole_cache(serve: Serve) -> None:
    """A memory that is the whole cache keeps all of the value, and one that knows nothing keeps none."""
    text = "The boat is called Ava. " * 4 + "The boat is called Ava."
    models = {
        "all": tiny({"name": "full-context"}, "key-value"),
        "some": tiny({"name": "forward", "params": {"slots": 4}}),
    }
    server = serve(models, tenants=("ava",))
    with server.http() as client:

        def put(model: str, text: str) -> Any:
            body = {"text": text, "model": model, "measure": True}
            return client.put("/v1/memories/boat", json=body).json()

        whole, part = put("all", text), put("some", text)
        assert whole["value_kept"] == pytest.approx(1)
        assert part["value_kept"] != pytest.approx(1)
        assert part["cache_bytes"] == whole["cache_bytes"] == whole["state_bytes"]
        assert part["state_bytes"] < part["cache_bytes"]
        assert put("all", "One sentence")["value_kept"] is None
        assert "value_kept" not in client.get("/v1/memories/boat").json()
