"""Memory = backbone + writer + reader: write, read, generate, ask, train, save, load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from memwrite import building, reading, runs, writing
from memwrite.backbone import TransformersBackbone
from memwrite.config import Config
from memwrite.encoding import batched, pieces
from memwrite.errors import InputError
from memwrite.fingerprint import Remembered, digest_of
from memwrite.loss import Batch, MemoryOutput, target_loss
from memwrite.prefill import PrefillCache, Prefilled
from memwrite.protocols import (
    Conditioning,
    Granularity,
    OnlineWriter,
    Reader,
    ReadOutput,
    Writer,
    Written,
)
from memwrite.session import Session
from memwrite.state import MemoryState, Tokens
from memwrite.storage import StateFile, load_state, save_state


class Memory(nn.Module):
    """A backbone with a writer and a reader that fit.

    Args:
        backbone: the language model.
        writer: None for a memory that only reads, as one loaded from a state file.
        reader: must accept the writer's kind of state.
        config: what it was built from; goes into the files it saves.

    Attributes:
        prefills: a `PrefillCache` where states are to be asked more than once; None, the default, for none.

    Raises:
        IncompatiblePair: the reader does not accept what the writer emits.
    """

    def __init__(
        self,
        backbone: TransformersBackbone,
        writer: Writer | None,
        reader: Reader,
        config: Config,
    ) -> None:
        super().__init__()
        if writer is not None:
            building.check_pair(config, writer.spec.kind, reader.accepts)
        self.backbone = backbone
        self.config = config
        self.model = backbone.model
        self.writer: Any = writer
        self.reader: Any = reader
        self.prefills: PrefillCache | None = None
        self._writer_digest = Remembered(lambda: digest_of(self.writer.state_dict()))

    # ---- building, loading, saving -------------------------------------------------------------

    @classmethod
    def from_config(
        cls,
        source: str | Path | Mapping[str, Any] | Config,
        overrides: Sequence[str] = (),
        backbone: TransformersBackbone | None = None,
    ) -> Memory:
        """Build from a YAML file, a mapping, a `Config`, or a run folder (with its trained weights).

        Args:
            source: what to build.
            overrides: changes of it, each as `key.path=value`.
            backbone: to build around, in place of the one that the configuration describes.

        Raises:
            ConfigError, PluginError, IncompatiblePair: the configuration cannot be built.
            StorageError: the run folder's weights do not fit.
        """
        parts, weights = building.from_config(source, overrides, backbone)
        memory = cls(*parts)
        memory.to(parts.backbone.info.device).eval()
        if weights is not None:
            runs.load_weights(memory, weights)
        return memory

    def save_run(self, folder: str | Path) -> None:
        """Write a run folder that `from_config` takes: config, weights of writer and reader, and the backbone
        where it was trained or built from scratch.

        Raises:
            StorageError: the place cannot be written.
        """
        runs.save_run(self, Path(folder))

    def save(self, state: MemoryState, path: str | Path) -> None:
        """Write a state file: state, reader, fingerprint, provenance; never the text.

        Raises:
            IncompatiblePair: this memory's reader does not accept such a state.
            StorageError: the place cannot be written.
        """
        self.check_state(state)
        save_state(path, StateFile(runs.header(self, state), state, self.reader.state_dict()))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backbone: str | None = None,
        device: str | None = None,
        force: bool = False,
    ) -> tuple[Memory, MemoryState]:
        """Open a state file: a memory that reads, and its state.

        Args:
            path: the state file.
            backbone: folder of the backbone; by default where the file says it was. Never downloads.
            device: by default where the writer ran.
            force: accept another backbone than the one the state was written for.

        Raises:
            StorageError: the file cannot be used, or is for another backbone.
            PluginError: its reader is not installed.
        """
        return cls.opened(
            load_state(path), str(path), backbone=backbone, device=device, force=force
        )

    @classmethod
    def opened(
        cls,
        file: StateFile,
        path: str,
        *,
        backbone: str | None = None,
        device: str | None = None,
        force: bool = False,
    ) -> tuple[Memory, MemoryState]:
        """As `load`, for a state file that has been read already from `path`."""
        parts = building.from_state_file(file, path, backbone, device, force)
        memory = cls(*parts).to(parts.backbone.info.device).eval()
        return memory, runs.readable(memory, file.state, path)

    # ---- write ---------------------------------------------------------------------------------

    def encode(self, texts: str | Sequence[str]) -> Tokens:
        """Contexts as tokens, one row per text, each closed by the end token.

        Raises:
            InputError: a text is empty.
        """
        rows, granularity, end = [], self.granularity, self.backbone.info.end
        texts = [texts] if isinstance(texts, str) else texts
        for text in texts:
            if not text.strip():
                raise InputError("the context is empty: give a text to write")
            *first, last = pieces(self.backbone.codec, text, granularity)
            rows.append([*first, [*last, end]])
        if not rows:
            raise InputError("there is no context: give at least one text to write")
        return batched(rows, granularity, self.backbone.info.device)

    @property
    def granularity(self) -> Granularity:
        """What the writer writes at a time; "token" where it does not care."""
        return self.writer.granularity if isinstance(self.writer, OnlineWriter) else "token"

    @property
    def writer_fingerprint(self) -> str:
        """32 hex digits over the writer's weights; "" where it has none, or there is no writer."""
        weights = {} if self.writer is None else self.writer.state_dict()
        return self._writer_digest.of(weights.values()) if weights else ""

    def session(self, state: MemoryState | None = None, read_only: bool = False) -> Session:
        """Online use from `state` on, by default from nothing; see `Session`."""
        return Session(self, state, read_only)

    def write(
        self, context: str | Sequence[str] | Tokens, state: MemoryState | None = None
    ) -> Written:
        """Write contexts into states, one per row, in chunks where a context is longer than the model's positions.

        Keeps a graph only in training mode and where grad mode is on.

        Args:
            context: texts, or tokens (B, T).
            state: what the memories held before; by default nothing.

        Raises:
            InputError: a text is empty, the state does not fit, or this memory has no writer.
            ContractViolation: the writer broke its own spec.
            DivergenceError: a state is not finite.
        """
        tokens = context if isinstance(context, Tokens) else self.encode(context)
        if self.writer is None:
            raise InputError("this memory was opened from a state file and can only read")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            packed = tokens.to(self.backbone.info.device).packed()
            if state is None:
                state = self.writer.init(packed.ids.shape[0])
            self._check_rows(state, packed.ids.shape[0])
            return writing.write(self, packed, state)

    # ---- read ----------------------------------------------------------------------------------

    def read(self, state: MemoryState, query: Tokens) -> ReadOutput:
        """Logits of [state; query]; the Q queries of a row share its state, prefilled once.

        Args:
            state: B memories.
            query: (B, T) or (B, Q, T).

        Raises:
            InputError: the query does not fit the state's batch or the model's positions.
        """
        query = self._fitting(state, query)
        conditioning = self.condition(state)
        prefilled = self._prefilled(state, conditioning)
        return reading.read(self.backbone, conditioning, query, prefilled)

    @torch.no_grad()
    def generate(self, state: MemoryState, query: Tokens | None = None, **options: Any) -> Tensor:
        """Continue each query given its state alone, by transformers' `generate`.

        Args:
            state: B memories.
            query: (B, T) or (B, Q, T); None starts from the memory itself.
            options: of `generate`; `max_new_tokens` is bounded by the model's positions.

        Returns:
            (B[, Q], T') ids, after the first end token filled up with end tokens. With
            `num_return_sequences` n, n rows in turn for each query, (B·Q·n, T').
        """
        if query is None:
            query = Tokens.from_rows([[]] * (state.batch_size or 1))
        query = self._fitting(state, query)
        conditioning = self.condition(state)
        prefilled = self._prefilled(state, conditioning)
        new = reading.generate(self.backbone, conditioning, query, options, prefilled)
        rows = query.ids.shape[:-1]
        return new.reshape(*rows, new.shape[-1]) if len(new) == rows.numel() else new

    def condition(self, state: MemoryState) -> Conditioning:
        """How the reader lets `state` into the model.

        Raises:
            InputError: it is not of this model's sizes.
        """
        conditioning: Conditioning = self.reader.condition(state)
        reading.check_fits(conditioning, self.backbone.info)
        return conditioning

    def _prefilled(self, state: MemoryState, conditioning: Conditioning) -> Prefilled | None:
        """What the cache has of it, where there is one and no gradient could be lost in it."""
        if self.prefills is None or torch.is_grad_enabled() or conditioning.prefix is None:
            return None
        weights = [*self.model.state_dict().values(), *self.reader.state_dict().values()]
        return self.prefills.rows(
            state, weights, lambda rows: reading.prefill(self.backbone, self.condition(rows))
        )

    def _fitting(self, state: MemoryState, query: Tokens) -> Tokens:
        self._check_rows(state, query.ids.shape[0])
        self.check_state(state)
        return query.to(self.backbone.info.device)

    def check_state(self, state: MemoryState) -> None:
        """See that the reader accepts `state`.

        Raises:
            IncompatiblePair: it does not.
        """
        building.check_pair(self.config, state.spec.kind, self.reader.accepts)

    def _check_rows(self, state: MemoryState, rows: int) -> None:
        # One state for several rows would be shared among users.
        if state.batch_size not in (None, rows):
            raise InputError(f"the state holds {state.batch_size} rows, but {rows} were given")

    @overload
    def ask(self, state: MemoryState, prompt: str = "", **options: Any) -> str: ...

    @overload
    def ask(self, state: MemoryState, prompt: Sequence[str], **options: Any) -> list[str]: ...

    def ask(
        self, state: MemoryState, prompt: str | Sequence[str] = "", **options: Any
    ) -> str | list[str]:
        """Continue a prompt given one memory alone, or one prompt for each of several memories.

        Args:
            state: one row for one prompt, or a row for each.
            prompt: a text; with an empty one, what the memory itself says.
            options: as in `generate`.

        Raises:
            InputError: there are more or fewer prompts than memories.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [pieces(self.backbone.codec, p, "token")[0] if p else [] for p in prompts]
        new = self.generate(state, Tokens.from_rows(rows), **options).tolist() if rows else []
        end, decode = self.backbone.info.end, self.backbone.codec.decode
        answers = [decode(row[: row.index(end)] if end in row else row) for row in new]
        return answers[0] if isinstance(prompt, str) else answers

    # ---- train ---------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> MemoryOutput:
        """Write the contexts, read the queries, and compare with the labels.

        The loss is the mean cross-entropy over all labelled tokens, plus the mean of each of the writer's losses.
        """
        written = self.write(batch.context)
        output = self.read(written.state, batch.queries)
        queries = batch.queries.to(output.logits.device)
        target, exact, asked = target_loss(output, queries, batch.labels)
        losses = {"target": target, **{name: loss.mean() for name, loss in written.losses.items()}}
        total = torch.stack(list(losses.values())).sum()
        return MemoryOutput(total, output.logits, losses, exact, asked)
