"""OpenAI's own client: models, chat, completions and streams, each answer that of a lone ask."""

from __future__ import annotations

import openai
import pytest
from running_server import Running

from memwrite.session import Session

MESSAGES = [{"role": "user", "content": "What is the boat called?"}]
TEXT = "The boat is called Ava, and lies in the old harbour."


@pytest.fixture(scope="module", autouse=True)
def written(server: Running) -> None:
    with server.http() as client:
        for model in ("tiny", "other"):
            body = {"text": TEXT, "model": model}
            assert client.put(f"/v1/memories/boat-{model}", json=body).status_code == 200


def lone(server: Running, model: str, prompt: str, count: int) -> str:
    memory = server.service.models[model]
    state = memory.write(TEXT).state
    return memory.ask(state, prompt, raw=True, max_new_tokens=count)


def test_the_models_are_listed(server: Running) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"


@pytest.mark.parametrize("model", ["tiny", "other"])
def test_a_completion_is_what_the_memory_says(server: Running, model: str) -> None:
    got = server.openai().completions.create(
        model=model, prompt="The boat", max_tokens=9, extra_body={"memory": f"boat-{model}"}
    )
    assert got.choices[0].text == lone(server, model, "The boat", 9)
    assert got.usage is not None
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_a_chat_is_what_a_session_says(server: Running) -> None:
    memory = server.service.models["tiny"]
    session = Session(memory, memory.write(TEXT).state, read_only=True)
    expected = session.ask(MESSAGES, max_new_tokens=12)
    got = server.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, extra_body={"memory": "boat-tiny"}
    )
    assert got.choices[0].message.content == expected
    without = server.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12
    )
    assert without.choices[0].message.content != expected


def test_the_pieces_of_a_stream_are_the_answer(server: Running) -> None:
    client = server.openai()
    asked = {"model": "tiny", "max_tokens": 20, "extra_body": {"memory": "boat-tiny"}}
    whole = client.chat.completions.create(messages=MESSAGES, **asked)
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options=options, **asked
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(said) == whole.choices[0].message.content
    assert len(said) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage == whole.usage
    texts = client.completions.create(prompt="The boat", stream=True, **asked)
    assert "".join(t.choices[0].text for t in texts) == lone(server, "tiny", "The boat", 20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_an_answer(server: Running, stream: bool) -> None:
    free = lone(server, "tiny", "The boat", 30)
    stop = free[7:10]
    assert free.index(stop) == 7
    client = server.openai()
    got = client.completions.create(
        model="tiny",
        prompt="The boat",
        max_tokens=30,
        stop=["never", stop],
        stream=stream,
        extra_body={"memory": "boat-tiny"},
    )
    parts = list(got) if stream else [got]
    assert "".join(part.choices[0].text for part in parts) == free[:7]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_sample(server: Running) -> None:
    client = server.openai()

    def sample(seed: int) -> str:
        got = client.completions.create(
            model="tiny",
            prompt="The",
            max_tokens=20,
            temperature=1.5,
            seed=seed,
            extra_body={"memory": "boat-tiny"},
        )
        return got.choices[0].text

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "no model 'nobody'"),
        ({"extra_body": {"memory": "nothing"}}, openai.NotFoundError, "no memory 'nothing'"),
        ({"extra_body": {"memory": "boat-other"}}, openai.ConflictError, "written by the model 'other'"),
        ({"prompt": "long " * 200}, openai.BadRequestError, "512 positions"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"logprobs": 1}, openai.BadRequestError, "logprobs"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"extra_body": {"memroy": "boat-tiny"}}, openai.BadRequestError, "memroy"),
        ({"prompt": "\udc80"}, openai.BadRequestError, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_in_a_sentence(
    server: Running,
    changes: dict[str, object],
    kind: type[openai.APIStatusError],
    says: str,
    stream: bool,
) -> None:
    asked = {"model": "tiny", "prompt": "The", "max_tokens": 5, "stream": stream, **changes}
    if changes.get("prompt") == "\udc80":
        body = b'{"model": "tiny", "prompt": "\\udc80"}'
        headers = {"content-type": "application/json"}
        with server.http() as client:
            got = client.post("/v1/completions", content=body, headers=headers)
        assert (got.status_code, got.json()["error"]["type"]) == (400, "invalid_request_error")
        return
    with pytest.raises(kind) as caught:
        server.openai().completions.create(**asked)  # type: ignore[call-overload]
    assert says in str(caught.value)
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[arg-type]
