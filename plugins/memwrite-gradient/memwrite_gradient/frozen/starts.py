"""Where a descent starts: tokens, or what another writer makes of the context."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from memwrite.config import part_config
from memwrite.errors import ConfigError, PluginNotFound
from memwrite.plugins.registry import registry
from memwrite.protocols import Backbone, Writer
from memwrite.state import LATENT, MemoryState, PackedTokens, StateSpec
from memwrite_gradient.frozen.config import START, DescentConfig
from memwrite_gradient.frozen.forms import Form


class Start(Protocol):
    """Makes the state that is descended from."""

    @property
    def spec(self) -> StateSpec: ...

    @property
    def reserved_positions(self) -> int:
        """Positions of the backbone that it uses besides the context's own."""
        ...

    def empty(self, rows: int) -> MemoryState:
        """Return the state of memories that have read nothing."""
        ...

    def of(self, state: MemoryState, context: PackedTokens, written: bool) -> MemoryState:
        """Return where to start with `context`; `written` says that `state` holds something already."""
        ...


class TokenStart(nn.Module):
    """Starts from M tokens: the first of the context, or the same ones for every context.

    Args:
        form: makes a state of tokens.
        backbone: the model.
        tokens: (M,) ids; None for the context's own.
    """

    def __init__(self, form: Form, backbone: Backbone, tokens: Tensor | None) -> None:
        super().__init__()
        self.spec = form.spec()
        self.reserved_positions = 0
        self._form, self._backbone = form, backbone
        self.register_buffer("tokens", tokens, persistent=False)

    def empty(self, rows: int) -> MemoryState:
        """Return zeros."""
        return self.spec.zeros(rows, self._backbone.info.device)

    def of(self, state: MemoryState, context: PackedTokens, written: bool) -> MemoryState:
        """Return the tokens as a state; a memory that holds something stays as it is.

        A context of fewer than M tokens is repeated.
        """
        if written:
            return state
        slots, rows = self.spec.sizes["M"], context.ids.shape[0]
        tokens = cast("Tensor | None", self.tokens)
        if tokens is not None:
            ids, lengths = tokens.expand(rows, -1), torch.full_like(context.lengths, slots)
        else:
            places = torch.arange(slots, device=context.ids.device)
            ids = context.ids.gather(1, places % context.lengths[:, None])
            lengths = context.lengths.clamp(max=slots)
        return self._form.of_tokens(ids, lengths)


class WriterStart(nn.Module):
    """Starts from the state that another writer makes of the context.

    Args:
        writer: it, an nn.Module.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.spec = writer.spec
        self.reserved_positions = writer.reserved_positions
        self.writer = cast("Any", writer)

    def empty(self, rows: int) -> MemoryState:
        """Return that writer's own empty state."""
        state: MemoryState = self.writer.init(rows)
        return state

    def of(self, state: MemoryState, context: PackedTokens, written: bool) -> MemoryState:
        """Let it write the context into the state."""
        after: MemoryState = self.writer.write(state, context).state
        return after.detach()


def build_start(config: DescentConfig, form: Form, backbone: Backbone) -> TokenStart | WriterStart:
    """Build what `config.start` says.

    Raises:
        ConfigError: it cannot be built, or its states are not of this form.
    """
    if config.start == "first-tokens":
        return TokenStart(form, backbone, None)
    device = backbone.info.device
    if config.start == "random":
        rng = torch.Generator().manual_seed(config.seed)
        drawn = torch.randint(backbone.info.vocab_size, (config.slots,), generator=rng)
        return TokenStart(form, backbone, drawn.to(device))
    if isinstance(config.start, str):
        return WriterStart(_other_writer(config.start, {}, config, form, backbone))
    if "text" in config.start:
        ids = backbone.encode(str(config.start["text"]))
        if not ids:
            raise ConfigError("writer.params.start.text is empty: give a text to start from")
        repeated = ids * (1 + config.slots // len(ids))
        return TokenStart(form, backbone, torch.tensor(repeated[: config.slots], device=device))
    name, params = config.start["name"], dict(config.start.get("params") or {})
    return WriterStart(_other_writer(name, params, config, form, backbone))


def _other_writer(
    name: str, params: dict[str, Any], config: DescentConfig, form: Form, backbone: Backbone
) -> Writer:
    wanted, where = form.spec(), "writer.params.start"
    try:
        plugin = registry().writer(name)
    except PluginNotFound as error:
        raise ConfigError(
            f"writer.params.{START}, but {error}; 'compact' comes with memwrite-kv"
        ) from None
    if plugin.emits != wanted.kind:
        raise ConfigError(
            f"{where}: writer '{name}' makes '{plugin.emits}' states, but '{wanted.kind}' ones are needed here"
        )
    if plugin.slots is not None:
        params.setdefault(plugin.slots, config.slots)
    writer = plugin.build(part_config(plugin.config, params, f"{where}.params"), backbone)
    spec = writer.spec
    if not spec.bounded or spec.sizes["M"] != config.slots:
        size = f"{spec.sizes['M']} slots" if spec.bounded else "as many slots as there are tokens"
        raise ConfigError(
            f"{where}: writer '{name}' makes {size}, but writer.params.slots is {config.slots}"
        )
    known = {*wanted.tensors, "bias"}
    if extra := sorted(n for n in spec.tensors if n not in known and not n.startswith(LATENT)):
        raise ConfigError(
            f"{where}: the states of writer '{name}' hold {', '.join(extra)} besides, which would no longer fit after a "
            f"descent"
        )
    return writer
