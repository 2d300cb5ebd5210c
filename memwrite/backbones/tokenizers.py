"""Map text to token ids and back: with a folder's own tokenizer, plain UTF-8 bytes, single characters, or words."""

from __future__ import annotations

import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from memwrite.backbones.chat import Message, SpecialTokens, Splitter, cut, plain_chat
from memwrite.backbones.remote_code import load_error
from memwrite.errors import ConfigError, InputError

START, END, UNKNOWN = "<|start|>", "<|end|>", "<|unknown|>"
#: Tokenizers that need no folder.
BUILT_IN = ("bytes", "characters")
#: Tokenizers that `memwrite train` learns from the text it trains on.
LEARNT = ("bpe", "words")
ALPHABET = string.ascii_letters + string.digits
STRUCTURE = "!?:|"

# Fast tokenizers keep whether special tokens count as such from one call to the next, whatever thread makes it.
_encoding = Lock()


class Tokenizer(Protocol):
    """Encodes text without special tokens.

    Attributes:
        vocab_size: number of ids.
        bos_id: id of the token that opens a text.
        eos_id: id of the token that closes a text.
        opening: ids that the tokenizer itself puts before a text; most put none.
        has_template: whether chat messages are rendered by a template of its own.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    opening: tuple[int, ...]

    @property
    def has_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def segments(self, text: str, split: Splitter) -> list[list[int]]:
        """Return the ids of each segment that `split` makes of a text; joined they are the ids of the whole text."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(self, messages: Sequence[Message], answer: bool, split: Splitter) -> list[list[int]]:
        """Return the ids of every segment that `split` makes of every message.

        Args:
            messages: at least one. Special tokens that are spelled out in them stay text.
            answer: whether to open the assistant's turn behind them.
            split: gives the segments of a text, which are the text when they are joined.

        Raises:
            InputError: the tokenizer's template does not take such messages.
        """
        ...

    def save(self, folder: Path) -> None: ...


