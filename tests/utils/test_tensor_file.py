"""The same content gives the same bytes, and safetensors reads them back."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import memwrite
from memwrite.utils.tensor_file import to_bytes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.dictionaries(TEXT, TEXT, max_size=6),
    st.dictionaries(
        TEXT.filter(lambda name: name != "__metadata__"), st.integers(0, 5), max_size=3
    ),
)
def test_there_and_back(metadata: dict[str, str], sizes: dict[str, int]) -> None:
    tensors = {name: torch.arange(size).to(torch.bfloat16) for name, size in sizes.items()}
    data = to_bytes(tensors, metadata)
    other_order = dict(reversed(metadata.items()))
    assert all(to_bytes(tensors, other_order) == data for _ in range(3))
    found = safetensors.torch.load(data)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_the_metadata_come_back(tmp_path: Path) -> None:
    metadata = {"b": 'a "quoted" line\nand ü', "a": "0"}
    path = tmp_path / "w.safetensors"
    path.write_bytes(to_bytes({"x": torch.ones(2)}, metadata))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_nothing_with_metadata_is_written_another_way() -> None:
    source = Path(memwrite.__file__).parent
    for path in source.rglob("*.py"):
        if path.name != "tensor_file.py":
            assert not re.search(r"safetensors\.torch\.save\(", path.read_text()), path
