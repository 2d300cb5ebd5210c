"""A pretrained model is one line of a config: trained, evaluated and asked, from a folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES
from samples import SAMPLES
from transformers import AutoConfig, AutoModelForCausalLM

from memwrite import Memory
from memwrite.evaluation.run import evaluate_run
from memwrite.training.run import train


@pytest.mark.parametrize(
    ("family", "task"), [("qwen3", "babi"), ("llama", "babi"), ("llama", "squad")]
)
def test_a_pretrained_model_learns_to_write(family: str, task: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        family, **{**FAMILIES[family], "vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257}
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "qa").write_text(SAMPLES[task])
    data = [f"task.name={task}", "task.params.files=[qa]", f"task.params.folder={tmp_path}"]
    small = ["training.steps=3", "training.every=3", "training.batch_size=2", "training.warmup=1"]
    run = train(
        "configs/babi/pretrained.yaml",
        [
            f"backbone.path={tmp_path / 'model'}",
            *data,
            "task.params.tokens=null",
            "task.params.held_out=0.5",
            *small,
            f"training.out={tmp_path / 'run'}",
        ],
    )
    results = evaluate_run(run, [])
    assert 0 <= results.as_dict()["memory"]["exact_match"] <= 1
    memory = Memory.from_config(run)
    assert not hasattr(memory.model.base_model.layers[0].self_attn.q_proj, "parametrizations")
    state = memory.write("Mary moved to the hall.").state
    assert isinstance(memory.ask(state, "Where is Mary?", max_new_tokens=3), str)
