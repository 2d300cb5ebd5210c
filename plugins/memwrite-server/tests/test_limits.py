"""What a server does not take on: large and slow bodies, long requests, more requests than it has room for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from memwrite_server.jobs import Ask
from memwrite_server.settings import Settings
from running_server import Running, Serve

from memwrite import Memory

TEXT = {"text": "The boat is called Ava."}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Models do not answer before this event is set."""
    event, generate = threading.Event(), Memory.generate

    def late(self: Memory, *given: Any, **options: Any) -> Any:
        assert event.wait(30)
        return generate(self, *given, **options)

    monkeypatch.setattr(Memory, "generate", late)
    yield event
    event.set()


def asked(server: Running, tenant: str = "ava", **options: Any) -> Any:
    client = server.openai(tenant, **options)
    return client.completions.create(model="tiny", prompt="The", max_tokens=2)


def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to this")


def test_a_large_body_is_refused(serve: Serve) -> None:
    server = serve(settings=Settings(body=1000))
    with server.http() as client:
        assert client.put("/v1/memories/a", json=TEXT).status_code == 200
        large = b'{"text": "' + b"x" * 1000 + b'"}'
        headers = {"content-type": "application/json"}
        told = client.put("/v1/memories/b", content=large, headers=headers)
        chunks = (large[i : i + 100] for i in range(0, len(large), 100))
        untold = client.put("/v1/memories/b", content=chunks, headers=headers)
        for got in (told, untold):
            assert (got.status_code, got.json()["error"]["code"]) == (413, "body_too_large")
        assert client.get("/v1/memories/b").status_code == 404


def test_a_slow_body_is_given_up(serve: Serve) -> None:
    server = serve(settings=Settings(seconds=0.3))
    head = (
        f"PUT /v1/memories/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.tokens['ava']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + b'{"text"')
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(
    serve: Serve, held: threading.Event, stream: bool
) -> None:
    server = serve(settings=Settings(seconds=0.3))
    with pytest.raises(openai.InternalServerError) as caught:
        server.openai().completions.create(model="tiny", prompt="The", stream=stream)
    assert caught.value.status_code == 504
    assert len(server.service.gate) == 0
    held.set()
    until(lambda: asked(server).choices[0].text)


def test_beyond_their_bounds_requests_are_sent_away_and_come_again(
    serve: Serve, held: threading.Event
) -> None:
    server = serve(settings=Settings(waiting=3, each=2), tenants=("ava", "ben", "cleo"))
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(asked, server, who) for who in ("ava", "ava", "ben")]
        until(lambda: len(server.service.gate) == 3)
        for who, status in (("ava", 429), ("cleo", 503)):
            with pytest.raises(openai.APIStatusError) as caught:
                asked(server, who)
            assert caught.value.status_code == status
            assert caught.value.response.headers["retry-after"] == "1"
        assert server.http("cleo").get("/health").json() == {"status": "ok"}
        # OpenAI's client tries again by itself.
        again = pool.submit(asked, server, "cleo", max_retries=5)
        held.set()
        texts = {future.result().choices[0].text for future in (*under_way, again)}
    assert len(texts) == 1
    assert len(server.service.gate) == 0


def test_who_leaves_a_stream_frees_its_place(serve: Serve) -> None:
    server = serve(settings=Settings(waiting=1, each=1, most_tokens=400))
    stream = server.openai().completions.create(
        model="tiny", prompt="The", max_tokens=400, stream=True
    )
    next(iter(stream))
    assert len(server.service.gate) == 1
    stream.close()
    until(lambda: len(server.service.gate) == 0)
    assert asked(server).choices[0].text


def test_what_nobody_waits_for_is_not_generated(serve: Serve) -> None:
    server = serve()
    memory = server.service.models["tiny"]
    state = memory.writer.init(1)
    job = Ask(state, memory.prompt(state, "The"), {"max_new_tokens": 400})
    job.unwanted.set()
    (answer,) = Ask.run(memory, [job])
    assert answer.tokens == 1


