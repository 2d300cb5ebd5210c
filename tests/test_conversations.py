"""Chats of several turns: what the model has read is what the template makes of the whole conversation."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MODELS
from tokenizers import Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from memwrite import Memory
from memwrite.backbones.conversation import SEPARATOR, Place, closing, end_of_turn, say
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import TransformersTokenizer
from memwrite.config import BackboneConfig
from memwrite.errors import InputError
from memwrite.session import Session

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
#: Template, its special tokens, and which of them ends a turn.
TEMPLATES: dict[str, tuple[str, list[str], str]] = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + ALTERNATE + "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "mistral": (
        "{{ bos_token }}" + ALTERNATE + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        [],
        "</s>",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        "<|end|>",
    ),
}  # fmt: skip
each_template = pytest.mark.parametrize("name", TEMPLATES)
QUESTIONS = ["who is it?", "why (so)", "7 or 8?"]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@cache
def own(name: str) -> Any:
    """A tokenizer of transformers with one token a character, so that what is decoded is encoded as it was."""
    template, special, _ = TEMPLATES[name]
    characters = string.ascii_letters + string.digits + string.punctuation + " \n"
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", *special, *characters])}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=special,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


@cache
def memory_of(name: str, writer: str = "full-context", reader: str = "key-value") -> Memory:
    sizes = {**MODELS["llama"]["params"], "max_position_embeddings": 512, "initializer_range": 0.5}
    backbone = load_backbone(BackboneConfig(type="llama", params=sizes, dtype="float64"))
    backbone = type(backbone)(backbone.model, TransformersTokenizer(own(name)))
    parts = {"writer": {"name": writer}, "reader": {"name": reader}}
    described = {"type": "llama", "params": sizes, "dtype": "float64"}
    return Memory.from_config({"backbone": described, **parts}, backbone=backbone)


def rendered(name: str, messages: list[dict[str, str]], answer: bool = True) -> list[int]:
    return list(
        own(name).apply_chat_template(
            messages, add_generation_prompt=answer, tokenize=True, return_dict=False
        )
    )


def options_of(name: str, turn: int = 0) -> dict[str, Any]:
    """Words alone; the first answer is cut off, others are ended by the template's token or by the tokenizer's."""
    letters = own(name).convert_tokens_to_ids(list(string.ascii_letters))
    ends = [None, own(name).convert_tokens_to_ids(TEMPLATES[name][2]), own(name).eos_token_id]
    return {"max_new_tokens": 4 + turn, "logits_processor": [Words(letters, 3, ends[turn])]}


class Words(LogitsProcessor):  # type: ignore[misc]
    """Allows letters alone and, if an end is given, nothing but it from the token `count` on."""

    def __init__(self, letters: list[int], count: int, end: int | None) -> None:
        self._letters, self._count, self._end = letters, count, end
        self._calls = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        over = self._end is not None and self._calls >= self._count
        self._calls += 1
        kept = [self._end] if over else self._letters
        return torch.full_like(scores, -torch.inf).index_copy(
            1, torch.tensor(kept), scores[:, kept]
        )


def by_transformers(memory: Memory, ids: list[int], options: dict[str, Any]) -> str:
    given = torch.tensor([ids])
    new = memory.model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, pad_token_id=2,
        eos_token_id=list(memory.backbone.info.end_ids), **options,
    )[0, len(ids) :]  # fmt: skip
    return str(memory.backbone.tokenizer.decode(new.tolist()))


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


def test_two_users_in_a_row_are_one_where_the_template_has_no_two() -> None:
    memory, options = memory_of("gemma"), options_of("gemma")
    session = Session(memory)
    session.append([user("hello")])
    expected = by_transformers(memory, rendered("gemma", [user(f"hello{SEPARATOR}who?")]), options)
    assert session.ask([user("who?")], **options) == expected
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
