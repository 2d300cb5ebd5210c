"""State files, a store of each kind and run folders as memwrite of commit f174ee8 wrote them, with what they answered."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from memwrite import Memory, Tokens
from memwrite.stores import Store

out = Path(sys.argv[1])
out.mkdir(parents=True)
LLAMA = {
    "type": "llama",
    "params": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
}
GPT2 = {
    "type": "gpt2",
    "params": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "initializer_range": 0.3,
    },
}
PAIRS = {
    "gradient": (
        LLAMA,
        {"name": "gradient", "params": {"slots": 2, "steps": 2, "control_tokens": 1}},
        {"name": "prefix"},
    ),
    "forward": (GPT2, {"name": "forward", "params": {"slots": 2}}, {"name": "prefix"}),
    "delta": (
        LLAMA,
        {"name": "delta", "params": {"rank": 4}},
        {"name": "lora", "params": {"init": "random"}},
    ),
    "full-context": (GPT2, {"name": "full-context"}, {"name": "key-value"}),
    "no-memory": (LLAMA, {"name": "no-memory"}, {"name": "static-lora", "params": {"rank": 2}}),
}
TEXT = "The boat is blue."
query = Tokens.from_rows([list(b"The ")])
answers = {}
for name, (backbone, writer, reader) in PAIRS.items():
    memory = Memory.from_config(
        {
            "backbone": {**backbone, "attention": "eager"},
            "writer": writer,
            "reader": reader,
            "seed": 3,
        }
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (memory.writer, memory.reader):
            for weight in part.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)
    state = memory.write(TEXT).state
    memory.save(state, out / f"{name}.safetensors")
    with torch.no_grad():
        logits = memory.read(state, query).logits[0, -1, :8].tolist()
    answers[name] = {"logits": logits, "ask": memory.ask(state, "The ", max_new_tokens=8)}
    if name != "full-context":
        for place in (out / "store.db", f"file://{(out / 'store').resolve()}"):
            with Store(place) as store:
                store.put(f"user/{name}", memory, state, source=TEXT)
                if name == "gradient":
                    store.put("gone", memory, state, lifetime=timedelta(days=30000))
    if name in ("gradient", "delta"):
        memory.save_run(out / f"run-{name}")
(out / "answers.json").write_text(json.dumps(answers, indent=1))
