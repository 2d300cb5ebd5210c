"""A memory of vectors and a prompt as vLLM takes them: transformers makes the same of them as the memory's own reader."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support import MODELS
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from memwrite import Memory, MemoryState, StateSpec
from memwrite.backbones.loading import load_backbone
from memwrite.checkpoints.prompt_embeds import to_base64
from memwrite.cli.main import main
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.convert import embed_prompt, export_prompt
from memwrite.errors import ConfigError, InputError, StorageError
from memwrite.plugins import registry

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
QUERY = "Where is it?"
PLAIN = StateSpec("prefix", {"memory": (3, 32)})
MASKED = StateSpec("prefix", {"memory": (3, 32), "mask": (3,)})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "base"
    memory = Memory.from_config({"backbone": {"type": "llama", "params": LLAMA}})
    memory.backbone.save(folder, torch.float32)
    return folder


def memory_of(base: Path, spec: StateSpec) -> Memory:
    described, plugin = BackboneConfig(path=str(base)), registry().reader_of(spec.kind)
    backbone = load_backbone(described)
    built = plugin.build(plugin.config(), backbone, spec)
    config = Config(described, reader=PartConfig(plugin.name))
    return Memory(backbone, None, built, config).eval()


def some(spec: StateSpec, rows: int = 1) -> MemoryState:
    values = torch.randn(rows, 3, 32, generator=torch.Generator().manual_seed(1))
    mask = {"mask": torch.tensor([[True, True, False]] * rows)} if "mask" in spec.tensors else {}
    return MemoryState(spec, {"memory": values, **mask})


def by_server(text: str) -> Tensor:
    """Load as vLLM's server does."""
    data = io.BytesIO(base64.b64decode(text, validate=True))
    loaded: Tensor = torch.load(data, weights_only=True)
    return loaded


@pytest.mark.parametrize("spec", [PLAIN, MASKED], ids=["all", "some"])
@torch.no_grad()
def test_transformers_gives_the_logits_of_the_memory(
    base: Path, tmp_path: Path, spec: StateSpec
) -> None:
    """For the tensor of either form; the memory is read at the positions before the prompt."""
    memory, state = memory_of(base, spec), some(spec)
    memory.save(state, tmp_path / "state.safetensors")
    words = ["export", str(tmp_path / "state.safetensors"), str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*words, "--format", "prompt-embeds", "--prompt", QUERY])
    assert done.exit_code == 0, done.output
    tensor = load_file(tmp_path / "out" / "prompt_embeds.safetensors")["prompt_embeds"]
    query = memory.prompt(state, QUERY)
    real = 3 if spec is PLAIN else 2
    assert tensor.shape == (real + query.ids.shape[1], 32)
    text = (tmp_path / "out" / "prompt_embeds.base64").read_text()
    assert torch.equal(by_server(text), tensor)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    found = model(inputs_embeds=tensor[None]).logits[:, real:]
    assert_close(found, memory.read(state, query).logits, atol=1e-5, rtol=1e-5)


def test_it_is_of_the_models_dtype_and_holds_nothing_else(base: Path) -> None:
    """Even where the tensor is a part of a larger one."""
    half = Memory.from_config(
        {
            "backbone": {"type": "llama", "params": LLAMA, "dtype": "bfloat16"},
            "writer": {"name": "gradient", "params": {"slots": 3, "steps": 1}},
            "reader": {"name": "prefix"},
        }
    )
    alone = embed_prompt(half, half.write("The key is under the mat.").state)
    assert (alone.dtype, alone.shape) == (torch.bfloat16, (3, 32))
    large = torch.randn(1000, 32)
    assert len(to_base64(large[:2])) < 4000
    assert torch.equal(by_server(to_base64(large[:2])), large[:2])


@pytest.mark.parametrize(
    "spec",
    [
        StateSpec("lowrank", {"A.q": (2, 1, 32), "B.q": (2, 32, 1)}, (0, 1)),
        StateSpec("keyvalue", {
            "keys": (2, 2, 3, 8), "values": (2, 2, 3, 8), "mask": (3,), "next_position": ()
        }, (0, 1)),
    ],
    ids=["lowrank", "keyvalue"],
)  # fmt: skip
def test_other_kinds_are_refused(base: Path, spec: StateSpec) -> None:
    with pytest.raises(ConfigError, match="not of vectors before the prompt alone"):
        embed_prompt(memory_of(base, spec), spec.zeros(1), QUERY)


def test_what_cannot_be_said_so_is_refused(base: Path, tmp_path: Path) -> None:
    memory = memory_of(base, PLAIN)
    with pytest.raises(InputError, match="holds 2 memories"):
        embed_prompt(memory, some(PLAIN, 2), QUERY)
    codes = Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "ngram": 2},
            "writer": {"name": "gradient", "params": {"slots": 2, "steps": 1}},
            "reader": {"name": "prefix"},
        }
    )
    with pytest.raises(ConfigError, match="embeds tokens by more than a table"):
        embed_prompt(codes, codes.write("so it goes").state, QUERY)
    memory.save(some(PLAIN), tmp_path / "state.safetensors")
    with pytest.raises(StorageError, match="exists already"):
        export_prompt(tmp_path / "state.safetensors", tmp_path)
    words = ["export", "x", "y", "--format", "peft", "--prompt", "z"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "--prompt and --raw go with --format prompt-embeds" in done.stderr
