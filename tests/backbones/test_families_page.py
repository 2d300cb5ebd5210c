"""The table of families in docs/families.md says what the models of the tests can do."""

from __future__ import annotations

from pathlib import Path

import families
import torch
from memwrite_specs.testing import HYBRIDS

from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = "| `model_type` | prefix, generate | keys and values | their positions moved | changes of projections | own states |"


def moves_keys(backbone: TransformersBackbone) -> bool:
    ids = torch.tensor([[1, 2]])
    kept = backbone.forward(backbone.embed(ids), use_cache=True).key_values
    assert kept is not None
    try:
        backbone.rotate(kept.keys, torch.ones(1, 2, dtype=torch.int64))
    except ConfigError:
        return False
    return True


def row(names: list[str], backbone: TransformersBackbone) -> str:
    layers = range(backbone.info.layers)
    changed = (
        sorted(frozenset.intersection(*map(backbone.projection_names, layers))) if layers else []
    )
    order = [name for name in ("q", "k", "v", "o", "gate", "up", "down") if name in changed]
    cells = [
        ", ".join(f"`{name}`" for name in names),
        "yes",
        "yes" if layers else "–",
        "yes" if layers and moves_keys(backbone) else "–",
        " ".join(order) or "–",
        "yes" if backbone.recurrent else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """Return the table: types that can do the same share a row."""
    alike: dict[str, list[str]] = {}
    for family in [*families.EVERY, *HYBRIDS]:
        backbone = load_backbone(BackboneConfig(**families.model(family)))
        names = alike.setdefault(row([], backbone), [])
        kind = families.architecture(family)
        if kind not in names:
            names.append(kind)
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)}{cells[2:]}" for cells, names in alike.items()
    ]
    return "\n".join([HEAD, "|---" * 6 + "|", *rows])


def test_the_page_says_what_the_models_can_do() -> None:
    """`PYTHONPATH=tests python tests/backbones/test_families_page.py` prints the table that it should have."""
    assert table() in PAGE.read_text()


if __name__ == "__main__":
    print(table())
