"""The oracle: one context, no batch, no padding, in loops a student can read."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from memwrite.protocols import Backbone, ProjectionDeltas
from memwrite_armt.writer import AssociativeLayer, AssociativeWriter


def dpfp(x: Tensor, order: int) -> Tensor:
    """Return DPFP-ν of one vector."""
    width = 2 * len(x)
    halves = [max(float(number), 0.0) for number in [*x.tolist(), *(-x).tolist()]]
    products = [
        halves[i] * halves[(i - places) % width]
        for places in range(1, order + 1)
        for i in range(width)
    ]
    return torch.tensor(products, dtype=x.dtype)


class Layer:
    """One layer's memory, S (Dv, Dk) and z (Dk), during one segment."""

    def __init__(self, writer: AssociativeWriter, number: int, memory: Tensor, z: Tensor) -> None:
        self.maps = cast(AssociativeLayer, writer.layers[str(number)])
        self.memory, self.z = memory, z
        self.config, self.first = writer.config, not bool(z.any())

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        """Change no projection."""
        return {}

    def held(self, feature: Tensor) -> Tensor:
        """Return what the memory holds under one key or query."""
        return self.memory @ feature / (self.z @ feature + 1e-5)

    def entering(self, hidden: Tensor) -> Tensor:
        """Add to each hidden state what the memory associates with it."""
        if self.first:
            return hidden
        read = [self.held(dpfp(self.maps.query(h), self.config.order)) for h in hidden[0]]
        return hidden + torch.stack(read)[None]

    def leaving(self, hidden: Tensor) -> Tensor:
        """Write the memory tokens, all against the memory as it was before."""
        memory, z = self.memory.clone(), self.z.clone()
        for h in hidden[0, -self.config.slots :]:
            key = dpfp(self.maps.key(h), self.config.order)
            before = torch.zeros_like(h) if self.first else self.held(key)
            memory += self.maps.gate(h).sigmoid() * torch.outer(self.maps.value(h) - before, key)
            new = 1 - (self.z @ key + 1e-5) / (key @ key + 1e-5)
            keeps_all = self.first or not self.config.correction
            z += key if keeps_all else new.clamp(0, 1) * key
        self.memory, self.z = memory, z
        return hidden

    def rows(self, index: Tensor) -> Layer:
        """There is one row."""
        return self


def write(
    backbone: Backbone, writer: AssociativeWriter, segments: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Return S (L, Dv, Dk) and z (L, Dk) after segments of one text."""
    state = writer.init(1)
    memory, z = state["S"][0], state["z"][0]
    for ids in segments:
        inputs = torch.cat([backbone.embed(torch.tensor([ids])), writer.slots[None]], 1)
        layers = {n: Layer(writer, n, memory[n], z[n]) for n in range(len(memory))}
        backbone.forward(inputs, corrections=layers)
        memory = torch.stack([layer.memory for layer in layers.values()])
        z = torch.stack([layer.z for layer in layers.values()])
    return memory, z
