"""What an online memory adds to an attention layer of the shape of Qwen3-4B, as a share of the frozen layer's time.

    python benchmarks/layer.py [--json]

Both run in turn, many times over, in one process; the figure is the median of their ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import in_turn, ratio
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from memwrite.backbones.corrections import KEYWORD
from memwrite.backbones.tokenizers import ByteTokenizer
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.inference.online import OnlineAdapter
from memwrite.plugins import registry
from memwrite.protocols import LayerReader, OnlineWriter

SHAPE = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 300}  # fmt: skip
RANK, DECODED = 8, 64


def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SHAPE)).eval()


@torch.inference_mode()
def measure(length: int, times: int) -> dict[str, float]:
    frozen, hooked = model(), model()
    backbone = TransformersBackbone(hooked, ByteTokenizer())
    plugins = registry()
    writer = plugins.writer("delta").build(plugins.writer("delta").config(rank=RANK), backbone)
    reader = plugins.reader("lora").build(
        plugins.reader("lora").config(init="base-slice"), backbone, writer.spec
    )
    assert isinstance(writer, OnlineWriter)
    assert isinstance(reader, LayerReader)
    hidden = torch.randn(1, length, SHAPE["hidden_size"])
    rotary = hooked.model.rotary_emb
    whole = rotary(hidden, torch.arange(length)[None])

    def adapter(continues: bool) -> OnlineAdapter:
        return OnlineAdapter(writer, reader, 0, writer.init(1).layer(0), continues=continues)

    def prefill(language_model: Any, **extra: Any) -> None:
        language_model.model.layers[0].self_attn(
            hidden_states=hidden, position_embeddings=whole, attention_mask=None, **extra
        )

    def decode(language_model: Any, **extra: Any) -> None:
        cache = DynamicCache()
        for t in range(DECODED):
            language_model.model.layers[0].self_attn(
                hidden_states=hidden[:, t : t + 1],
                position_embeddings=tuple(part[:, t : t + 1] for part in whole),
                attention_mask=None, past_key_values=cache, **extra,
            )  # fmt: skip

    def hooked_run(run: Callable[..., None], continues: bool) -> None:
        run(hooked, **{KEYWORD: {0: adapter(continues)}})

    result = {}
    for name, run in (("prefill", prefill), ("decode", decode)):
        works = {
            "plain": partial(run, frozen),
            "ours": partial(hooked_run, run, continues=name == "decode"),
        }
        seconds = in_turn(works, times, time.perf_counter)
        result[name] = ratio(seconds["ours"], seconds["plain"]).median - 1
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shares = measure(options.length, options.times)
    if options.json:
        print(json.dumps({"rank": RANK, "length": options.length, **shares}))
        return
    print(f"δ-mem r={RANK} on q and o, added to the frozen layer's time, batch 1:")
    print(f"  {options.length} tokens at once: {shares['prefill']:+.1%}")
    print(f"  each of {DECODED} decoded tokens: {shares['decode']:+.1%}")


if __name__ == "__main__":
    main()
