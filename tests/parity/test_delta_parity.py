"""Every reference file of δ-mem's official code: reads, corrections, states, logits, texts, losses, gradients.

Files lie in folders with a `base_model.safetensors`, below MEMWRITE_PARITY_DIR; the format is in README.md beside this
file. The official runs are float32, and each file says how far its own scan is from a float64 one.
"""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_delta import delta_mem as official
from memwrite_delta.delta_mem_fields import complete
from safetensors import safe_open
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from memwrite import Memory, MemoryState, Tokens
from memwrite.checkpoints.imported import read_json
from memwrite.convert import assemble
from memwrite.inference import online
from memwrite.protocols import LayerInput
from memwrite.state import PackedTokens

FOLDER = Path(os.environ.get("MEMWRITE_PARITY_DIR") or Path(__file__).with_name("data"))
FILES = sorted(
    path
    for base in FOLDER.rglob("base_model.safetensors")
    for path in base.parent.glob("*.safetensors")
    if path != base
)
# Of logits and corrections, and of states and reads.
LOGITS, STATES = 2e-5, 5e-6


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


pytestmark = pytest.mark.filterwarnings("ignore:writer 'delta'")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def unpacked(values: Tensor, order: Tensor, tokens: Tokens) -> Tensor:
    """Values (B, T', ...) of packed tokens at their places in `tokens`; zeros at padding."""
    full = values.new_zeros(*tokens.ids.shape, values.shape[-1])
    return full.scatter(1, order[..., None].expand_as(values), values)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the frozen model of a folder of files, and a tokenizer that every model has room for."""

    @cache
    def made(folder: Path) -> Path:
        said, weights = contents(folder / "base_model.safetensors")
        fields = {"model_type": "qwen3", **{name: literal(text) for name, text in said.items()}}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}
        out = tmp_path_factory.mktemp("base")
        model.save_pretrained(out)
        words = Tokenizer(models.WordLevel({"[EOS]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[EOS]").save_pretrained(out)
        return out

    return made


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


class Step:
    """One forward of a file."""

    def __init__(self, said: dict[str, str], tensors: dict[str, Tensor], number: int) -> None:
        ids = tensors[f"steps/{number}/ids"]
        mask = tensors.get(f"steps/{number}/mask", torch.ones_like(ids)).bool()
        self.tokens = Tokens(ids, mask, tensors.get(f"steps/{number}/message_ids"))
        self.continues = said.get(f"steps/{number}/cont") == "True"
        self.writes = said.get(f"steps/{number}/write", "True") == "True"
        self.labels = tensors.get(f"steps/{number}/labels")


class Case:
    """A reference file, and the memory of its adapter."""

    def __init__(self, path: Path, base: Path, dtype: str = "float32") -> None:
        self.said, self.tensors = contents(path)
        adapter = path.parent / "adapters" / self.said["adapter"]
        imported = official.load(adapter, base)
        backbone = {"path": str(base), "attention": "eager", "dtype": dtype}
        config = {**imported.config, "backbone": backbone}
        self.fields = complete(read_json(adapter / official.CONFIG_FILE), str(adapter))
        self.memory: Memory = assemble(replace(imported, config=config), str(adapter))
        self.layers: tuple[int, ...] = self.memory.writer.spec.layers
        count = len({name.split("/")[1] for name in self.tensors if name.startswith("steps/")})
        self.steps = [Step(self.said, self.tensors, number) for number in range(count)]

    def of(self, kind: str, number: int, layer: int) -> Tensor | None:
        return self.tensors.get(f"layers/model.layers.{layer}.self_attn/{number}/{kind}")

    def limit(self, stated: float, rounding: float = 0.0) -> float:
        """As stated, three times what the official scan errs, or four times what float32 makes of it here."""
        errors = [float(e) for name, e in self.said.items() if name.endswith("oracle_err")]
        return max(stated, 3 * max(errors, default=0), 4 * rounding)

    def start(self) -> MemoryState:
        state = self.memory.writer.init(len(self.steps[0].tokens.ids))
        matrices = state["S"].clone()
        for index, layer in enumerate(self.layers):
            given = self.tensors.get(f"init_state/model.layers.{layer}.self_attn")
            if given is not None:
                matrices[:, index] = given.reshape(matrices[:, index].shape)
        return MemoryState(state.spec, {"S": matrices})

    def run(self) -> list[tuple[Tensor, MemoryState]]:
        """Logits and the state after every step."""
        memory, state, past, found = self.memory, self.start(), None, []
        for step in self.steps:
            packed, order = step.tokens.pack()
            done = online.run(
                memory.backbone, memory.writer, memory.reader, packed, state,
                write=step.writes, past=past if step.continues else None, use_cache=True,
            )  # fmt: skip
            state, past = done.written.state, done.run.key_values
            logits = memory.backbone.logits(done.run.hidden)
            found.append((unpacked(logits, order, step.tokens), state))
        return found


def distance(found: Tensor, exact: Tensor) -> float:
    return (found - exact).abs().max().item()


def close(found: Tensor, expected: Tensor, limit: float, what: str) -> None:
    error = (found.reshape(expected.shape) - expected).abs().max().item()
    assert error <= limit, f"{what}: {error:.2e}"


@each_file
def test_reference(path: Path, base: Any) -> None:
    """All that the file holds of whole runs."""
    case, double = (Case(path, base(path.parent), dtype) for dtype in ("float32", "float64"))
    check_steps(case, double)
    if "generated" in case.tensors:
        check_text(case)
    if "loss" in case.tensors:
        check_training(case, double)


@torch.no_grad()
def check_steps(case: Case, double: Case) -> None:
    """Logits of real tokens and the states, through whole sequences, pads, chunks and reads alone."""
    for number, (found, exact) in enumerate(zip(case.run(), double.run(), strict=True)):
        real = case.steps[number].tokens.mask[..., None]
        logits, state = found[0] * real, found[1]["S"]
        limit = case.limit(LOGITS, distance(logits, exact[0] * real))
        close(logits, case.tensors[f"logits/{number}"] * real, limit, f"logits/{number}")
        limit = case.limit(STATES, distance(state, exact[1]["S"]))
        for index, layer in enumerate(case.layers):
            wanted = case.of("state", number, layer)
            if wanted is not None:
                close(state[:, index], wanted, limit, f"state {number}/{layer}")


@each_file
@torch.no_grad()
def test_layers(path: Path, base: Any) -> None:
    check_layers(Case(path, base(path.parent)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["tsw_rightpad", "tsw_chunked", "ssw_messages"])
def test_padding_may_stand_on_the_left(name: str, base: Any) -> None:
    """The same reference with every row's padding, and some more, moved before its tokens."""
    (path,) = (path for path in FILES if path.stem == name)
    case, double = (Case(path, base(path.parent), dtype) for dtype in ("float32", "float64"))
    for moved in (case, double):
        pad_left(moved)
    assert not case.steps[0].tokens.mask[:, 0].all()
    check_steps(case, double)
    check_layers(case)


