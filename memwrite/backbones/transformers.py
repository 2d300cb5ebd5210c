"""The one place that knows transformers' model classes: loading, running, generating, fingerprint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from memwrite.backbones import (
    attention_observer,
    embedded_prompts,
    falcon,
    generation,
    mamba,
    ngram_embedding,
    rotary,
)
from memwrite.backbones.attention_sizes import AttentionSizes
from memwrite.backbones.cache import (
    AdapterCache,
    AdapterStaticCache,
    recurrent_states,
    set_recurrent_states,
)
from memwrite.backbones.conversation import end_of_turn
from memwrite.backbones.decoder_layers import attention_modules, decoder_layers
from memwrite.backbones.fingerprint import fingerprint, fingerprint_v1, is_current
from memwrite.backbones.multimodal import text_part
from memwrite.backbones.projection_hooks import KEYWORD, Projections, correcting
from memwrite.backbones.sliding_window import Windows
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import ConfigError, InputError, PositionsExceeded
from memwrite.protocols import (
    BackboneInfo,
    BackboneOutput,
    KeyValues,
    LayerActivations,
    LayerAdapter,
)
from memwrite.state import TensorSpec
from memwrite.utils.hashing import CachedDigest


class TransformersBackbone:
    """A transformers causal language model with its tokenizer, behind the `Backbone` protocol.

    Not an nn.Module on purpose: writers and readers hold it without registering its weights.

    Attributes:
        cache_name: what the model calls its argument for a cache.
        needs_saving: whether its weights are in no folder yet, so that a run folder must hold them.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, needs_saving: bool = False) -> None:
        model = self.model = text_part(model)
        self.tokenizer = tokenizer
        self.needs_saving = needs_saving
        config = self._config = model.config
        self._layers = decoder_layers(model)
        attention = attention_modules(model)
        self._sizes = AttentionSizes.of(config)
        self._fingerprint = CachedDigest(self._take_fingerprint)
        self._fingerprint_v1 = CachedDigest(self._take_fingerprint_v1)
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model only "
                f"{config.vocab_size}: set backbone.params.vocab_size"
            )
        self._recommended = generation.strip_recommendations(model)
        self._end_of_turn = end_of_turn(tokenizer)
        self.windows = Windows(config)
        self._projections = Projections(model, self._sizes)
        self._projections.install_hooks(model)
        falcon.attach(model, attention)
        mamba.attach(model)
        embedded_prompts.attach(model)
        self._attention = attention_observer.install(model, attention)
        parameters = inspect.signature(type(model.base_model).forward).parameters
        self.cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._recurrent: Mapping[int, Mapping[str, TensorSpec]] | None = None

    @property
    def info(self) -> BackboneInfo:
        """Return sizes, device and dtype as they are now."""
        weight = next(self.model.parameters())
        config = self._config
        return BackboneInfo(
            architecture=config.model_type,
            hidden_size=config.hidden_size,
            layers=self._attending,
            heads=self._sizes.heads,
            kv_heads=self._sizes.kv_heads,
            head_dim=self._sizes.head_dim,
            vocab_size=config.vocab_size,
            positions=rotary.positions(config),
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            end_ids=generation.end_ids(self.model, self.tokenizer.eos_id, self._end_of_turn),
            dtype=weight.dtype,
            device=weight.device,
            double_backward=self._attention == "eager",
            ngram=getattr(config, ngram_embedding.ATTRIBUTE, 1),
        )

    @property
    def described(self) -> dict[str, Any]:
        """Return the part of a config that loads this backbone again, if its model came from a folder or from the hub."""
        info = self.info
        return {
            "path": self.model.name_or_path or "(a model that was handed in)",
            "dtype": str(info.dtype).removeprefix("torch."),
            "device": str(info.device),
            "attention": "eager" if info.double_backward else "sdpa",
        }

    @property
    def _attending(self) -> int:
        return sum(layer.attention is not None for layer in self._layers)

    @property
    def recurrent(self) -> Mapping[int, Mapping[str, TensorSpec]]:
        """See `Backbone.recurrent`."""
        if not any(layer.recurrent for layer in self._layers):
            return {}
        if self._recurrent is None:
            ids = torch.tensor([[self.tokenizer.bos_id]], device=self.info.device)
            with torch.no_grad():
                kept = self.forward(self.embed(ids), use_cache=True).key_values
            assert kept is not None
            self._recurrent = {
                layer: {n: TensorSpec(tuple(t.shape[1:]), t.dtype) for n, t in states.items()}
                for layer, states in (kept.recurrent or {}).items()
            }
        return self._recurrent

    @property
    def supports_cache(self) -> bool:
        """Say whether keys and values can be kept; gradient checkpointing forbids it."""
        return not self.model.training or not any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )

    def encode(self, text: str) -> list[int]:
        """See `Backbone.encode`."""
        return self.tokenizer.encode(text)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) int64, each row a text from its beginning, as (B, T, D)."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        if self._config.model_type == "falcon_h1":  # scales what it embeds itself, and nothing else
            embeddings = embeddings * self._config.embedding_multiplier
        return embeddings

    def forward(
        self,
        embeddings: Tensor,
        *,
        past: KeyValues | None = None,
        corrections: Mapping[int, LayerAdapter] | None = None,
        lengths: Tensor | None = None,
        use_cache: bool = False,
        observe: Callable[[LayerActivations], None] | None = None,
    ) -> BackboneOutput:
        """See `Backbone.forward`.

        Raises:
            PositionsExceeded: the sequence is longer than the model's positions.
            ConfigError: keys and values are needed, but gradient checkpointing drops them.
        """
        batch, length = embeddings.shape[:2]
        steps = torch.arange(length, device=embeddings.device).expand(batch, length)
        positions = steps if past is None else steps + past.next_position[:, None]
        # Without a past their number is known without a look at the tensor, which could not be compiled.
        used = length if past is None or not length else int(positions[:, -1].max()) + 1
        if used > self.info.positions and lengths is not None:
            # The longest row beside it is no limit of a row.
            used = int((lengths + (0 if past is None else past.next_position)).max())
            positions = positions.clamp(max=self.info.positions - 1)
        if used > self.info.positions:
            longest = getattr(self._config, "max_position_embeddings", 0)
            beyond = longest > self.info.positions
            why = " (beyond them its rotary embedding changes for all)" if beyond else ""
            raise PositionsExceeded(
                f"{used} positions are needed, but the model has only {self.info.positions}{why}: shorten the "
                f"context or query"
            )
        cached = past is not None or use_cache
        if cached and not self.supports_cache:
            raise ConfigError(
                "gradient checkpointing drops past keys and values without a word, and this writer or reader "
                "needs them: turn one of them off"
            )
        self._check_layers(corrections)
        has_state = any(layer.recurrent for layer in self._layers)
        # Recurrent layers would take the keyword for one of theirs.
        extra: dict[str, Any] = {KEYWORD: corrections} if corrections and not has_state else {}
        cache = AdapterCache(self._layers) if cached else None
        self._fill(cache, past)
        observing = attention_observer.observing(observe, self.info.layers)
        with correcting(corrections), observing:
            output = self.model.base_model(
                inputs_embeds=embeddings.to(self.info.dtype),
                attention_mask=self.windows.mask(past, length, self.info.dtype),
                position_ids=positions,
                use_cache=cached,
                **{self.cache_name: cache},
                **extra,
            )
        kept = None
        if use_cache:
            new = steps < (length if lengths is None else lengths[:, None])
            kept = self._kept(cache, past, new)
            if has_state and lengths is not None and bool((lengths < length).any()):
                kept = self._at_ends(kept, embeddings, past, corrections, lengths)
        return BackboneOutput(output.last_hidden_state, kept)

    def _check_layers(self, corrections: Mapping[int, LayerAdapter] | None) -> None:
        count = self._attending
        if corrections and not corrections.keys() <= set(range(count)):
            raise ConfigError(
                f"changes of projections are for the layers {sorted(corrections)}, but this model has {count} layers "
                f"with attention, numbered from 0, and others cannot be changed"
            )

    def _kept(self, cache: Any, past: KeyValues | None, new: Tensor) -> KeyValues:
        """Return what a cache holds after a run.

        Args:
            cache: after the run.
            past: what it was filled with before.
            new: (B, T), which of the embeddings that were run are real.
        """
        attending = [cache.layers[e.number] for e in self._layers if e.attention is not None]
        seen = new if past is None else torch.cat([past.mask, new], 1)
        if attending:
            keys, values = (
                torch.stack([getattr(layer, name) for layer in attending], 1)
                for name in ("keys", "values")
            )
        else:
            keys = values = new.new_zeros(len(new), 0, 0, 0, 0, dtype=self.info.dtype)
            seen = seen[:, :0]
        count = new.sum(1)
        states = {
            e.number: recurrent_states(cache.layers[e.number]) for e in self._layers if e.recurrent
        }
        return KeyValues(
            keys,
            values,
            seen,
            count if past is None else past.next_position + count,
            None if past is None or past.bias is None else F.pad(past.bias, (0, new.shape[1])),
            states or None,
        )

    def _at_ends(
        self,
        kept: KeyValues,
        embeddings: Tensor,
        past: KeyValues | None,
        corrections: Mapping[int, LayerAdapter] | None,
        lengths: Tensor,
    ) -> KeyValues:
        """Replace recurrent states that padding has gone into: rows of one length are run again without it."""
        assert kept.recurrent is not None
        states = {layer: dict(held) for layer, held in kept.recurrent.items()}
        for length in sorted({*lengths.tolist()} - {embeddings.shape[1]}):
            rows = (lengths == length).nonzero().flatten()
            before = None if past is None else past.rows(rows)
            ends = None if before is None else before.recurrent
            if length:
                run = self.forward(
                    embeddings[rows, :length],
                    past=before,
                    corrections={n: c.rows(rows) for n, c in (corrections or {}).items()},
                    use_cache=True,
                )
                ends = None if run.key_values is None else run.key_values.recurrent
            for layer, held in states.items():
                for name, tensor in held.items():
                    end = (
                        tensor.new_zeros(len(rows), *tensor.shape[1:])
                        if ends is None
                        else ends[layer][name]
                    )
                    held[name] = tensor.index_copy(0, rows, end.to(tensor.dtype))
        return replace(kept, recurrent=states)

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `Backbone.parameters`."""
        yield from self.model.parameters()

    @property
    def head(self) -> Tensor:
        """Return the weight (V, D) of the output embedding."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def projection(self, layer: int, name: str) -> Tensor:
        """See `Backbone.projection`."""
        return self._projections.weight(layer, name)

    def projection_names(self, layer: int) -> frozenset[str]:
        """Return the names of the projections of one layer that can be changed."""
        return self._projections.names(layer)

    def rotate(self, keys: Tensor, by: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """See `Backbone.rotate`."""
        return rotary.rotate(self.model, keys, by, layers)

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Map (..., D) to (..., V), float32 at least; `head` (V, D) stands in for the model's own."""
        logits: Tensor
        if head is None:
            logits = self.model.get_output_embeddings()(hidden.to(self.info.dtype))
        else:
            logits = F.linear(hidden.to(head.dtype), head)
        for name in ("logit_scale", "lm_head_multiplier"):
            if factor := getattr(self._config, name, None):
                logits = logits * factor
        if divisor := getattr(self._config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(self._config, "final_logit_softcapping", None):
            logits = (logits / cap).tanh() * cap
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def generate(
        self,
        ids: Tensor,
        *,
        past: KeyValues | None,
        last: Tensor | None,
        corrections: Mapping[int, LayerAdapter] | None,
        options: Mapping[str, Any],
    ) -> Tensor:
        """Continue every row with transformers' own `generate`.

        Args:
            ids: (B, T), without padding.
            past: what the rows have read before; for T = 0 without its last slot.
            last: for T = 0: (B, 1, D) embeddings of that last slot.
            corrections: as in `forward`.
            options: options of `generate`, checked by `check_options`; max_new_tokens is needed.

        Returns:
            (B · num_return_sequences, new tokens) ids, filled up with the end token.

        Raises:
            InputError: the options contradict each other.
        """
        if options.get("recommended"):
            options = {**self._recommended, **options}
        copies = int(options.get("num_beams") or 1)
        if copies == 1 or options.get("do_sample"):
            copies = max(copies, int(options.get("num_return_sequences") or 1))
        batch, length = ids.shape
        room = (0 if past is None else past.mask.shape[1]) + (length or 1)
        config = generation.generation_config(options, self.info.end_ids, self.tokenizer.eos_id)
        cache = self._new_cache(
            options.get("cache_implementation"), room + options["max_new_tokens"]
        )
        # generate() repeats its inputs for beams and samples, but not a cache that it is handed.
        index = torch.arange(batch, device=ids.device).repeat_interleave(copies)
        self._fill(cache, None if past is None else past.rows(index))
        cache.corrections = {layer: c.rows(index) for layer, c in (corrections or {}).items()}
        mask = torch.ones(batch, length or 1, dtype=torch.bool, device=ids.device)
        positions = torch.arange(length or 1, device=ids.device).expand(batch, -1)
        if past is not None:
            mask = torch.cat([past.mask, mask], 1)
            positions = positions + past.next_position[:, None]
        inputs = {"input_ids": ids}
        if last is not None:
            # Embeddings are expected for the cached part too, and cut off unread.
            blank = last.new_zeros(batch, mask.shape[1] - 1, last.shape[-1])
            inputs = {"inputs_embeds": torch.cat([blank, last], 1)}
        try:
            output: Tensor = self.model.generate(
                **inputs,
                attention_mask=mask.long(),
                position_ids=positions,
                generation_config=config,
                **{self.cache_name: cache},
                **{name: options[name] for name in generation.ARGUMENTS & options.keys()},
            )
        except (InputError, ConfigError):
            raise
        except ValueError as error:
            raise generation.refused(error) from None
        return output[:, length:]

    @property
    def fingerprint(self) -> str:
        """The name of what computes: weights, architecture and tokenizer; see `backbones.fingerprint`."""
        return self._fingerprint.of(self.model.state_dict().values())

    def has_fingerprint(self, name: str) -> bool:
        """Whether `name` is this backbone's fingerprint, or the one that it had in files of format 1."""
        if is_current(name):
            return name == self.fingerprint
        return name == self._fingerprint_v1.of(self.model.state_dict().values())

    def _take_fingerprint(self) -> str:
        return fingerprint(self._config, self.model.state_dict(), self.tokenizer)

    def _take_fingerprint_v1(self) -> str:
        return fingerprint_v1(self._config, self.model.state_dict())

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write model, its weights as `dtype`, and tokenizer as a transformers folder."""
        was = self.info.dtype
        cast: dict[int, Tensor] = {}  # tied weights must stay one tensor, or they are stored twice
        weights = {
            name: cast.setdefault(weight.data_ptr(), weight.to(dtype))
            for name, weight in self.model.state_dict().items()
        }
        self._config.dtype = dtype
        try:
            with quiet():
                self.model.save_pretrained(folder, state_dict=weights)
        finally:
            self._config.dtype = was
        self.tokenizer.save(folder)

    def _new_cache(self, kind: str | None, size: int) -> AdapterCache | AdapterStaticCache:
        recurrent = any(layer.recurrent for layer in self._layers)
        if kind == "static" and recurrent:
            raise InputError(
                "cache_implementation 'static' is not for models with recurrent layers: leave it out"
            )
        if kind == "static":
            return AdapterStaticCache(self._config, max_cache_len=size)
        if kind not in (None, "dynamic"):
            raise InputError(f"cache_implementation must be 'dynamic' or 'static', got '{kind}'")
        return AdapterCache(self._layers)

    def plain_cache(self, past: KeyValues | None) -> DynamicCache:
        """Return a cache of transformers of its own, with a copy of what is past."""
        recurrent = any(layer.recurrent for layer in self._layers)
        cache = DynamicCache(config=self._config) if recurrent else DynamicCache()
        self._fill(cache, None if past is None else past.map(torch.clone))
        return cache

    def _fill(self, cache: Any, past: KeyValues | None) -> None:
        if past is None:
            return
        for number, held in (past.recurrent or {}).items():
            dtypes = {name: spec.dtype for name, spec in self.recurrent[number].items()}
            states = {name: tensor.to(dtypes[name]) for name, tensor in held.items()}
            set_recurrent_states(cache.layers[number], states)
        # A layer without slots would not be repeated for beams.
        if past.mask.shape[1] and self._attending:
            cache.bias = past.bias
            cache.bias_groups = self.info.heads // self.info.kv_heads
            keys, values = (t.to(self.info.dtype) for t in (past.keys, past.values))
            numbers = [layer.number for layer in self._layers if layer.attention is not None]
            for index, number in enumerate(numbers):
                cache.update(keys[:, index], values[:, index], number)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars for weight files off the screen."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
