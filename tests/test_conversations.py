"""Chats of several turns: what the model has read is what the template makes of the whole conversation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from templates import (
    TEMPLATES,
    assistant,
    by_transformers,
    memory_of,
    options_of,
    own,
    rendered,
    user,
)

from memwrite.backbones.conversation import SEPARATOR, Place, closing, end_of_turn, say
from memwrite.backbones.tokenizers import TransformersTokenizer
from memwrite.errors import InputError
from memwrite.session import Session

each_template = pytest.mark.parametrize("name", TEMPLATES)
QUESTIONS = ["who is it?", "why (so)", "7 or 8?"]


def length(session: Session) -> int:
    return int(session.state["mask"].sum())


def standing(name: str, said: list[dict[str, str]]) -> int:
    """Return the number of tokens of a conversation before the content of the user's next message."""
    one, two = (rendered(name, [*said, user(probe)], False) for probe in ("a", "7"))
    return next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)


@each_template
@pytest.mark.parametrize("way", ["stays", "forked", "loaded"])
def test_a_chat_of_three_turns_is_that_of_transformers(name: str, way: str, tmp_path: Path) -> None:
    memory = memory_of(name)
    session, said = Session(memory), []
    for turn, question in enumerate(QUESTIONS):
        said.append(user(question))
        expected = by_transformers(memory, rendered(name, said), options_of(name, turn))
        answer = session.ask([user(question)], **options_of(name, turn))
        assert answer == expected
        assert len(answer) == 4 - (turn > 0)
        said.append(assistant(answer))
        assert length(session) == standing(name, said)
        if way == "forked":
            session = session.fork()
        elif way == "loaded":
            session.save(tmp_path / "chat.safetensors")
            session = Session(memory)
            session.load(tmp_path / "chat.safetensors")


def test_messages_of_the_past_are_written_one_by_one_or_together() -> None:
    """A document and a question share a message; messages of one role in a row are what the template makes of them."""
    name = "chatml"
    memory, options = memory_of(name), options_of(name)
    past = [
        {"role": "system", "content": "Be brief."},
        user("hello"),
        assistant("hi"),
        user("well"),
    ]
    for parts in ([past], [[message] for message in past], [past[:2], past[2:]]):
        session = Session(memory)
        for part in parts:
            session.append(part)
        answer = session.ask([user("who?")], **options)
        expected = by_transformers(memory, rendered(name, [*past, user("who?")]), options)
        assert answer == expected


@each_template
def test_a_document_begins_the_next_message(name: str) -> None:
    memory, options = memory_of(name), options_of(name)
    document, question = "The boat (red) is old.", "which boat?"
    session = Session(memory)
    session.append(document)
    session.append("It is 7.")
    pasted = user(f"{document}{SEPARATOR}It is 7.{SEPARATOR}{question}")
    expected = by_transformers(memory, rendered(name, [pasted]), options)
    assert session.fork().ask(question, **options) == expected
    answer = session.ask([user(question)], **options)
    assert answer == expected
    said = [pasted, assistant(answer), user(f"more{SEPARATOR}why?")]
    session.append("more")
    assert session.ask("why?", **options) == by_transformers(memory, rendered(name, said), options)


def test_two_users_in_a_row_are_one_where_the_template_has_no_two(tmp_path: Path) -> None:
    memory, options = memory_of("gemma"), options_of("gemma")
    session = Session(memory)
    session.append([user("hello")])
    expected = by_transformers(memory, rendered("gemma", [user(f"hello{SEPARATOR}who?")]), options)
    assert session.ask([user("who?")], **options) == expected
    session = Session(memory)
    session.append([user("hello")])
    session.save(tmp_path / "open.st")
    loaded = Session(memory)
    loaded.load(tmp_path / "open.st")
    assert (
        loaded.ask([user("who?")], **options) == session.ask([user("who?")], **options) == expected
    )
    with pytest.raises(InputError, match="refused the messages: no system role"):
        Session(memory).ask([{"role": "system", "content": "Be brief."}, user("who?")])
    with pytest.raises(InputError, match="next message must be a user's"):
        session.ask([assistant("no")])


