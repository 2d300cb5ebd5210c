"""Text <-> token ids: a folder's own tokenizer, or plain UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from memwrite.errors import ConfigError

START, END = "<|start|>", "<|end|>"


class Codec(Protocol):
    """Encodes text without special tokens; `start` and `end` are the ids that frame a text."""

    vocab_size: int
    start: int
    end: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder: Path) -> None: ...


class ByteCodec:
    """Ids 0..255 are bytes, 256 opens a text, 257 closes it. Damaged UTF-8 decodes to U+FFFD."""

    vocab_size, start, end = 258, 256, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing to save: a folder without a tokenizer means bytes."""


class TransformersCodec:
    """A transformers tokenizer. Special tokens spelled out in a text stay text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size: int = len(tokenizer)
        end = tokenizer.eos_token_id
        if end is None:
            raise ConfigError("the tokenizer has no end-of-text (eos) token")
        self.end: int = end
        self.start: int = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        return list(
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def load_codec(source: str | Path) -> Codec:
    """The tokenizer of a folder or hub id; bytes for "bytes" and for a folder that has none."""
    folder = Path(source)
    if source == "bytes" or (
        folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*"))
    ):
        return ByteCodec()
    from transformers import AutoTokenizer

    try:
        return TransformersCodec(AutoTokenizer.from_pretrained(source))
    except ConfigError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise errors of every kind
        reason = str(error) or type(error).__name__
        raise ConfigError(f"no tokenizer could be loaded from '{source}': {reason}") from None


def train_bpe(texts: Iterable[str], vocab_size: int) -> TransformersCodec:
    """A byte-level BPE tokenizer (Sennrich et al. 2016) of `vocab_size` entries, learnt from `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TransformersCodec(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    )
