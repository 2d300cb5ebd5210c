"""Where prompts are cut, on documents in the forms of the harness's tasks; and their tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memwrite_lm_eval.splitting import context_end
from memwrite_lm_eval.tokens import PromptTokenizer

from memwrite.backbones.segmentation import sentences
from memwrite.backbones.tokenizers import ByteTokenizer, TransformersTokenizer, train_bpe
from memwrite.errors import InputError

TEXT = "The mill is old. Mira keeps bees.\nShe sells honey."
RULER = "Some numbers are hidden here. Memorize them.\n{}\nWhat is the number for Orm in the text?"
BPE = train_bpe([TEXT, RULER], 300)


@pytest.mark.parametrize(
    ("prompt", "document", "asked"),
    [
        # SQuAD v2.0: title and context, then the question.
        (
            f"Title: Mills\n\nBackground: {TEXT}\n\nQuestion: Who?\n\nAnswer:",
            {"title": "Mills", "context": TEXT, "question": "Who?", "answers": {"text": []}},
            "\n\nQuestion: Who?\n\nAnswer:",
        ),
        # SQuAD as a completion, of several lines and of one.
        (
            f"{TEXT}\nHoney is sold by",
            {"text": f" {TEXT}\nHoney is sold by "},
            "\nHoney is sold by",
        ),
        ("It is old. It is the", {"text": "It is old. It is the"}, " It is the"),
        # BABILong: examples before it hold the same context.
        (
            f"{TEXT}\nWhere?\nthere\n\n{TEXT}\nWhere is Tom?",
            {"input": f"{TEXT} ", "question": "Where is Tom? ", "target": "yard"},
            "\nWhere is Tom?",
        ),
        # RULER: the question is the last line, and the beginning of the answer is given.
        (
            f"{RULER.format(TEXT)} The number is",
            {"input": RULER.format(TEXT), "outputs": ["7"], "gen_prefix": "The number is"},
            "\nWhat is the number for Orm in the text? The number is",
        ),
        # LongBench: some tasks have no question.
        (
            f"Summarize.\n\n{TEXT}\n\nNow write.",
            {"context": TEXT, "question": "", "input": ""},
            "\n\nNow write.",
        ),
    ],
)
def test_all_up_to_the_end_of_the_context_is_written(
    prompt: str, document: dict[str, Any], asked: str
) -> None:
    assert prompt[context_end(prompt, document, "task") :] == asked


def test_a_field_may_be_named() -> None:
    document = {"story": TEXT, "context": "other"}
    assert context_end(f"{TEXT} Who?", document, "task", "story") == len(TEXT)


@pytest.mark.parametrize(
    ("prompt", "document", "part"),
    [
        ("Who?", "Who?", "no fields"),
        ("Who?", {"question": "Who?", "choices": []}, r"fields \(question, choices\)"),
        ("Who?", {"context": TEXT}, "does not hold the 'context'"),
        ("Who?", {"context": " "}, "does not hold the 'context'"),
        ("Who?", {"context": [TEXT]}, "is no text, but a list"),
        (f"Who?\n{TEXT}\nAnswer:", {"context": TEXT, "question": "Who?"}, "before the context"),
    ],
)
def test_what_cannot_be_cut_is_refused(prompt: str, document: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        context_end(prompt, document, "task")


@given(st.text("abe .!\né汉", min_size=1, max_size=30), st.data())
@pytest.mark.parametrize("granularity", ["token", "sentence"])
@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer()])
def test_a_prompt_keeps_its_tokens(
    tokenizer: Any, granularity: Any, text: str, data: st.DataObject
) -> None:
    end = data.draw(st.integers(0, len(text)))
    own = PromptTokenizer(tokenizer, granularity)
    written, asked = own.cut(text, end)
    assert [*(i for piece in written for i in piece), *asked] == own.ids(text)
    assert asked
    assert all(written)


def test_sentences_are_segments_where_the_writer_writes_them() -> None:
    written, asked = PromptTokenizer(BPE, "sentence").cut(f"{TEXT} Who?", len(TEXT))
    assert [BPE.decode(piece) for piece in written] == sentences(TEXT)
    assert BPE.decode(asked) == " Who?"


def test_a_text_is_opened_once() -> None:
    from tokenizers.processors import TemplateProcessing

    opening = train_bpe([TEXT], 300)
    opening.wrapped.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", opening.bos_id)]
    )
    own = PromptTokenizer(TransformersTokenizer(opening.wrapped), "token")
    first, *rest = own.ids(TEXT)
    assert first == opening.bos_id
    assert own.ids(f"<|start|>{TEXT}") == [first, *rest]
    assert own.ids(TEXT, opened=False) == rest


def test_a_tokenizer_that_cannot_be_cut_is_refused() -> None:
    slow = train_bpe([TEXT], 300)
    wrapped = slow.wrapped
    slow._tokenizer = SimpleNamespace(is_fast=False, decode=wrapped.decode)
    with pytest.raises(InputError, match="use a fast one"):
        PromptTokenizer(slow, "token")