class ByteTokenizer:
    """Ids 0..255 are bytes, 256 opens a text, 257 closes it. Damaged UTF-8 decodes to U+FFFD."""

    vocab_size, bos_id, eos_id = 258, 256, 257
    opening: tuple[int, ...] = ()
    has_template = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def segments(self, text: str, split: Splitter) -> list[list[int]]:
        return [self.encode(piece) for piece in split(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def chat(self, messages: Sequence[Message], answer: bool, split: Splitter) -> list[list[int]]:
        return [ids for line in plain_chat(messages, answer) for ids in self.segments(line, split)]

    def save(self, folder: Path) -> None:
        """Save nothing: a byte model's folder without a tokenizer means bytes."""


class TransformersTokenizer:
    """A transformers tokenizer, for any number of threads. Special tokens spelled out in a text stay text.

    `encode` raises InputError for a text with characters that the tokenizer does not know.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._unknown: int | None = tokenizer.unk_token_id
        self.vocab_size: int = len(tokenizer)
        end = tokenizer.eos_token_id
        if end is None:
            raise ConfigError("the tokenizer has no end-of-text (eos) token")
        self.eos_id: int = end
        self.bos_id: int = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.opening = self._opening()
        self._special = SpecialTokens(tokenizer, self._ids)

    @property
    def has_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    @property
    def wrapped(self) -> Any:
        """The transformers tokenizer itself."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        ids = [i for i, _ in self._placed(text)]
        self._check_known(text, ids)
        return ids

    def segments(self, text: str, split: Splitter) -> list[list[int]]:
        placed = self._placed(text)
        self._check_known(text, [i for i, _ in placed])
        return cut(placed, split(text))

    def _check_known(self, text: str, ids: Sequence[int]) -> None:
        # The unknown token would stand for any text at all, and nobody would be told.
        if self._unknown in ids:
            unknown = (c for c in dict.fromkeys(text) if self._unknown in self._ids(c))
            raise InputError(
                f"the tokenizer does not know the character {next(unknown, text)!r} of the text"
            )

    def _ids(self, text: str, **options: bool) -> list[int]:
        return [i for i, _ in self._placed(text, **options)]

    def _placed(
        self, text: str, *, split_special: bool = True, add_special: bool = False
    ) -> list[tuple[int, int]]:
        """Return each id with the place of its first character."""
        with _encoding:
            encoded = self._tokenizer(
                text,
                add_special_tokens=add_special,
                split_special_tokens=split_special,
                return_offsets_mapping=self._tokenizer.is_fast,
            )
        ids: list[int] = encoded["input_ids"]
        # A tokenizer that does not tell places cannot be cut: all belongs to the first segment.
        places = encoded.get("offset_mapping") or [(0, 0)] * len(ids)
        return [(i, start) for i, (start, _) in zip(ids, places, strict=True)]

    def _opening(self) -> tuple[int, ...]:
        bare = self._ids("a")
        framed = self._ids("a", add_special=True)
        starts = range(len(framed) - len(bare) + 1)
        first = next((i for i in starts if framed[i : i + len(bare)] == bare), 0)
        return tuple(framed[:first])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Message], answer: bool, split: Splitter) -> list[list[int]]:
        if not self.has_template:
            lines = plain_chat(messages, answer)
            return [ids for line in lines for ids in self.segments(line, split)]
        masked = self._special.mask(messages)
        turns = self._turns(masked, answer)
        text = "".join(turns)
        if masked == [dict(message) for message in messages]:
            placed = self._placed(text, split_special=False)
        else:
            placed = self._special.place(text, self._placed)
        # The segments are those of the text that the messages say, whose length masking leaves alone.
        return cut(placed, [piece for turn in turns for piece in split(self._special.unmask(turn))])

    def _turns(self, messages: Sequence[Message], answer: bool) -> list[str]:
        texts = [self._rendered(messages[: i + 1], False) for i in range(len(messages))]
        if answer:
            texts.append(self._rendered(messages, True))
        before = ["", *texts[:-1]]
        if not all(text.startswith(shorter) for text, shorter in zip(texts, before, strict=True)):
            # The template writes a message otherwise when others follow it.
            return texts[-1:]
        return [text[len(shorter) :] for text, shorter in zip(texts, before, strict=True)]

    def _rendered(self, messages: Sequence[Message], answer: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=answer
                )
            )
        except Exception as error:  # templates raise whatever they like
            raise InputError(
                f"the tokenizer's chat template refused the messages: {error}"
            ) from None

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Return the tokenizer of a folder, a hub id or a name of `BUILT_IN`; bytes for a folder that has none."""
    if source == "characters":
        return character_tokenizer()
    folder = Path(source)
    if source == "bytes" or (
        folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*"))
    ):
        return ByteTokenizer()
    from transformers import AutoTokenizer

    try:
        return TransformersTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    except ConfigError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise errors of every kind
        raise ConfigError(
            f"no tokenizer could be loaded from '{source}': {load_error(error)}"
        ) from None


def character_tokenizer() -> TransformersTokenizer:
    """Make a tokenizer of one token a character, those of `ALPHABET` and `STRUCTURE`, 70 in all.

    The ids are those of GradMem (github.com/yurakuratov/gradmem): [PAD] 0, [BOS] 1, [EOS] 2, [UNK] 3, then
    a-z, A-Z, 0-9 and "!?:|".
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    special = {
        "pad_token": "[PAD]",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "unk_token": "[UNK]",
    }
    tokens = [*special.values(), *ALPHABET, *STRUCTURE]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = FastTokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return TransformersTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def train_bpe(texts: Iterable[str], vocab_size: int) -> TransformersTokenizer:
    """Learn a byte-level BPE tokenizer (Sennrich et al. 2016) of `vocab_size` entries from `texts`."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TransformersTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    )


def train_words(texts: Iterable[str], vocab_size: int | None = None) -> TransformersTokenizer:
    """Learn one token a word or run of punctuation, as they come in `texts`; the rarest are dropped beyond `vocab_size`.

    White space is not encoded: `decode` puts a space between all tokens. Other words than those become one unknown
    token, which is no error, unlike with other tokenizers: a small model has nothing else to say of them.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = FastTokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size or sys.maxsize,
        special_tokens=[START, END, UNKNOWN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The unknown token is not named here, so that `TransformersTokenizer` lets it pass.
    return TransformersTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    )


def learnt_tokenizer(kind: str, texts: Iterable[str], vocab_size: object) -> TransformersTokenizer:
    """Learn a tokenizer of a kind of `LEARNT`.

    Args:
        kind: its name.
        texts: what it is learnt from.
        vocab_size: as in the config, where nobody has checked it; "words" needs none.

    Raises:
        ConfigError: the size is too small for this kind.
    """
    least = 258 if kind == "bpe" else 4
    if kind == "words" and vocab_size is None:
        return train_words(texts)
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise ConfigError(
            f"backbone.params.vocab_size must be at least {least} for {kind}, got {vocab_size}"
        )
    return train_bpe(texts, vocab_size) if kind == "bpe" else train_words(texts, vocab_size)
