"""The one place that knows transformers' model classes: loading, running, generating, fingerprint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.backbones import (
    attention_observer,
    embedded_prompts,
    falcon,
    generation,
    key_values,
    mamba,
    ngram_embedding,
    positions,
    rotary,
    saving,
    scales,
)
from memwrite.backbones.attention_sizes import AttentionSizes
from memwrite.backbones.cache import AdapterCache, cache_argument, new_cache, plain_cache
from memwrite.backbones.conversation import end_of_turn
from memwrite.backbones.corrections import KEYWORD, correcting
from memwrite.backbones.decoder_layers import attention_modules, check_numbers, decoder_layers
from memwrite.backbones.fingerprint import Fingerprints
from memwrite.backbones.multimodal import text_part
from memwrite.backbones.projection_hooks import Projections
from memwrite.backbones.recurrent_padding import run_again
from memwrite.backbones.sliding_window import Windows
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import ConfigError
from memwrite.protocols import (
    BackboneInfo,
    BackboneOutput,
    KeyValues,
    LayerActivations,
    LayerAdapter,
)
from memwrite.state import TensorSpec


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
        self._attending = len(attention)
        self._sizes = AttentionSizes.of(config)
        self._fingerprints = Fingerprints(model, tokenizer)
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
        self.cache_name = cache_argument(parameters)
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
    def recurrent(self) -> Mapping[int, Mapping[str, TensorSpec]]:
        """See `Backbone.recurrent`."""
        if not any(layer.recurrent for layer in self._layers):
            return {}
        if self._recurrent is None:
            ids = torch.tensor([[self.tokenizer.bos_id]], device=self.info.device)
            with torch.no_grad():
                kept = self.forward(self.embed(ids), use_cache=True).key_values
            assert kept is not None
            self._recurrent = key_values.recurrent_specs(kept)
        return self._recurrent

    @property
    def supports_cache(self) -> bool:
        """Say whether keys and values can be kept; gradient checkpointing forbids it."""
        return not self.model.training or not any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )

    @property
    def reads_rows_apart(self) -> bool:
        """Say whether rows of several lengths can be read in one run and go on from there, each as by itself."""
        return (
            self.supports_cache
            and self.windows.size is None
            and not any(layer.recurrent for layer in self._layers)
            and getattr(self._config, ngram_embedding.ATTRIBUTE, 1) == 1
        )

    def encode(self, text: str) -> list[int]:
        """See `Backbone.encode`."""
        return self.tokenizer.encode(text)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) int64, each row a text from its beginning, as (B, T, D)."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return scales.embeddings(embeddings, self._config)

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
        length = embeddings.shape[1]
        at = positions.of_tokens(embeddings, past, lengths, self._config)
        cached = past is not None or use_cache
        if cached and not self.supports_cache:
            raise ConfigError(
                "gradient checkpointing drops past keys and values without a word, and this writer or reader "
                "needs them: turn one of them off"
            )
        check_numbers(corrections or {}, self._attending)
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
                position_ids=at,
                use_cache=cached,
                **{self.cache_name: cache},
                **extra,
            )
        kept = None
        if use_cache:
            new = positions.real(embeddings, lengths)
            kept = key_values.kept(cache, past, new, self._layers, self.info.dtype)
            if has_state and lengths is not None and bool((lengths < length).any()):
                kept = run_again(self, kept, embeddings, past, corrections, lengths)
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

    def projection_module(self, layer: int, name: str) -> str:
        """Return the name, within the model, of the linear layer that computes one projection and nothing else.

        Raises:
            ConfigError: there is none.
        """
        module = self._projections.module(layer, name)
        names = {own: name for name, own in self.model.named_modules()}
        found: str = names[module]
        return found

    def rotate(self, keys: Tensor, by: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """See `Backbone.rotate`."""
        return rotary.rotate(self.model, keys, by, layers)

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Map (..., D) to (..., V), float32 at least; `head` (V, D) stands in for the model's own."""
        # One product of two matrices: for part of a sequence, or in the backward pass, torch would copy the head for every row.
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits: Tensor
        if head is None:
            logits = self.model.get_output_embeddings()(flat.to(self.info.dtype))
        else:
            logits = F.linear(flat.to(head.dtype), head)
        logits = scales.logits(logits, self._config).reshape(*hidden.shape[:-1], logits.shape[-1])
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
        config = generation.generation_config(options, self.info.end_ids, self.tokenizer.eos_id)
        inputs = generation.inputs(ids, past, last)
        size = inputs["attention_mask"].shape[1] + options["max_new_tokens"]
        cache = new_cache(options.get("cache_implementation"), self._layers, self._config, size)
        # generate() repeats its inputs for beams and samples, but not a cache that it is handed.
        copies = generation.copies(options)
        index = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        self._fill(cache, None if past is None else past.rows(index))
        cache.corrections = {layer: c.rows(index) for layer, c in (corrections or {}).items()}
        head = self.model.get_output_embeddings()
        with generation.refusing(), generation.one_product(head):
            output: Tensor = self.model.generate(
                **inputs,
                generation_config=config,
                **{self.cache_name: cache},
                **{name: options[name] for name in generation.ARGUMENTS & options.keys()},
            )
        return output[:, ids.shape[1] :]

    @property
    def fingerprint(self) -> str:
        """The name of what computes: weights, architecture and tokenizer; see `backbones.fingerprint`."""
        return self._fingerprints.current

    def has_fingerprint(self, name: str) -> bool:
        """Whether `name` is this backbone's fingerprint, or the one that it had in files of format 1."""
        return self._fingerprints.include(name)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write model, its weights as `dtype`, and tokenizer as a transformers folder."""
        saving.save(self.model, folder, dtype)
        self.tokenizer.save(folder)

    def plain_cache(self, past: KeyValues | None) -> Any:
        """Return a cache of transformers of its own, with a copy of what is past."""
        cache = plain_cache(self._layers, self._config)
        self._fill(cache, None if past is None else past.map(torch.clone))
        return cache

    def _fill(self, cache: Any, past: KeyValues | None) -> None:
        if past is not None:
            specs = self.recurrent if past.recurrent else {}
            key_values.fill(cache, past, self._layers, self.info, specs)
