"""Questions on texts have the tokens of the texts that they are, whatever the tokenizer does with spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from memwrite.backbones.tokenizers import TransformersTokenizer
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, QuestionsTask

PASSAGE = Passage(
    ("Mary went home.", "John took the ball."), (Question("Where is Mary?", ("at home",), "where"),)
)


class Config(QuestionsConfig):
    """Reads no file."""

    def read(self, path: Path) -> list[list[Passage]]:
        return [[PASSAGE]]


def tokenizer_of(scheme: str | None) -> Any:
    """Byte-level, or in the manner of sentencepiece, which puts a space before a text; both open a text with <s>."""
    fast = FastTokenizer(models.BPE())
    if scheme is None:
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<s>", "</s>"], show_progress=False)  # fmt: skip
    fast.train_from_iterator([" ".join(PASSAGE.pieces) + " Where is Mary? at home"] * 3, trainer)
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("scheme", [None, "first", "always"])
def test_the_parts_of_a_question_make_the_tokens_of_the_whole(
    scheme: str | None, tmp_path: Path
) -> None:
    own = tokenizer_of(scheme)
    (tmp_path / "f").write_text("")
    task = QuestionsTask(Config(files=["f"], folder=str(tmp_path)), TransformersTokenizer(own))
    example = task.example(PASSAGE)
    end = own.eos_token_id
    assert example.context == [*own.encode(" ".join(PASSAGE.pieces)), end]
    assert example.queries[0] == [*own.encode("Where is Mary? at home", add_special_tokens=False), end]  # fmt: skip
    answer = [i for i in example.labels[0] if i != -100]
    assert own.decode(answer[:-1]).strip() == "at home"
    assert example.segments is not None
    second = [i for i, n in zip(example.context, example.segments, strict=True) if n == 1]
    assert own.decode(second[:-1]).strip() == "John took the ball."
