"""Where a prompt of the harness is cut: what stands up to the end of its document's context is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memwrite.backbones.segmentation import sentences
from memwrite.errors import InputError

#: Fields of documents that hold a context, the first that there is. "input" is that of BABILong and RULER, "text" that of
#: SQuAD completion.
FIELDS = ("context", "input", "text")


def context_end(prompt: str, document: object, task: str, field: str | None = None) -> int:
    """Return how many characters of a prompt are to be written: all up to the end of its document's context.

    What comes before the context is written with it: a task's description, and examples. A field "input" or "text" of a
    document without "question" ends with the question itself: its last line, or its last sentence where it is one line.

    Args:
        prompt: as the harness made it, perhaps by a chat template.
        document: what it was made from, by name.
        task: for errors.
        field: holds the context; by default the first of `FIELDS`.

    Raises:
        InputError: the document has no such field, or the prompt does not hold it as it is, or puts the question before it.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"task '{task}': its documents have no fields, so no context can be found")
    name = field or next((name for name in FIELDS if name in document), "")
    if name not in document:
        fields = ", ".join(map(str, document)) or "none"
        raise InputError(
            f"task '{task}': its documents have no field '{field}'"
            if field
            else f"task '{task}': which of its documents' fields ({fields}) holds the context? name it with --context-field"
        )
    context, question = _text(document, name, task), document.get("question")
    if question is None and field is None and name != "context":
        context = _without_question(context)
    at = prompt.rfind(context)
    if not context or at < 0:
        raise InputError(
            f"task '{task}': a prompt does not hold the '{name}' of its document as it is, so there is no telling what is "
            f"to be written: name another field with --context-field"
        )
    end = at + len(context)
    asked = question.strip() if isinstance(question, str) else ""
    if asked in prompt[:end] and asked not in prompt[end:]:
        raise InputError(
            f"task '{task}': its prompts put the question before the context, so that it would be written too"
        )
    return end


def _text(document: Mapping[str, Any], name: str, task: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise InputError(
            f"task '{task}': the field '{name}' of its documents is no text, but a {type(value).__name__}: name "
            f"another with --context-field"
        )
    return value.strip()


def _without_question(text: str) -> str:
    """Return a text without its last line, or without its last sentence where it is one line."""
    head, _, _ = text.rpartition("\n")
    return (head or "".join(sentences(text)[:-1])).strip()
