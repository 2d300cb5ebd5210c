"""The one place that knows transformers' model classes: loading, running, generating, fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from memwrite.backbones import attention_observer, falcon, generation, ngram_embedding, rotary
from memwrite.backbones.attention_sizes import AttentionSizes
from memwrite.backbones.conversation import end_of_turn
from memwrite.backbones.fingerprint import fingerprint, fingerprint_v1, is_current
from memwrite.backbones.multimodal import text_part
from memwrite.backbones.projection_hooks import (
    KEYWORD,
    AdapterCache,
    AdapterStaticCache,
    Projections,
    attention_modules,
    correcting,
)
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
from memwrite.utils.hashing import CachedDigest


class TransformersBackbone:
    """A transformers causal language model with its tokenizer, behind the `Backbone` protocol.

    Not an nn.Module on purpose: writers and readers hold it without registering its weights.

    Attributes:
        needs_saving: whether its weights are in no folder yet, so that a run folder must hold them.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, needs_saving: bool = False) -> None:
        model = self.model = text_part(model)
        self.tokenizer = tokenizer
        self.needs_saving = needs_saving
        config = self._config = model.config
        layers = attention_modules(model)  # a model without attention has none of the sizes below
        self._sizes = AttentionSizes.of(config)
        self._fingerprint = CachedDigest(self._take_fingerprint)
        self._fingerprint_v1 = CachedDigest(self._take_fingerprint_v1)
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model only "
                f"{config.vocab_size}: set backbone.params.vocab_size"
            )
        generation.strip_recommendations(model)
        self._end_of_turn = end_of_turn(tokenizer)
        self.windows = Windows(config)
        self._projections = Projections(model, self._sizes)
        self._projections.install_hooks(model)
        falcon.attach(model, layers)
        self._attention = attention_observer.install(model, layers)

    @property
    def info(self) -> BackboneInfo:
        """Return sizes, device and dtype as they are now."""
        weight = next(self.model.parameters())
        config = self._config
        return BackboneInfo(
            architecture=config.model_type,
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
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
            beyond = self._config.max_position_embeddings > self.info.positions
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
        extra: dict[str, Any] = {KEYWORD: corrections} if corrections else {}
        cache = AdapterCache() if cached else None
        self._fill(cache, past)
        observing = attention_observer.observing(observe, self.info.layers)
        with correcting(corrections), observing:
            output = self.model.base_model(
                inputs_embeds=embeddings.to(self.info.dtype),
                attention_mask=self.windows.mask(past, length, self.info.dtype),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cached,
                **extra,
            )
        kept = None
        if use_cache:
            layers = output.past_key_values.layers
            new = steps < (length if lengths is None else lengths[:, None])
            count = new.sum(1)
            kept = KeyValues(
                torch.stack([layer.keys for layer in layers], 1),
                torch.stack([layer.values for layer in layers], 1),
                new if past is None else torch.cat([past.mask, new], 1),
                count if past is None else past.next_position + count,
                None if past is None or past.bias is None else F.pad(past.bias, (0, length)),
            )
        return BackboneOutput(output.last_hidden_state, kept)

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
        return rotary.rotate(self.model, attention_modules(self.model), keys, by, layers)

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Map (..., D) to (..., V), float32 at least; `head` (V, D) stands in for the model's own."""
        logits: Tensor
        if head is None:
            logits = self.model.get_output_embeddings()(hidden.to(self.info.dtype))
        else:
            logits = F.linear(hidden.to(head.dtype), head)
        if factor := getattr(self._config, "logit_scale", None):
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
            blank = last.new_zeros(batch, cache.get_seq_length(), last.shape[-1])
            inputs = {"inputs_embeds": torch.cat([blank, last], 1)}
        try:
            output: Tensor = self.model.generate(
                **inputs,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                generation_config=config,
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
        if kind == "static":
            return AdapterStaticCache(self._config, max_cache_len=size)
        if kind not in (None, "dynamic"):
            raise InputError(f"cache_implementation must be 'dynamic' or 'static', got '{kind}'")
        # Not of the model's config: layers with a window would drop the keys that are beyond it.
        return AdapterCache()

    def _fill(self, cache: Any, past: KeyValues | None) -> None:
        # A layer without slots would not be repeated for beams.
        if past is not None and past.mask.shape[1]:
            cache.bias = past.bias
            cache.bias_groups = self.info.heads // self.info.kv_heads
            keys, values = (t.to(self.info.dtype) for t in (past.keys, past.values))
            for layer in range(keys.shape[1]):
                cache.update(keys[:, layer], values[:, layer], layer)


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
