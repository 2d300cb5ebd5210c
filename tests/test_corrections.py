"""Corrections of attention projections, proved with a throw-away reader of per-row low-rank additions."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support import MODELS, Build
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.corrections import attention_modules
from memwrite.protocols import Additions, Conditioning, Correction
from memwrite.reading import generate, read

WIDTHS = {"gpt2": dict.fromkeys("qkvo", 32), "llama": {"q": 32, "k": 16, "v": 16, "o": 32}}
QUERY = Tokens.from_rows([[1, 2, 3, 4], [5, 6]])


def low_rank(tensors: Mapping[str, Tensor], hidden: Tensor) -> Additions:
    """q, k, v from the hidden states; o from its projection's own input."""

    def add(name: str, inputs: Tensor) -> Tensor:
        return inputs @ tensors[f"A.{name}"].mT @ tensors[f"B.{name}"].mT

    return {**{name: add(name, hidden) for name in "qkv"}, "o": lambda inputs: add("o", inputs)}


def corrections(family: str, seed: int = 0) -> dict[int, Correction]:
    draw = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return 0.3 * torch.randn(2, *shape, generator=draw, dtype=torch.float64)

    found = {}
    for layer in range(2):
        tensors = {f"A.{name}": matrix(2, 32) for name in "qkvo"}
        tensors |= {f"B.{name}": matrix(width, 2) for name, width in WIDTHS[family].items()}
        found[layer] = Correction(tensors, low_rank)
    return found


def edited(build: Build, family: str, wanted: dict[int, Correction], row: int) -> Memory:
    """The plain model with the corrections of one row worked into its weights by hand."""
    memory = build()
    for layer, attention in enumerate(attention_modules(memory.model)):
        tensors = wanted[layer].tensors
        change = {n: tensors[f"B.{n}"][row] @ tensors[f"A.{n}"][row] for n in "qkvo"}
        module: Any = attention
        if family == "gpt2":
            module.c_attn.weight.data += torch.cat([change[n] for n in "qkv"]).T
            module.c_proj.weight.data += change["o"].T
        else:
            for name in "qkvo":
                getattr(module, f"{name}_proj").weight.data += change[name]
    return memory


@pytest.fixture(params=sorted(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model(family: str) -> dict[str, Any]:
    return {**MODELS[family], "dtype": "float64", "attention": "eager"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_corrected_reads_equal_an_edited_model(build: Build, family: str, attention: str) -> None:
    """Every row gets its own corrections, and nothing of them stays behind."""
    memory, wanted = build(attention=attention), corrections(family)
    before = read(memory.backbone, Conditioning(), QUERY).logits
    logits = read(memory.backbone, Conditioning(corrections=wanted), QUERY).logits
    for row in range(2):
        ids = QUERY.ids[row : row + 1, : int(QUERY.lengths[row])]
        expected = edited(build, family, wanted, row).model(ids).logits[0]
        torch.testing.assert_close(logits[row, : ids.shape[1]], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(read(memory.backbone, Conditioning(), QUERY).logits, before)


@pytest.mark.parametrize("beams", [1, 3])
def test_corrected_generation_equals_an_edited_model(build: Build, family: str, beams: int) -> None:
    """Beam search reorders the corrections with its beams."""
    memory, wanted = build(), corrections(family)
    options = {"num_beams": beams, "max_new_tokens": 6}
    new = generate(memory.backbone, Conditioning(corrections=wanted), QUERY, options)
    for row in range(2):
        ids = QUERY.ids[row : row + 1, : int(QUERY.lengths[row])]
        model = edited(build, family, wanted, row).model
        ends = {"eos_token_id": 257, "pad_token_id": 257, "do_sample": False}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **ends)
        found = new[row].tolist()
        assert found[: expected.shape[1] - ids.shape[1]] == expected[0, ids.shape[1] :].tolist()


def gradients(build: Build, family: str, checkpointing: bool) -> list[Tensor]:
    memory, wanted = build(trainable=True), corrections(family)
    leaves = [tensor.requires_grad_() for c in wanted.values() for tensor in c.tensors.values()]
    prefix = torch.full((2, 3, 32), 0.1, dtype=torch.float64, requires_grad=True)
    memory.train()
    if checkpointing:
        memory.model.activation_checkpointing_enable()
    output = read(memory.backbone, Conditioning(prefix=prefix, corrections=wanted), QUERY)
    output.logits.square().sum().backward()
    tensors = [*leaves, prefix, *memory.model.parameters()]
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def test_checkpointing_recomputes_with_the_same_corrections(build: Build, family: str) -> None:
    """With a prefix before them, too."""
    plain, checked = (gradients(build, family, on) for on in (False, True))
    assert len(plain) > 17
    for a, b in zip(plain, checked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_threads_on_one_model_never_meet(build: Build, family: str) -> None:
    """Two threads with different corrections each get what they get alone, every time."""
    memory = build()
    wanted = [Conditioning(corrections=corrections(family, seed)) for seed in range(2)]
    alone = [read(memory.backbone, conditioning, QUERY).logits for conditioning in wanted]
    wrong = []

    def work(index: int) -> None:
        for _ in range(60):
            if not torch.equal(read(memory.backbone, wanted[index], QUERY).logits, alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.equal(alone[0], alone[1])
    assert wrong == []
