"""Every reference file of the official implementations: state, logits, losses and gradients to 1e-9.

MEMWRITE_PARITY_DIR names another folder of such files; the format is in README.md beside this file.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from double import Double
from memwrite_forward import rmt as rmt
from memwrite_gradient import gradmem as gradmem
from safetensors import safe_open
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memwrite import Memory, Tokens
from memwrite.convert import assemble
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

FOLDER = Path(os.environ.get("MEMWRITE_PARITY_DIR") or Path(__file__).with_name("data"))
FILES = sorted(
    path
    for path in FOLDER.rglob("*.safetensors")
    if not (path.parent / "base_model.safetensors").exists()
)
BAR = 1e-9


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Files hold token ids, of vocabularies of any size: this is one that every model has room for."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(models.WordLevel({"[EOS]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[EOS]", unk_token="[UNK]")
    made.save_pretrained(folder)
    return str(folder)


class Case:
    """A reference file and the memory that it describes."""

    def __init__(self, path: Path, tokenizer: str, **changes: Any) -> None:
        with safe_open(path, "pt") as file:
            self.said = {name: value(text) for name, text in file.metadata().items()}
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.kind: str = self.said["kind"]
        imported = self.converted(tokenizer)
        backbone = {**imported.config["backbone"], "dtype": self.said["dtype"], **changes}
        config = {**imported.config, "backbone": backbone}
        self.memory: Memory = assemble(type(imported)(config, imported.weights), str(path)).train()

    def converted(self, tokenizer: str) -> Any:
        said = self.said
        base = said["config"] if isinstance(said["config"], dict) else json.loads(said["config"])
        arguments = {
            **said,
            "base_config": base,
            "use_write_head": said.get("write_head"),
            "add_inner_loss_to_outer": said.get("inner_loss_weight") is not None,
            "use_mem_residual": said.get("mem_residual"),
            "use_reconstruction_loss": said.get("reconstruction_loss"),
        }
        weights = {
            n.removeprefix("param."): t for n, t in self.tensors.items() if n.startswith("param.")
        }
        return self.module().convert(arguments, weights, tokenizer)

    def module(self) -> Any:
        return {"gradmem": gradmem, "rmt": rmt}[self.kind]

    def tokens(self, name: str) -> Tokens:
        ids = self.tensors[name]
        return Tokens(ids, ids != self.said["pad_id"])

    def ours(self, official: str) -> str:
        return str(self.module().weight_name(official))


def measured(case: Case) -> dict[str, Tensor]:
    """All that a reference file holds, as memwrite computes it; names as in the file."""
    memory, tensors = case.memory, case.tensors
    context, query = case.tokens("context_ids"), case.tokens("query_ids")
    written = memory.write(context)
    state = written.state
    slots = tensors["state.memory"].shape[1]
    found = {"state.memory": state.tensors.get("latent", state["memory"])[:, :slots]}
    output, real = memory.read(state, query), query.mask
    logits = output.logits
    if case.kind == "gradmem":
        assert output.first_logits is not None
        logits = torch.cat([output.first_logits[:, None], logits], 1)
        real = torch.cat([torch.ones_like(real[:, :1]), real], 1)
        found["write.last_loss_mean"] = written.trace["loss"][-1].mean()
    # What the model says at padding is nobody's business.
    found["read.logits"] = torch.where(real[..., None], logits, tensors["read.logits"])
    result = training_loss(memory, Batch(context, query, tensors["labels"]))
    found["loss"], found["target_loss"] = result.loss, result.losses["target"]
    memory.zero_grad()
    result.loss.backward()
    parameters = dict(memory.named_parameters(remove_duplicate=False))
    for name in tensors:
        if name.startswith("grad."):
            gradient = parameters[case.ours(name.removeprefix("grad."))].grad
            assert gradient is not None, f"{name}: no gradient"
            found[name] = gradient.clone()
    return {name: tensor.detach() for name, tensor in found.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference(path: Path, tokenizer: str) -> None:
    """To 1e-9 of the largest value, or to what float32 inside of the model explains on this machine."""
    case = Case(path, tokenizer)
    found = measured(case)
    with Double():
        double = measured(case)
    inputs = ("param.", "context_ids", "query_ids", "labels")
    names = [name for name in case.tensors if not name.startswith(inputs)]
    gradients = [name for name in names if name.startswith("grad.")]
    for group in (gradients, [name for name in names if name not in gradients]):
        rounding = max(relative(found[name], double[name]) for name in group)
        for name in group:
            assert relative(found[name], case.tensors[name]) <= max(BAR, 4 * rounding), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fast_paths(path: Path, tokenizer: str) -> None:
    """Fused attention and one row at a time write and read the same, to 1e-5 of the largest value."""
    reference, fast = (
        Case(path, tokenizer).memory.eval(),
        Case(path, tokenizer, attention="sdpa").memory.eval(),
    )
    case = Case(path, tokenizer)
    context, query = case.tokens("context_ids"), case.tokens("query_ids")
    with torch.no_grad():
        state = reference.write(context).state
        expected = reference.read(state, query).logits
        found = fast.write(context).state
        assert relative(found["memory"], state["memory"]) <= 1e-5
        assert relative(fast.read(found, query).logits, expected) <= 1e-5
        for row in range(len(context.ids)):
            one = slice(row, row + 1)
            alone = fast.write(context.rows(one)).state
            assert relative(alone["memory"], state["memory"][one]) <= 1e-5
            read = fast.read(alone, query.rows(one)).logits
            assert relative(read, expected[one]) <= 1e-5
