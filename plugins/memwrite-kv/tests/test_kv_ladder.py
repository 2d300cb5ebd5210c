"""LaCache's ladder beside the authors' own cache: which tokens each layer keeps; see data/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_specs.testing import MODELS

from memwrite import Memory, Tokens

CASES = json.loads((Path(__file__).parent / "data" / "lacache.json").read_text())
SINKS = 4


def build(case: dict[str, Any], writer: dict[str, Any]) -> Memory:
    sizes = {"num_hidden_layers": case["layers"], "max_position_embeddings": 512}
    params = {**MODELS["llama"]["params"], **sizes}
    return Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "params": params, "dtype": "float64"},
            "writer": writer,
            "reader": {"name": "key-value"},
        }
    )


@pytest.mark.parametrize("number", range(len(CASES)))
def test_it_is_the_authors(number: int) -> None:
    case = CASES[number]
    laddered = case["ladder"] * case["ladders"]
    budget = {"slots": len(case["kept"][0]), "sinks": SINKS, "step": case["step"]}
    # Text that does not fill the next ladder is kept whole.
    recent = {"recent": case["length"] - SINKS - laddered}
    ladder = build(case, {"name": "lacache", "params": {**budget, **recent, "rewind": False}})
    whole = build(case, {"name": "full-context"})
    whole.load_state_dict(ladder.state_dict())
    context = Tokens.from_rows([[3 + i % 90 for i in range(case["length"])]])
    with torch.no_grad():
        found, all_of_it = ladder.write(context).state, whole.write(context).state
    for layer, kept in enumerate(case["kept"]):
        for part in ("keys", "values"):
            torch.testing.assert_close(
                found[part][0, layer], all_of_it[part][0, layer][:, kept], rtol=1e-5, atol=1e-5
            )
