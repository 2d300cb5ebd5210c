"""Rewound memories: what they say does not change, and there is always room for another write."""

from __future__ import annotations

from functools import cache

import families
import pytest
import torch
from families import FAMILIES
from memwrite_specs.testing import tolerance

from memwrite import Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.inference.positions import rewind
from memwrite.protocols import KeyValues


@cache
def backbone_of(family: str) -> TransformersBackbone:
    return load_backbone(BackboneConfig(**families.model(family)))


def prefilled(backbone: TransformersBackbone, lists: list[list[int]]) -> KeyValues:
    tokens = Tokens.from_rows(lists)
    kept = backbone.forward(
        backbone.embed(tokens.ids), lengths=tokens.mask.sum(1), use_cache=True
    ).key_values
    assert kept is not None
    return kept


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_slots_that_were_moved_together_say_the_same(family: str) -> None:
    """Only relative positions count, so shifted memories are rewound without loss; padding is left out."""
    backbone = backbone_of(family)
    past = prefilled(backbone, [[1, 2, 3, 4], [5, 6]])
    at = torch.arange(4).expand(2, 4)
    by = torch.tensor([[9], [5]]).expand(2, 4)
    moved = KeyValues(
        backbone.rotate(past.keys, by), past.values, past.mask, past.next_position + by[:, 0]
    )
    back = rewind(backbone, moved, at + by)
    real = past.mask[:, None, None, :, None]
    torch.testing.assert_close(back.keys * real, past.keys * real, **tolerance(family))
    assert back.next_position.tolist() == [4, 2]
    assert torch.equal(back.values, past.values)


def test_dropped_slots_leave_no_gaps() -> None:
    """Each row keeps its own slots, with their bias, at the positions 0 to n - 1 of slot order."""
    backbone = backbone_of("llama")
    past = prefilled(backbone, [[1, 2, 3, 4], [5, 6, 7, 8]])
    mask = torch.tensor([[True, False, True, True], [False, False, True, False]])
    bias = torch.rand(past.keys.shape[:-1], dtype=torch.float64)
    at = torch.arange(4).expand(2, 4)
    back = rewind(backbone, KeyValues(past.keys, past.values, mask, past.next_position, bias), at)
    assert back.next_position.tolist() == [3, 1]
    assert back.bias is bias
    by = torch.tensor([[0, 0, -1, -1], [0, 0, -2, 0]])
    torch.testing.assert_close(back.keys, backbone.rotate(past.keys, by))
    # In the first layer a key is that of its token at its position.
    there = prefilled(backbone, [[1, 3, 4], [7]])
    torch.testing.assert_close(back.keys[0, 0][:, mask[0]], there.keys[0, 0], **tolerance("llama"))


def test_writing_again_and_again_never_runs_out_of_positions() -> None:
    """Four slots are kept of each write, many times as many tokens as there are positions."""
    backbone = backbone_of("llama")
    draw = torch.Generator().manual_seed(0)
    slots, chunk = 4, 10
    past: KeyValues | None = None
    for _ in range(20):
        ids = torch.randint(0, 256, (2, chunk), generator=draw)
        grown = backbone.forward(backbone.embed(ids), past=past, use_cache=True).key_values
        assert grown is not None
        start = 0 if past is None else slots
        at = torch.arange(start + chunk).expand(2, -1)
        keep = torch.arange(start + chunk - slots, start + chunk)
        kept = KeyValues(
            grown.keys[..., keep, :], grown.values[..., keep, :], grown.mask[:, keep], grown.next_position
        )  # fmt: skip
        past = rewind(backbone, kept, at[:, keep])
        assert past.next_position.tolist() == [slots] * 2
    assert past is not None
    assert past.keys.isfinite().all()


def test_positions_that_are_no_rotations_are_refused() -> None:
    backbone = backbone_of("gpt2")
    past = prefilled(backbone, [[1, 2]])
    with pytest.raises(ConfigError, match="not rotations"):
        rewind(backbone, past, torch.zeros(1, 2, dtype=torch.int64))
