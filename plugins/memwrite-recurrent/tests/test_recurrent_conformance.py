"""The writer of native states keeps the laws, on a hybrid, and on a model whose layers are all recurrent."""

from __future__ import annotations

from memwrite_recurrent import READER, WRITER
from memwrite_specs import PAIR_LAWS, conformance


@conformance(WRITER, reader=READER, backbone="olmo-hybrid")
def test_native_states_of_a_hybrid(law) -> None:
    law()


@conformance(WRITER, reader=READER, backbone="mamba2", only=PAIR_LAWS)
def test_native_states_of_recurrent_layers_alone(law) -> None:
    law()


@conformance(
    WRITER,
    reader=READER,
    backbone="olmo-hybrid",
    params={"attention": "last", "slots": 4},
    only=PAIR_LAWS | {"empty-write", "padding-invariance", "batch-invariance"},
)
def test_native_states_with_a_window_of_keys(law) -> None:
    law()
