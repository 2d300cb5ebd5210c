"""The writer: the keys and values of the last tokens are kept, and those before them dropped."""

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_my_writer.config import MyConfig


class MyWriter(nn.Module):
    """A window over the keys and values that the model has computed; it has no weights."""

    reserved_positions = 0  # positions of the model that a write takes besides the context's own

    def __init__(self, config: MyConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.slots, info = backbone, config.slots, backbone.info
        shape = (info.layers, info.kv_heads, config.slots, info.head_dim)
        shapes = {"keys": shape, "values": shape, "mask": (config.slots,), "next_position": ()}
        self.spec = StateSpec("keyvalue", shapes, tuple(range(info.layers)), info.dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states in which every slot is empty."""
        return self.spec.zeros(batch_size, self.backbone.info.device)

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Read the context, and keep the last real tokens of those that are kept already and those that are new."""
        new = self.backbone.forward(self.backbone.embed(context.ids), use_cache=True).key_values
        assert new is not None
        mask = torch.cat([state["mask"], context.mask], 1)
        last = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, -self.slots :]
        real = mask.gather(1, last)

        def kept(old: Tensor, added: Tensor) -> Tensor:
            both = torch.cat([old, added], 3)
            index = last[:, None, None, :, None].expand(*both.shape[:3], -1, both.shape[-1])
            return both.gather(3, index) * real[:, None, None, :, None]

        tensors = {
            "keys": kept(state["keys"], new.keys),
            "values": kept(state["values"], new.values),
            "mask": real,
            "next_position": torch.full_like(state["next_position"], self.slots),
        }
        return WriteOutput(MemoryState(self.spec, tensors))
