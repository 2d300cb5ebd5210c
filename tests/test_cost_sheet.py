"""The cost sheet: figures that are measured, times a number of documents, times a price."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from memwrite import Memory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from cost import FULL, Cost, Prices, main, sheet  # noqa: E402

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def test_everything_else_is_a_product() -> None:
    """Hours times price, bytes times price; and of a GPU nothing is said that nobody has measured."""
    costs = [Cost("compact", 0.36, 20_000), Cost(FULL, 0.18, 6e6)]
    found = sheet(costs, Prices(core_hour=0.04, gpu_hour=3, gigabyte_month=0.02))
    assert found.splitlines()[2:4] == [
        "| `compact` | 2.8 | 100 | 4 | 100,000 | 4,000 |",
        "| full KV cache, 16 bits | 5.6 | 50 | 2 | 50,000 | 2,000 |",
    ]
    assert found.splitlines()[7:] == [
        "| `compact` | 20 kB | 20 GB | 0.4 | 20 TB | 400 |",
        "| full KV cache, 16 bits | 6 MB | 6 TB | 120 | 6 PB | 120,000 |",
    ]
    assert "GPU" not in found
    known = sheet([Cost("compact", 0.36, 20_000, gpu_rate=100)], Prices(gpu_hour=3))
    assert known.splitlines()[-1] == "| `compact` | 100 | 2.8 | 8.3 | 2,780 | 8,330 |"


def test_the_sheet_of_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes are those of the states and of the cache; the seconds are there."""
    memory = Memory.from_config({"backbone": {"type": "llama", "params": LLAMA}})
    memory.backbone.save(tmp_path / "base", torch.float32)
    words = ["--model", str(tmp_path / "base"), "--writers", "compact", "--documents", "2"]
    main([*words, "--tokens", "12", "--rounds", "1", "--core-hour", "1"])
    told = capsys.readouterr().out
    tokens = re.search(r"2 documents of (\d+) tokens, median of 1 rounds. Assumed: 1 €", told)
    assert tokens is not None
    cache = re.search(r"\| full KV cache, 16 bits \| ([\d.]+ k?B)", told.rpartition("kept")[2])
    assert cache is not None
    # Keys and values of two layers of two heads of eight numbers, of two bytes.
    numbers = float(cache[1].split()[0]) * (1000 if "kB" in cache[1] else 1)
    assert numbers == pytest.approx(int(tokens[1]) * 2 * 2 * 2 * 8 * 2, rel=0.01)
    assert len(re.findall(r"\| `compact` \| ", told)) == 2
