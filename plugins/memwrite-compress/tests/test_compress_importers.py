"""Importers, on small folders with the names and files of the authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_outputs import built, loaded, of, written
from safetensors.torch import save_file
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.convert import import_run
from memwrite.errors import ConfigError, StorageError

#: As peft 0.4 writes it.
ADAPTER: dict[str, Any] = {
    "auto_mapping": None, "base_model_name_or_path": "llama-7b", "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None,
    "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "r": 3, "revision": None,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "task_type": "CAUSAL_LM",
}  # fmt: skip


def adapter(tensors: dict[str, Tensor], before: str, default: str) -> dict[str, Tensor]:
    """Return a file's LoRA weights by the names that peft gives them."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("lora."):
            _, layer, part, projection = name.split(".")
            module = f"{before}base_model.model.model.layers.{layer}.self_attn.{projection}_proj"
            found[f"{module}.lora_{part}{default}.weight"] = tensor.clone()
    return found


def base_of(name: str, folder: Path) -> Path:
    """Save the language model of a file as a transformers folder."""
    writer = {"autocompressor": "autocompressor", "icae": "icae"}.get(name, "ccm-concat")
    params = {"autoencoding_weight": 1.0} if name == "icae" else {}
    memory, _ = built(name, writer, **params)
    memory.backbone.save(folder, torch.float32)
    return folder


def ccm_folder(folder: Path, form: str, **changes: Any) -> Path:
    tensors, _ = loaded("ccm")
    folder = folder / f"llama-7b-no-online-{form}-ntok2"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **changes}))
    weights = adapter(tensors, "", "")
    count = 2 if "merge" in form else 1
    table = torch.cat([tensors["tokens"], torch.randn(2, 32)])[: 2 * count]
    weights["base_model.model.model.embed_tokens.comp_embeddings.weight"] = table
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("form", ["concat", "concat_recur", "merge", "merge_recur"])
def test_ccm(form: str, tmp_path: Path) -> None:
    tensors, _ = loaded("ccm")
    base = base_of("ccm", tmp_path / "base")
    import_run("ccm", ccm_folder(tmp_path, form), tmp_path / "run", base)
    memory = Memory.from_config(tmp_path / "run")
    logits = memory.read(written(memory, tensors), of(tensors["query"])).logits
    torch.testing.assert_close(logits, tensors[f"{form}/logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("accumulate", "case"), [(True, "accumulated"), (False, "replaced")])
def test_autocompressor(accumulate: bool, case: str, tmp_path: Path) -> None:
    tensors, _ = loaded("autocompressor")
    folder = base_of("autocompressor", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    described = json.loads((folder / "config.json").read_text())
    described |= {"summary_length": 2, "accumulate_summary": accumulate}
    described |= {"segment_gradient_checkpointing": True}
    (folder / "config.json").write_text(json.dumps(described))
    weights = {n: t for n, t in tensors.items() if n.startswith(("model.", "lm_head."))}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(weights)
    torch.save({n: weights[n] for n in names[:5]}, folder / "pytorch_model-00001-of-00002.bin")
    rest = {n: weights[n] for n in names[5:]} | {"embed_summary.weight": tensors["tokens"]}
    torch.save(rest, folder / "pytorch_model-00002-of-00002.bin")
    import_run("autocompressor", folder, tmp_path / "run", None)
    memory = Memory.from_config(tmp_path / "run")
    logits = memory.read(written(memory, tensors), of(tensors["query"])).logits
    torch.testing.assert_close(logits, tensors[f"{case}/logits"], rtol=1e-4, atol=1e-4)


def test_icae(tmp_path: Path) -> None:
    tensors, _ = loaded("icae")
    weights = adapter(tensors, "icae.", ".default")
    table = [tensors["tokens"], tensors["repeat"], torch.randn(1, 32), tensors["answer"]]
    weights["memory_token_embed.weight"] = torch.cat(table)
    (tmp_path / "adapter").mkdir()
    save_file(weights, tmp_path / "adapter" / "mistral_7b_ft_icae.safetensors")
    base = base_of("icae", tmp_path / "base")
    import_run("icae", tmp_path / "adapter", tmp_path / "run", base)
    # Their file does not say that α is 16 here, nor the rate of 2.
    changes = ["writer.params.alpha=16", "writer.params.segment=4"]
    memory = Memory.from_config(tmp_path / "run", changes)
    contexts = Tokens.from_rows([tensors[f"{c}/context"][0].tolist() for c in ("one", "three")])
    state = memory.write(contexts).state
    logits = memory.read(state, of(tensors["query"].expand(2, -1))).logits
    for row, case in enumerate(("one", "three")):
        torch.testing.assert_close(logits[row], tensors[f"{case}/logits"][0], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path) -> None:
    folder = ccm_folder(tmp_path, "merge_recur", bias="all", rank_pattern={"q": 2})
    with pytest.raises(ConfigError, match="cannot be done here: bias, rank_pattern"):
        import_run("ccm", folder, tmp_path / "run", tmp_path)
    sink = folder.rename(tmp_path / "llama-7b-no-online-merge_recur-ntok2-sink")
    with pytest.raises(ConfigError, match="keeps the first token"):
        import_run("ccm", sink, tmp_path / "run", tmp_path)
    folder = ccm_folder(tmp_path, "concat")
    with pytest.raises(ConfigError, match="with --base"):
        import_run("ccm", folder, tmp_path / "run", None)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "bias": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(StorageError, match="'bias', which no adapter has"):
        import_run("ccm", folder, tmp_path / "run", tmp_path)
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(ConfigError, match="only those of Llama"):
        import_run("autocompressor", tmp_path / "opt", tmp_path / "run", None)
    with pytest.raises(StorageError, match="holds no weights"):
        import_run("icae", tmp_path / "opt", tmp_path / "run", tmp_path)