def pad_left(case: Case) -> None:
    """Put the padding of each step, and two more columns of it, to the left."""
    for number, step in enumerate(case.steps):
        real = step.tokens.mask
        mask = F.pad(real, (2, 0))
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        for name, tensor in case.tensors.items():
            if tensor.shape[:2] == real.shape and (
                name.startswith((f"steps/{number}/", f"logits/{number}")) or f"/{number}/" in name
            ):
                padded = F.pad(tensor, (*[0] * 2 * (tensor.ndim - 2), 2, 0))
                index = order.view(*order.shape, *[1] * (tensor.ndim - 2)).expand_as(padded)
                case.tensors[name] = padded.gather(1, index)
        segments = step.tokens.segments
        step.tokens = Tokens(
            F.pad(step.tokens.ids, (2, 0)).gather(1, order),
            mask.gather(1, order),
            None if segments is None else F.pad(segments, (2, 0), value=-1).gather(1, order),
        )


def check_layers(case: Case) -> None:
    """Each layer on the hidden states that the official one saw: reads, corrections, state."""
    writer, reader = case.memory.writer, case.memory.reader
    limit, start = case.limit(STATES), case.start()["S"]
    for index, layer in enumerate(case.layers):
        state = start[:, index]
        for number, step in enumerate(case.steps):
            hidden = case.of("hidden", number, layer)
            if hidden is None:
                continue
            tokens, order = step.tokens.pack()
            hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
            queries = reader.queries(layer, hidden)
            done = writer.scan(
                LayerInput(layer, hidden, tokens.mask, tokens.segments, queries),
                {"S": state},
                write=step.writes,
            )
            real = step.tokens.mask[..., None]
            reads = unpacked(done.reads.flatten(2), order, step.tokens)
            additions = {
                name: unpacked(delta, order, step.tokens)
                for name, delta in reader.correct(layer, done.reads).items()
            }
            expected = case.of("reads", number, layer)
            close(reads * real, expected * real, limit, "reads")
            for kind, name in (("delta_q", "q"), ("delta_o_pre_norm", "o")):
                wanted = case.of(kind, number, layer)
                if wanted is not None and name in additions:
                    if name == "o" and (weight := reader.layers[str(layer)].o_norm) is not None:
                        eps = case.memory.config.reader.params["o_norm_eps"]
                        wanted = F.rms_norm(wanted, weight.shape, weight, eps)
                    close(additions[name] * real, wanted * real, case.limit(LOGITS), kind)
            state = case.of("state", number, layer)
            close(done.state["S"], state, limit, "state")
            state = state.reshape(done.state["S"].shape)


