"""What a memory is made of, as one nn.Module, and how a state enters its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from memwrite.backbones.conversation import Place
from memwrite.backbones.moving import move
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.build import Components, ReaderModule, WriterModule
from memwrite.config import Config
from memwrite.errors import InputError
from memwrite.inference import read as reading
from memwrite.inference.prefill_cache import PrefillCache, PrefillOutput
from memwrite.plugins.caveats import untrained_caveat
from memwrite.plugins.pairs import check_pair
from memwrite.protocols import Conditioning, Granularity, OnlineWriter, Reader, Writer
from memwrite.state import MemoryState
from memwrite.utils.hashing import CachedDigest, digest_of


class MemoryParts(nn.Module):
    """A backbone with a writer and a reader that fit; see `Memory`, which writes and reads with them."""

    def __init__(
        self,
        backbone: TransformersBackbone,
        writer: Writer | None,
        reader: Reader,
        config: Config,
    ) -> None:
        super().__init__()
        if writer is not None:
            check_pair(config.writer.name, writer.spec.kind, config.reader.name, reader.accepts)
        self.backbone = backbone
        self.config = config
        self.model = backbone.model
        self._modules["writer"] = cast(WriterModule | None, writer)
        self.reader = cast(ReaderModule, reader)
        self.prefills: PrefillCache | None = None
        self.chat = backbone.tokenizer.has_template and config.task is None
        self.trained = False
        self.origin: Path | None = None
        self._written_by = ""
        self._writer_digest = CachedDigest(lambda: digest_of(self.writer.state_dict()))

    def __repr__(self) -> str:
        info, config = self.backbone.info, self.config
        writer = f"writer '{config.writer.name}'" if self.can_write else "no writer"
        return (
            f"Memory({writer}, reader '{config.reader.name}', {info.architecture} of {info.layers} layers and "
            f"width {info.hidden_size}, {str(info.dtype).removeprefix('torch.')} on {info.device})"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move everything, but cast the backbone alone: writer and reader compute in the dtype of states."""
        writer, reader = self._modules["writer"], self.reader
        move(self.backbone, [reader] if writer is None else [writer, reader], fn, recurse)
        return self

    @property
    def can_write(self) -> bool:
        """Return whether there is a writer: a memory opened from a state file has none."""
        return self._modules["writer"] is not None

    @property
    def writer(self) -> WriterModule:
        """Return the writer.

        Raises:
            InputError: there is none.
        """
        if not self.can_write:
            raise InputError("this memory was opened from a state file and can only read")
        return cast(WriterModule, self._modules["writer"])

    @property
    def components(self) -> Components:
        """Return what this memory is made of."""
        writer = self.writer if self.can_write else None
        return Components(self.backbone, writer, self.reader, self.config)

    @property
    def granularity(self) -> Granularity:
        """Return what the writer writes at a time; "token" where it does not care."""
        writer: Any = self._modules["writer"]
        return writer.granularity if isinstance(writer, OnlineWriter) else "token"

    @property
    def caveat(self) -> str:
        """Return what the states of a writer are worth that nobody has trained; "" where they are worth as much."""
        if self.trained:
            return ""
        learns = not self.can_write or any(True for _ in self.writer.parameters())
        return untrained_caveat(self.config, learns)

    @property
    def writer_fingerprint(self) -> str:
        """Return 32 hex digits over the weights of what writes, or wrote the state file that was opened; "" for none."""
        if not self.can_write:
            return self._written_by
        weights = self.writer.state_dict()
        return self._writer_digest.of(weights.values()) if weights else ""

    def check_state(self, state: MemoryState) -> None:
        """Refuse a state of a kind that the reader does not read.

        Raises:
            IncompatiblePair: it is of such a kind.
        """
        writer, reader = self.config.writer.name, self.config.reader.name
        check_pair(writer, state.spec.kind, reader, self.reader.accepts)

    def condition(self, state: MemoryState) -> Conditioning:
        """Return how the reader lets `state` into the model.

        Raises:
            InputError: it is not of this model's sizes.
        """
        conditioning = self.reader.condition(state)
        reading.check_fits(conditioning, self.backbone)
        return conditioning

    def _entered(self, state: MemoryState) -> tuple[Conditioning, PrefillOutput | None]:
        """Return how `state` enters the model, and what the cache has of it, if there is one that may be used."""
        conditioning, prefilled = self.condition(state), None
        if self.prefills is not None and conditioning.prefix is not None:

            def prefill(rows: MemoryState) -> PrefillOutput:
                return reading.prefill(self.backbone, self.condition(rows))

            prefilled = self.prefills.rows(self.components, state, prefill)
        return conditioning, prefilled

    def _check_rows(self, state: MemoryState, rows: int) -> None:
        # One state for several rows would be shared among users.
        if state.batch_size not in (None, rows):
            raise InputError(f"the state holds {state.batch_size} rows, but {rows} were given")

    def opens(self, state: MemoryState | None) -> list[bool]:
        """Return for each row of a state whether what is put behind it is the start of a text for the model.

        It is not where the memory is a past of keys and values, which stands before it. [] where all rows open one.
        """
        if state is None or not self.backbone.tokenizer.opening:
            return []
        return [not begun for begun in self._begun(state)]

    def turns(self, state: MemoryState) -> list[Place]:
        """Return for each row of a state where the conversation stands that goes on behind it.

        A memory of keys and values is taken for one in an open user's turn, unless it is empty; `write` and sessions leave
        it there. [] where every question begins a conversation: with other kinds of state, and where `chat` does not hold.
        """
        begun = self._begun(state) if self.chat else []
        return [Place.TEXT if row else Place.BEGINNING for row in begun]

    def _begun(self, state: MemoryState) -> list[bool]:
        """Return for each row whether it is a past in which the model has read something; [] if its kind is none."""
        past = self.condition(state).key_values
        return [] if past is None else past.begun.tolist()
