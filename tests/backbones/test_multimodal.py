"""A model that also sees: its language model is what memories are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from memwrite_specs.testing import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from memwrite import Memory, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.multimodal import text_part
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError

_SEES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
_IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}


def seeing(kind: str, text: dict[str, Any], **params: Any) -> Any:
    described = AutoConfig.for_model(
        kind, text_config={"vocab_size": 258, **_IDS, **text}, vision_config=_SEES, **_IDS, **params
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(described, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("gemma3")
    # No cap on the logits: no released Gemma 3 has one, and transformers leaves it out in the whole model.
    text = {**FAMILIES["gemma3_text"], "final_logit_softcapping": None}
    model = seeing("gemma3", text, mm_tokens_per_image=1, image_token_index=250)
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.filterwarnings("ignore:memory and text are longer")
def test_the_text_part_of_gemma_3_computes_what_the_whole_does(gemma: tuple[Any, Path]) -> None:
    whole, folder = gemma
    config = {"backbone": {"path": str(folder), "dtype": "float64"}}
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config({**config, **parts})
    assert memory.backbone.info.architecture == "gemma3_text"
    assert memory.backbone.windows.size == families.WINDOW
    context, query = [*range(1, 12)], [20, 21, 22]
    ids = torch.tensor([context + query])
    expected = whole(ids, use_cache=False).logits[0, len(context) :]
    state = memory.write(Tokens.from_rows([context])).state
    found = memory.read(state, Tokens.from_rows([query])).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    new = memory.generate(state, Tokens.from_rows([query]), max_new_tokens=4)
    behind = whole.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4
    )
    assert new[0].tolist() == behind[0, ids.shape[1] :].tolist()


def test_it_is_saved_as_the_language_model_that_it_is(
    gemma: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = gemma
    first = load_backbone(BackboneConfig(path=str(folder), dtype="float64"))
    first.save(tmp_path, torch.float64)
    second = load_backbone(BackboneConfig(path=str(tmp_path), dtype="float64"))
    assert second.info == first.info
    assert second.fingerprint == first.fingerprint


def test_a_language_model_that_does_not_stand_alone_is_refused() -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
            "num_key_value_heads": 2, "vocab_size": 258, "rope_parameters": {"mrope_section": [1, 1, 2],
            "rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text))
    with pytest.raises(ConfigError, match="take a model of text alone"):
        text_part(model)