@torch.no_grad()
def check_text(case: Case) -> None:
    """Greedy generation on a fresh state, every token written as it is read."""
    memory, ids, text = case.memory, case.steps[0].tokens.ids, case.tensors["generated"]
    count = text.shape[1] - ids.shape[1]
    options = {"max_new_tokens": count, "min_new_tokens": count}
    for row in range(len(ids)):
        new, _ = online.continue_text(
            memory.backbone, memory.writer, memory.reader, ids[row : row + 1],
            memory.writer.init(1), options,
        )  # fmt: skip
        assert torch.equal(new[0], text[row, ids.shape[1] :])
    fed = PackedTokens(text[:, :-1], torch.ones_like(text[:, :-1], dtype=torch.bool))
    state = online.run(
        memory.backbone, memory.writer, memory.reader, fed, memory.writer.init(len(ids))
    ).written.state
    for index, layer in enumerate(case.layers):
        wanted = case.tensors[f"state_after_generate/model.layers.{layer}.self_attn"]
        close(state["S"][:, index], wanted, case.limit(STATES), f"state after the text, {layer}")


def check_training(case: Case, double: Case) -> None:
    """The loss of the last step, and its gradient through reads and writes."""
    (loss, own), (exact_loss, exact) = episode(case), episode(double)
    close(loss, case.tensors["loss"], case.limit(LOGITS, distance(loss, exact_loss)), "loss")
    rounding = max(distance(gradient, exact[name]) for name, gradient in own.items())
    for name, expected in case.tensors.items():
        if name.startswith("grads/"):
            ours = official.renamed(name.removeprefix("grads/"), expected, case.fields)
            if ours is not None:
                largest = max(1.0, float(expected.abs().max()))
                close(own[ours[0]], ours[1], case.limit(LOGITS * largest, rounding), name)


def episode(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of every parameter that has one."""
    logits, labels = case.run()[-1][0], case.steps[-1].labels
    assert labels is not None
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    named = case.memory.named_parameters()
    return loss.detach(), {n: p.grad for n, p in named if p.grad is not None}
