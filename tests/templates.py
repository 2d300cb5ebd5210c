"""Chat templates of the usual families, and tiny models with them whose tokenizers have one token a character."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import torch
from support import MODELS
from tokenizers import Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from memwrite import Memory
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import TransformersTokenizer
from memwrite.config import BackboneConfig

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
#: Template, its special tokens, and which of them ends a turn.
TEMPLATES: dict[str, tuple[str, list[str], str]] = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + ALTERNATE + "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "mistral": (
        "{{ bos_token }}" + ALTERNATE + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        [],
        "</s>",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        "<|end|>",
    ),
}  # fmt: skip


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@cache
def own(name: str) -> Any:
    """A tokenizer of transformers with one token a character, so that what is decoded is encoded as it was."""
    template, special, _ = TEMPLATES[name]
    characters = string.ascii_letters + string.digits + string.punctuation + " \n"
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", *special, *characters])}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=special,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


@cache
def memory_of(name: str, writer: str = "full-context", reader: str = "key-value") -> Memory:
    sizes = {**MODELS["llama"]["params"], "max_position_embeddings": 512, "initializer_range": 0.5}
    backbone = load_backbone(BackboneConfig(type="llama", params=sizes, dtype="float64"))
    backbone = type(backbone)(backbone.model, TransformersTokenizer(own(name)))
    parts = {"writer": {"name": writer}, "reader": {"name": reader}}
    described = {"type": "llama", "params": sizes, "dtype": "float64"}
    return Memory.from_config({"backbone": described, **parts}, backbone=backbone)


def rendered(name: str, messages: list[dict[str, str]], answer: bool = True) -> list[int]:
    return list(
        own(name).apply_chat_template(
            messages, add_generation_prompt=answer, tokenize=True, return_dict=False
        )
    )


def options_of(name: str, turn: int = 0) -> dict[str, Any]:
    """Words alone; the first answer is cut off, others are ended by the template's token or by the tokenizer's."""
    letters = own(name).convert_tokens_to_ids(list(string.ascii_letters))
    ends = [None, own(name).convert_tokens_to_ids(TEMPLATES[name][2]), own(name).eos_token_id]
    return {"max_new_tokens": 4 + turn, "logits_processor": [Words(letters, 3, ends[turn])]}


class Words(LogitsProcessor):  # type: ignore[misc]
    """Allows letters alone and, if an end is given, nothing but it from the token `count` on."""

    def __init__(self, letters: list[int], count: int, end: int | None) -> None:
        self._letters, self._count, self._end = letters, count, end
        self._calls = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        over = self._end is not None and self._calls >= self._count
        self._calls += 1
        kept = [self._end] if over else self._letters
        return torch.full_like(scores, -torch.inf).index_copy(
            1, torch.tensor(kept), scores[:, kept]
        )


def by_transformers(memory: Memory, ids: list[int], options: dict[str, Any]) -> str:
    given = torch.tensor([ids])
    new = memory.model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, pad_token_id=2,
        eos_token_id=list(memory.backbone.info.end_ids), **options,
    )[0, len(ids) :]  # fmt: skip
    return str(memory.backbone.tokenizer.decode(new.tolist()))