def test_one_request_does_not_spoil_its_neighbours(serve: Serve, held: threading.Event) -> None:
    """A batch that fails is done one by one, so that the error is its owner's alone."""
    server = serve()
    generate = Memory.generate

    def choosy(self: Memory, state: Any, query: Any, **options: Any) -> Any:
        if (query.ids == ord("!")).any():
            raise RuntimeError("no exclamation marks")
        return generate(self, state, query, **options)

    client = server.openai()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(5) as pool:
        patch.setattr(Memory, "generate", choosy)

        def ask(prompt: str) -> Any:
            return client.completions.create(model="tiny", prompt=prompt, max_tokens=3)

        first = pool.submit(ask, "first")
        until(lambda: len(server.service.gate) == 1)
        others = [pool.submit(ask, prompt) for prompt in ("abc", "ab!", "abd")]
        until(lambda: len(server.service.gate) == 4)
        held.set()
        assert first.result().choices[0].text
        good, bad, fine = others
        assert good.result().choices[0].text
        assert fine.result().choices[0].text
        with pytest.raises(openai.InternalServerError, match="unexpected RuntimeError"):
            bad.result()


def test_an_open_server_answers_to_the_names_of_this_machine_alone(serve: Serve) -> None:
    """Another site's name that leads to 127.0.0.1 does not open it to that site's pages."""
    server = serve(tenants=())
    for host, status in (("localhost", 200), ("evil.example", 400)):
        got = httpx2.get(f"{server.url}/v1/models", headers={"Host": host})
        assert got.status_code == status
    # Pages of other sites cannot send JSON without asking, and are not answered when they ask.
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    got = httpx2.options(f"{server.url}/v1/memories/a", headers=asking)
    assert "access-control-allow-origin" not in got.headers
    plain = httpx2.post(
        f"{server.url}/v1/memories/a/append",
        content=b'{"text": "x"}',
        headers={"content-type": "text/plain"},
    )
    assert plain.status_code == 400


def test_metrics_count_and_name_nobody(serve: Serve) -> None:
    server = serve()
    with server.http() as client:
        client.put("/v1/memories/secret-key", json=TEXT)
        asked(server)
        client.get("/v1/memories/nothing")
        client.get("/no/such/page")
        text = client.get("/metrics").text
    lines = text.splitlines()
    for line in (
        'memwrite_requests_total{method="PUT",route="/v1/memories/{key:path}",status="200"} 1.0',
        'memwrite_requests_total{method="GET",route="/v1/memories/{key:path}",status="404"} 1.0',
        'memwrite_requests_total{method="GET",route="none",status="404"} 1.0',
        'memwrite_tokens_total{kind="generated",model="tiny"} 2.0',
        'memwrite_batch_size_count{model="tiny"} 2.0',
        'memwrite_now{what="under_way"} 0.0',
    ):
        assert line in lines, text
    assert "secret" not in text
    assert "ava" not in text


def test_a_hundred_clients_at_once(serve: Serve) -> None:
    """Nothing is lost, nothing mixed: everyone hears what a lone memory of his text says."""
    server = serve(settings=Settings(waiting=200, each=200))
    memory = server.service.models["tiny"]
    texts = [f"Sailor {i} lost {i * i} coins." for i in range(100)]
    questions = [f"Sailor {i} lost" + " coins" * (i % 3) for i in range(100)]

    async def client(own: openai.AsyncOpenAI, http: httpx2.AsyncClient, i: int) -> str:
        await http.put(f"/v1/memories/sailor-{i}", json={"text": texts[i]})
        body = {"memory": f"sailor-{i}"}
        given: Any = {"model": "tiny", "prompt": questions[i], "max_tokens": 6, "extra_body": body}
        if i % 2:
            return str((await own.completions.create(**given)).choices[0].text)
        stream = await own.completions.create(stream=True, **given)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        limits = httpx2.Limits(max_connections=200)
        headers = {"Authorization": f"Bearer {server.tokens['ava']}"}
        async with httpx2.AsyncClient(
            base_url=server.url, headers=headers, limits=limits, timeout=60
        ) as http:
            own = openai.AsyncOpenAI(
                base_url=f"{server.url}/v1",
                api_key=server.tokens["ava"],
                http_client=http,
                max_retries=0,
            )
            return await asyncio.gather(*(client(own, http, i) for i in range(100)))

    answers = asyncio.run(all_of_them())
    memory.prefills = None
    for i in range(0, 100, 3):
        state = memory.write(texts[i]).state
        assert answers[i] == memory.ask(state, questions[i], raw=True, max_new_tokens=6)
    assert len(set(answers)) > 30
    sizes = server.service.metrics.batches.labels("tiny")
    assert sizes._sum.get() == 200
    buckets = sizes._buckets
    assert buckets[0].get() < 50  # jobs that were alone in their batch
