"""How many heads a model's attention has and how wide they are, in the words of every family's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memwrite.errors import ConfigError


@dataclass(frozen=True)
class AttentionSizes:
    """The sizes of a model's attention layers.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads, as a cache holds them.
        projected: key and value heads, as the projections compute them; Falcon caches each once for every query head.
        head_dim: the width of a head.
    """

    heads: int
    kv_heads: int
    projected: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> AttentionSizes:
        """Return the sizes that a transformers config describes; all 0 where every layer is recurrent.

        Raises:
            ConfigError: the query heads cannot share the key heads, or layers differ.
        """
        try:
            return cls._of(config)
        except (
            RuntimeError
        ) as error:  # transformers' word for a size that each layer has of its own
            raise ConfigError(
                f"the attention layers of '{config.model_type}' differ in size, which is not supported: take a model of "
                f"another family"
            ) from error

    @classmethod
    def _of(cls, config: Any) -> AttentionSizes:
        if not hasattr(config, "num_attention_heads"):
            return cls(0, 0, 0, 0)
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        if config.model_type == "falcon":
            new = config.new_decoder_architecture
            projected = int(config.num_kv_heads) if new or not config.multi_query else 1
            return cls(heads, heads if new else projected, projected, head_dim)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        if heads % kv_heads:
            raise ConfigError(
                f"the model's {heads} attention heads cannot share {kv_heads} key heads: num_key_value_heads must "
                f"divide num_attention_heads"
            )
        return cls(heads, kv_heads, kv_heads, head_dim)

    @property
    def widths(self) -> dict[str, int]:
        """Return the output widths of q, k and v."""
        key = self.projected * self.head_dim
        return {"q": self.heads * self.head_dim, "k": key, "v": key}
