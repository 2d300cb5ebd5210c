"""Memory = backbone + writer + reader: write, read, generate, ask, save, load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor

from memwrite import build
from memwrite.backbones.conversation import Place
from memwrite.backbones.generation import TextStream, text_of
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.build import Components
from memwrite.checkpoints import hub, run_folder
from memwrite.checkpoints import open as opening
from memwrite.checkpoints.state_file import StateFile, header_of, load_state, save_state
from memwrite.config import Config
from memwrite.errors import InputError
from memwrite.inference import generate as generating
from memwrite.inference import predict as predicting
from memwrite.inference import read as reading
from memwrite.inference import write as writing
from memwrite.inference.cache_inputs import cache_inputs
from memwrite.inference.parts import MemoryParts
from memwrite.inference.texts import context_tokens, prompt_tokens, texts_of
from memwrite.protocols import Predictions, ReadOutput, WriteOutput
from memwrite.state import MemoryState, Tokens


class Memory(MemoryParts, ModelHubMixin, library_name=hub.LIBRARY, tags=[*hub.TAGS]):
    """A backbone with a writer and a reader that fit.

    `from_pretrained`, `save_pretrained` and `push_to_hub` take and leave run folders, with a model card, as other libraries
    do with the Hugging Face hub.

    Args:
        backbone: the language model.
        writer: None for a memory that only reads, as one loaded from a state file.
        reader: must read the writer's kind of state.
        config: what it was built from; goes into the files it saves.

    Attributes:
        prefills: a `PrefillCache` where states are to be asked more than once; None, the default, for none.
        trained: whether somebody has trained the writer, as far as is known: it came from a run folder, or wrote a state
            file that does not say otherwise.
        chat: whether a plain question is a user's message. It is where the model has a chat template, unless the memory
            was configured for a task, whose prompts have a form of their own, or was opened from a state file whose
            context is a mere text. A context that lives on as keys and values is then the beginning of that message.
        origin: the run folder that it came from; None for none.

    Raises:
        IncompatiblePair: the reader does not read what the writer emits.
    """

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
            backbone: the backbone to build around, in place of the one that the configuration describes; a mapping may
                leave that out then.

        Raises:
            ConfigError, PluginError, IncompatiblePair: the configuration cannot be built.
            StorageError: the run folder's weights do not fit.
        """
        if not isinstance(source, (str, Path)) or not Path(source).is_dir():
            return cls._of(build.from_source(source, overrides, backbone))
        memory = cls._of(run_folder.open_run(Path(source), overrides, backbone))
        memory.trained, memory.origin = True, Path(source)
        return memory

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no arguments beyond these: a misspelt one is an error
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        overrides: Sequence[str] = (),
    ) -> Memory:
        """Do as `from_config` does with a run folder, or with a repository of the hub, which is downloaded if it is not here.

        Raises:
            ConfigError: there is none, or the hub cannot be reached; or as in `from_config`.
        """
        name = str(pretrained_model_name_or_path)
        folder = hub.fetch(name, revision, cache_dir, force_download, local_files_only, token)
        return cls.from_config(folder, overrides)

    def _save_pretrained(self, save_directory: Path) -> None:
        hub.save_repository(self.components, self.origin, save_directory)

    def generate_model_card(self, **data: Any) -> ModelCard:
        """Return the card of this memory, out of its run's own record; `data` are further metadata, as in license="mit"."""
        return hub.model_card(self.components, self.origin, **data)

    @classmethod
    def _of(cls, parts: Components) -> Memory:
        return cls(*parts).to(parts.backbone.info.device).eval()

    def save_run(self, folder: str | Path) -> None:
        """Write a run folder that `from_config` takes: config, weights of writer and reader, and the backbone
        where it was trained or built from scratch.

        Raises:
            StorageError: the place cannot be written.
        """
        run_folder.save_run(self.components, Path(folder))

    def save(self, state: MemoryState, path: str | Path) -> None:
        """Write a state file: state, reader, fingerprint, provenance; never the text.

        Raises:
            IncompatiblePair: this memory's reader does not read such a state.
            StorageError: the place cannot be written.
        """
        save_state(path, self.state_file(state))

    def state_file(self, state: MemoryState) -> StateFile:
        """Return what `save` writes.

        Raises:
            IncompatiblePair: this memory's reader does not read such a state.
        """
        self.check_state(state)
        written_by, trained = self.writer_fingerprint, not self.caveat
        header = header_of(self.components, state, written_by, trained=trained, chat=self.chat)
        return StateFile(header, state, self.reader.state_dict())

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
        file = load_state(path)
        return cls.opened(file, str(path), backbone=backbone, device=device, force=force)

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
        """Do as `load` does with a state file that has been read already from `path`."""
        parts, state = opening.from_state_file(file, path, backbone, device, force)
        memory = cls._of(parts)
        memory._written_by = file.header.writer_fingerprint
        memory.trained = file.header.trained
        memory.chat = memory.chat and file.header.chat
        return memory, state

    def adopt(self, file: StateFile, path: str) -> MemoryState:
        """Return the state of a state file, read from `path`, that this memory could have written.

        Raises:
            StorageError: it is for another backbone, reader or size of state, or another writer wrote it.
        """
        return opening.state_for(self.components, file, path, self.writer_fingerprint)

    # Writing.

    def encode(
        self, texts: str | Sequence[str], raw: bool = False, state: MemoryState | None = None
    ) -> Tokens:
        """Return contexts as tokens, one row per text.

        Each is opened as the tokenizer does and closed by the end token. Where `chat` holds and the writer's states are
        keys and values, it is instead the beginning of a user's message, which the question will end.

        Args:
            texts: the contexts.
            raw: opens and closes them whatever the model.
            state: what the memories hold, so that each goes on where the conversation or text in its memory has come to; by
                default nothing.

        Raises:
            InputError: a text is empty.
        """
        places: list[Place] = []
        if self.chat and not raw and (state is not None or self.can_write):
            places = self.turns(self.writer.init(1) if state is None else state)
        return context_tokens(self.backbone, texts, self.granularity, self.opens(state), places)

    def write(
        self, context: str | Sequence[str] | Tokens, state: MemoryState | None = None
    ) -> WriteOutput:
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
        tokens = context if isinstance(context, Tokens) else self.encode(context, state=state)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            packed = tokens.to(self.backbone.info.device).packed()
            before = self.writer.init(packed.ids.shape[0]) if state is None else state
            self._check_rows(before, packed.ids.shape[0])
            return writing.write(self.components, packed, before)

    @torch.no_grad()
    def forget(self, context: str | Sequence[str] | Tokens, state: MemoryState) -> WriteOutput:
        """Take contexts, one per row, out of states that have read them, with a writer of the capability deletion.

        What is left is the state of a memory that never read them, up to rounding. A context is what one call of `write`
        was given, whole and alike: what a text says depends on the words before it, so that a part of one cannot be
        taken out, nor two texts that were written as one.

        Args:
            context: as it was given to `write`.
            state: what the memories hold.

        Raises:
            InputError: this memory's writer cannot forget, the state cannot have read the contexts, or as in `write`.
        """
        tokens = context if isinstance(context, Tokens) else self.encode(context, state=state)
        packed = tokens.to(self.backbone.info.device).packed()
        self._check_rows(state, packed.ids.shape[0])
        return writing.forget(self.components, packed, state)

    # Reading.

    def _fitting(self, state: MemoryState, query: Tokens) -> Tokens:
        self._check_rows(state, query.ids.shape[0])
        self.check_state(state)
        return query.to(self.backbone.info.device)

    def read(self, state: MemoryState, query: Tokens) -> ReadOutput:
        """Return the logits of [state; query]; the Q queries of a row share its state, prefilled once.

        Args:
            state: B memories.
            query: (B, T) or (B, Q, T).

        Raises:
            InputError: the query does not fit the state's batch or the model's positions.
        """
        query = self._fitting(state, query)
        conditioning, prefilled = self._entered(state)
        return reading.read(self.backbone, conditioning, query, prefilled)

    def predict(self, state: MemoryState, query: Tokens, labels: Tensor) -> Predictions:
        """Return the logits of [state; query] where a token is to be predicted, and at no other place.

        Args:
            state: B memories.
            query: (B, T) or (B, Q, T).
            labels: like the query's ids: the id to be predicted AT that place, -100 where nothing is. The first token of a
                query is predicted from the memory, and left out where that has no position of its own.

        Raises:
            InputError: as in `read`.
        """
        query = self._fitting(state, query)
        conditioning, prefilled = self._entered(state)
        return predicting.predict(self.backbone, conditioning, query, labels, prefilled)

    @torch.no_grad()
    def generate(self, state: MemoryState, query: Tokens | None = None, **options: Any) -> Tensor:
        """Continue each query given its state alone, by transformers' `generate`.

        Args:
            state: B memories.
            query: (B, T) or (B, Q, T); None starts from the memory itself.
            options: options of transformers' `generate`, such as `num_beams`. `max_new_tokens` is bounded by the model's
                positions. What a model's folder recommends beside its end tokens is in force only with `recommended=True`. A
                `streamer` for several rows is a `RowStreams`.

        Returns:
            (B[, Q], T') ids, after the first end token filled up with end tokens. With
            `num_return_sequences` n, n rows in turn for each query, (B·Q·n, T').

        Raises:
            InputError: the query does not fit, or an option cannot be honoured.
        """
        if query is None:
            query = Tokens.from_rows([[]] * (state.batch_size or 1))
        query = self._fitting(state, query)
        with generating.evaluating(self.model):
            conditioning, prefilled = self._entered(state)
            new = generating.generate(self.backbone, conditioning, query, options, prefilled)
        rows = query.ids.shape[:-1]
        return new.reshape(*rows, new.shape[-1]) if len(new) == rows.numel() else new

    def cache(self, state: MemoryState, ids: Tensor | None = None) -> dict[str, Any]:
        """Return what transformers' own `generate` takes in place of the memory, for this model or a copy of it.

        Args:
            state: B memories.
            ids: (B, T), what is to be continued, such as `prompt(state, question).ids`; without padding.

        Returns:
            `past_key_values` (`cache` from transformers 5.24 on), a cache of its own for each call; `attention_mask`
            (B, M + T), `position_ids` (B, T) and `input_ids`, if ids are given. Without ids the mask is that of the cache
            alone, and the position that of the next token.

        Raises:
            InputError: the memory comes with corrections or a bias, which no such cache carries.
        """
        self.check_state(state)
        with torch.no_grad(), generating.evaluating(self.model):
            conditioning, prefilled = self._entered(state)
            prefilled = prefilled or reading.prefill(self.backbone, conditioning)
        return cache_inputs(self.backbone, conditioning, prefilled, ids)

    @overload
    def ask(
        self,
        state: MemoryState,
        prompt: str = "",
        *,
        raw: bool | None = None,
        stream: Callable[[str], object] | None = None,
        **options: Any,
    ) -> str: ...

    @overload
    def ask(
        self, state: MemoryState, prompt: Sequence[str], *, raw: bool | None = None, **options: Any
    ) -> list[str]: ...

    def ask(
        self,
        state: MemoryState,
        prompt: str | Sequence[str] = "",
        *,
        raw: bool | None = None,
        stream: Callable[[str], object] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Answer a question given one memory alone, several about it, or one about each of several memories.

        Args:
            state: one row, which all prompts share, or a row for each prompt.
            prompt: what a user says where `chat` holds, else a text to continue; with an empty one, what the memory
                itself says.
            raw: True continues the text of the prompt, whatever the model.
            stream: is called with each piece of a single answer as it is generated.
            options: as in `generate`.

        Raises:
            InputError: there are more or fewer prompts than memories, or an option asks for several answers to one.
        """
        if options.get("num_return_sequences", 1) not in (1, None):
            raise InputError(
                "an answer is one sequence: leave num_return_sequences out, or call `generate`, which returns token ids"
            )
        query = self.prompt(state, prompt, raw)
        if not query.ids.shape[0]:
            return []
        if state.batch_size == 1 and query.ids.shape[0] > 1:
            query = query.map(lambda tensor: tensor[None])
        tokenizer, ends = self.backbone.tokenizer, self.backbone.info.end_ids
        if stream is not None:
            if not isinstance(prompt, str):
                raise InputError("one answer at a time can be streamed: give one prompt")
            options["streamer"] = TextStream(tokenizer.decode, ends, stream)
        new = self.generate(state, query, **options).flatten(0, -2).tolist()
        answers = [tokenizer.decode(text_of(row, ends)) for row in new]
        return answers[0] if isinstance(prompt, str) else answers

    def prompt(
        self, state: MemoryState, texts: str | Sequence[str], raw: bool | None = None
    ) -> Tokens:
        """Return prompts as `ask` puts them behind a state, one row per text.

        Args:
            state: one row, or one for each text.
            texts: the prompts.
            raw: as in `ask`.

        Raises:
            InputError: a text cannot be encoded, or there are more or fewer of them than memories.
        """
        if state.batch_size != 1:
            self._check_rows(state, len(texts_of(texts, "the prompt")))
        chat = self.chat if raw is None else self.backbone.tokenizer.has_template and not raw
        places = (self.turns(state) or [Place.BEGINNING]) if chat else []
        return prompt_tokens(self.backbone, texts, [] if chat else self.opens(state), places)
