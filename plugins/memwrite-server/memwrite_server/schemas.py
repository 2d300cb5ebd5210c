"""What requests say, in OpenAI's words where it has some. What a memory cannot honour is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
#: Seconds, up to a century.
Lifetime = Annotated[float, Field(gt=0, le=3.2e9)]


_NOTHING: tuple[object, ...] = ([], {}, "auto", "none", {"type": "text"})


def _absent(value: object) -> object:
    if value is not None and value is not False and value not in _NOTHING:
        raise ValueError("this server does not have it: leave it out")
    return value


#: A field of OpenAI's that changes answers in a way that is not offered here.
Absent = Annotated[Any, AfterValidator(_absent)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """How answers are streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(_Strict):
    """What chat and completions have in common.

    Attributes:
        memory: key of the memory to answer from; None for one that has read nothing.
        temperature: of samples; 0, or nothing, chooses greedily.
    """

    model: str
    memory: Text | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    logprobs: Absent = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Absent = None

    @property
    def stops(self) -> list[str]:
        """Return the strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(_Strict):
    """A part of a message that is text; there are no others here."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Absent = None
    response_format: Absent = None
    tools: Absent = None
    tool_choice: Absent = None
    store: Absent = None
    metadata: dict[str, str] | None = None


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: str
    echo: Absent = None
    suffix: Absent = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class PutRequest(_Strict):
    """The body of PUT /v1/memories/KEY.

    Attributes:
        model: that writes; may be left out where only one is served.
        expires_in: seconds until it is gone; None for never.
        measure: whether to say what the memory is worth.
    """

    text: Text
    model: str | None = None
    expires_in: Lifetime | None = None
    measure: bool = False


class AppendRequest(_Strict):
    """The body of POST /v1/memories/KEY/append."""

    text: Text


class AskRequest(_Strict):
    """The body of POST /v1/memories/KEY/ask."""

    question: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class ForkRequest(_Strict):
    """The body of POST /v1/memories/KEY/fork.

    Attributes:
        to: the new memory's key, under which nothing may be yet.
        expires_in: seconds until it is gone; None for as long as the memory itself.
    """

    to: Text
    expires_in: Lifetime | None = None