@pytest.mark.filterwarnings("ignore:writer 'delta'")
@pytest.mark.parametrize(("writer", "reader"), [("delta", "lora"), ("forward", "prefix")])
def test_other_states_are_asked_in_whole_conversations(writer: str, reader: str) -> None:
    """Nothing stands before a message, so that each has the system prompt before it."""
    memory, options = memory_of("chatml", writer, reader), options_of("chatml")
    state = memory.write("The boat is red.").state
    assert memory.prompt(state, "who?").ids[0].tolist() == rendered("chatml", [user("who?")])
    session = Session(memory, state, read_only=True)
    assert session.ask([user("who?")], **options) == memory.ask(state, "who?", **options)
    assert memory.encode("a").ids[0].tolist()[-1] == memory.backbone.info.eos_id


@each_template
def test_a_question_on_a_document_is_the_end_of_the_message(name: str, tmp_path: Path) -> None:
    memory, options = memory_of(name), options_of(name)
    documents, questions = ["The boat (red) is old.", "7 cats"], ["which boat?", "how many?"]
    state = memory.write(documents).state
    expected = [
        by_transformers(memory, rendered(name, [user(f"{d}{SEPARATOR}{q}")]), options)
        for d, q in zip(documents, questions, strict=True)
    ]
    assert memory.ask(state, questions, **options) == expected
    first = state.rows(torch.tensor([0]))
    both = [
        by_transformers(memory, rendered(name, [user(f"{documents[0]}{SEPARATOR}{q}")]), options)
        for q in questions
    ]
    alone = memory.write(documents[0]).state
    assert memory.ask(alone, questions, **options) == both
    assert [memory.ask(first, question, **options) for question in questions] == both
    more = memory.write("It is 7.", alone).state
    pasted = f"{documents[0]}{SEPARATOR}It is 7.{SEPARATOR}which?"
    assert memory.ask(more, "which?", **options) == by_transformers(
        memory, rendered(name, [user(pasted)]), options
    )
    empty = memory.writer.init(1)
    assert memory.ask(empty, "who?", **options) == by_transformers(
        memory, rendered(name, [user("who?")]), options
    )
    with pytest.raises(InputError, match="question is empty"):
        memory.ask(alone, " ")
    with pytest.raises(InputError, match="2 rows, but 3"):
        memory.ask(state, [*questions, "why?"])


def test_a_text_of_the_model_is_continued_only_where_that_is_asked_for() -> None:
    memory = memory_of("llama-3")
    encode = memory.backbone.tokenizer.encode
    assert memory.encode("a b", raw=True).ids[0].tolist() == [1, *encode("a b"), 2]
    state = memory.write(memory.encode("a b", raw=True)).state
    assert memory.prompt(state, "so", raw=True).ids[0].tolist() == encode("so")
    assert memory.prompt(memory.writer.init(1), "so", raw=True).ids[0].tolist() == [
        1,
        *encode("so"),
    ]
    assert memory.prompt(state, "").ids.shape == (1, 0)


@each_template
def test_the_parts_of_a_conversation_add_up(name: str) -> None:
    tokenizer = TransformersTokenizer(own(name))
    conversation = [user("(a)"), assistant("b c"), user("7"), assistant("d"), user(" e")]
    ids = say(tokenizer, conversation[:1], Place.BEGINNING, Place.ANSWER)
    for i in (1, 3):
        ids += [*tokenizer.encode(conversation[i]["content"]), *closing(tokenizer)]
        ids += say(tokenizer, [conversation[i + 1]], Place.TURN, Place.ANSWER)
    assert ids == rendered(name, conversation)
    assert end_of_turn(tokenizer) == own(name).convert_tokens_to_ids(TEMPLATES[name][2])
