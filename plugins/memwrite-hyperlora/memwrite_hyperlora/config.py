"""What can be set on the writers and readers of this package."""

from __future__ import annotations

from dataclasses import dataclass, field

from memwrite.errors import did_you_mean

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("frobenius", "spectral", "svd")


@dataclass(frozen=True)
class GenerativeAdapterConfig:
    """Configures the writer of Generative Adapter (arXiv 2411.05877).

    Attributes:
        rank: Dv, width of values and rank of the corrections.
        key_width: Dk, width of keys; by default `rank`.
        heads: H, matrices per layer: one for each projection that the reader corrects.
        layers: of the backbone, from 0; by default all of them.
        window: a longer context is read in windows of at most so many tokens, each without the others.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 32
    key_width: int | None = None
    heads: int = 1
    layers: list[int] = field(default_factory=list)
    window: int = 1024

    def __post_init__(self) -> None:
        check_counts(self, "rank", "key_width", "heads", "window")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {self.layers}")

    @property
    def keys(self) -> int:
        """Return the width of keys."""
        return self.rank if self.key_width is None else self.key_width


@dataclass(frozen=True)
class GenerativeAdapterReaderConfig:
    """Configures the reader of Generative Adapter.

    Attributes:
        projections: which of a layer's projections are corrected, each by its own head of the state.
        alpha: corrections are scaled by alpha / Dv.
        norm: what the matrices are divided by: "frobenius" or "spectral", their norms, or "svd": the largest `svd_rank`
            singular values are all set to 1, and the others to 0.
        svd_rank: of "svd".

    Raises:
        ValueError: a value is out of range.
    """

    projections: list[str] = field(default_factory=lambda: ["o"])
    alpha: float = 64.0
    norm: str = "frobenius"
    svd_rank: int = 128

    def __post_init__(self) -> None:
        check_projections(self.projections)
        check_counts(self, "svd_rank")
        check_positive(self, "alpha")
        if self.norm not in NORMS:
            raise ValueError(f"norm = '{self.norm}': {did_you_mean(self.norm, NORMS)}")


@dataclass(frozen=True)
class DocToLoraConfig:
    """Configures the writer of Doc-to-LoRA (arXiv 2602.15902).

    Attributes:
        rank: r, of the correction that one chunk makes.
        projections: which of every layer are corrected.
        chunk: a longer context is read in chunks of at most so many tokens, each without the others.
        chunks: how many chunks a memory holds at most.
        width: of the latents.
        latents: how many look at the features of each layer.
        blocks: how often they look.
        heads: of their attention.
        kv_heads: of its keys and values.
        head_width: of each.
        residual_blocks: of the MLP between a latent and the rows that it stands for.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    projections: list[str] = field(default_factory=lambda: ["down"])
    chunk: int = 512
    chunks: int = 8
    width: int = 512
    latents: int = 8
    blocks: int = 9
    heads: int = 16
    kv_heads: int = 4
    head_width: int = 128
    residual_blocks: int = 1

    def __post_init__(self) -> None:
        check_projections(self.projections)
        check_counts(
            self,
            "rank",
            "chunk",
            "chunks",
            "width",
            "latents",
            "blocks",
            "heads",
            "kv_heads",
            "head_width",
        )
        if self.residual_blocks < 0:
            raise ValueError(f"residual_blocks must be at least 0, got {self.residual_blocks}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )


def check_counts(config: object, *names: str) -> None:
    """Check that these are at least 1, where they are set.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_positive(config: object, *names: str) -> None:
    """Check that these are positive and finite.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_projections(names: list[str]) -> None:
    """Check that projections are named, each once.

    Raises:
        ValueError: they are not.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"projections must name at least one, and each once, got {names}")
    for name in names:
        if name not in PROJECTIONS:
            raise ValueError(f"projections = '{name}': {did_you_mean(name, PROJECTIONS)}")
