"""What steers generation: the caller's options and the tokens that end a turn, and nothing else of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from naive import built, memories, prefixed
from support import MODELS
from transformers import AutoTokenizer

from memwrite import Memory, MemoryState, Tokens
from memwrite.backbones.tokenizers import train_bpe
from memwrite.errors import InputError
from memwrite.session import Session

TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
ASKED = [{"role": "user", "content": "The boat is red."}]
PAIRS = [("forward", "prefix"), ("full-context", "key-value"), ("delta", "lora")]
RECOMMENDED: dict[str, tuple[str, dict[str, Any]]] = {
    "no cache": ("generation_config.json", {"use_cache": False}),
    "no cache in config.json": ("config.json", {"use_cache": False}),
    "repetition penalty": ("generation_config.json", {"repetition_penalty": 5.0}),
    "no repeated n-gram": ("generation_config.json", {"no_repeat_ngram_size": 1}),
    "sampling": ("generation_config.json", {"do_sample": True, "temperature": 9.0, "num_beams": 2}),
    "length": ("generation_config.json", {"max_length": 3, "min_length": 30, "max_time": 1e-9}),
    "outputs": ("generation_config.json", {"return_dict_in_generate": True}),
    "cache": ("generation_config.json", {"cache_implementation": "static"}),
    "suppressed": ("generation_config.json", {"suppress_tokens": list(range(200))}),
}
pytestmark = pytest.mark.filterwarnings("ignore:writer 'delta'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte model."""
    out: Path = tmp_path_factory.mktemp("model")
    described = {"backbone": {**MODELS["llama"], "dtype": "float64"}}
    Memory.from_config(described).backbone.save(out, torch.float64)
    return out


def from_folder(folder: Path, writer: str, reader: str) -> Memory:
    params = {"params": {"init": "random"}} if reader == "lora" else {}
    return Memory.from_config(
        {
            "backbone": {"path": str(folder), "dtype": "float64"},
            "writer": {"name": writer},
            "reader": {"name": reader, **params},
        }
    )


def first_choices(memory: Memory, state: MemoryState, ids: list[int], count: int) -> list[int]:
    """Return the likeliest tokens of `count` reads, each of the query and the tokens chosen before."""
    row = list(ids)
    for _ in range(count):
        row.append(int(memory.read(state, Tokens.from_rows([row])).logits[0, -1].argmax()))
        if row[-1] in memory.backbone.info.end_ids:
            break
    return row[len(ids) :]


@pytest.mark.parametrize("what", RECOMMENDED)
@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_what_a_folder_recommends_changes_nothing(
    folder: Path, tmp_path: Path, what: str, writer: str, reader: str
) -> None:
    """Generated tokens are the first choices of `read`."""
    file, changes = RECOMMENDED[what]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    data = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**data, **changes}))
    memory = from_folder(tmp_path, writer, reader)
    state = memory.write("Normandy").state
    ids = list(b"The ")
    new = memory.generate(state, Tokens.from_rows([ids]), max_new_tokens=8)[0].tolist()
    assert new == first_choices(memory, state, ids, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=False is not possible"),
        ({"max_lenght": 3}, "'max_lenght' is no option of generation"),
        ({"max_length": 3}, "use max_new_tokens"),
        ({"eos_token_id": 3}, "every end token of the model"),
        ({"output_scores": True}, "'output_scores' is no option"),
        ({"guidance_scale": 2.0}, "'guidance_scale' is no option"),
        ({"num_beams": 0}, "num_beams must be a whole number"),
        ({"num_return_sequences": 2}, "options of generation are refused"),
        ({"do_sample": True, "temperature": -1.0}, "options of generation are refused"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"cache_implementation": "quantized"}, "'dynamic' or 'static'"),
    ],
)
def test_options_that_cannot_be_honoured(options: dict[str, Any], message: str) -> None:
    memory = prefixed("llama", "sdpa")
    with pytest.raises(InputError, match=message) as caught:
        memory.generate(memories(1), **{"max_new_tokens": 2, **options})
    assert "\n" not in str(caught.value)


def test_options_that_are_honoured() -> None:
    memory, state = prefixed("llama", "sdpa"), memories(1)
    free = memory.generate(state, max_new_tokens=4)
    assert torch.equal(memory.generate(state, max_new_tokens=4, use_cache=True), free)
    without = memory.generate(state, max_new_tokens=4, suppress_tokens=free[0].tolist())
    assert not set(without[0].tolist()) & set(free[0].tolist())
    only = memory.generate(state, max_new_tokens=4, prefix_allowed_tokens_fn=lambda _row, _ids: [7])
    assert only[0].tolist() == [7] * 4


def test_an_answer_is_one_sequence() -> None:
    memory, state = prefixed("llama", "sdpa"), memories(1)
    with pytest.raises(InputError, match="leave num_return_sequences out"):
        memory.ask(state, "a", num_return_sequences=2, num_beams=2)
    assert isinstance(memory.ask(state, "a", num_return_sequences=1, max_new_tokens=2), str)


@pytest.mark.parametrize("length", [0, 2])
def test_every_row_has_its_own_room(length: int) -> None:
    """Beside a long memory a short one says as much as alone, and long queries fit behind it."""
    memory = built("llama", "sdpa", "full-context", "key-value")
    contexts = [list(range(10, 68)), list(range(10, 20))]
    alone = [memory.write(Tokens.from_rows([context])).state for context in contexts]
    both = memory.write(Tokens.from_rows(contexts)).state
    query = [5, 6][:length]
    new = memory.generate(both, Tokens.from_rows([query] * 2)).tolist()
    for row, state in enumerate(alone):
        expected = memory.generate(state, Tokens.from_rows([query]))[0].tolist()
        end = [memory.backbone.info.eos_id] * (len(new[row]) - len(expected))
        assert new[row] == expected + end
    assert len(new[1]) > 40
    queries = [[1, 2], list(range(10, 50))]
    together = memory.read(both, Tokens.from_rows(queries)).logits
    more = memory.write(Tokens.from_rows(queries), both).state
    for row, state in enumerate(alone):
        one = Tokens.from_rows([queries[row]])
        expected_logits = memory.read(state, one).logits[0]
        torch.testing.assert_close(together[row, : len(queries[row])], expected_logits)
        grown = memory.write(one, state).state
        short = Tokens.from_rows([[3, 4]])
        torch.testing.assert_close(
            memory.read(more.rows(torch.tensor([row])), short).logits,
            memory.read(grown, short).logits,
        )
    with pytest.raises(InputError, match="positions"):
        memory.read(both, Tokens.from_rows([list(range(7)), [1]]))


# ---- the end of a turn -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template whose tokenizer's end token is not what ends a turn."""
    out: Path = tmp_path_factory.mktemp("chat")
    train_bpe(["The boat is red. It is old. I see. user assistant\n"] * 3, 300).save(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|turn_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    sizes = {**MODELS["llama"]["params"], "vocab_size": 310, "max_position_embeddings": 128}
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama", "params": sizes, "tokenizer": str(out), "dtype": "float64",
            }
        }
    )  # fmt: skip
    memory.model.save_pretrained(out)
    return out


@pytest.mark.parametrize(("writer", "reader"), [*PAIRS[1:], ("no-memory", "no-memory")])
def test_every_end_token_ends_an_answer(
    chatting: Path, tmp_path: Path, writer: str, reader: str
) -> None:
    """An answer is what transformers gives on the same chat, and its end is written once."""
    for path in chatting.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    free = from_folder(tmp_path, writer, reader)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    session = Session(free)
    query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    end = int(free.generate(session.state, query, max_new_tokens=6)[0, 5])
    generation = {"eos_token_id": [free.backbone.info.eos_id, end]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    memory = from_folder(tmp_path, writer, reader)
    turn_end = tokenizer.convert_tokens_to_ids("<|turn_end|>")
    assert memory.backbone.info.end_ids == (memory.backbone.info.eos_id, end, turn_end)
    session = Session(memory)
    answer = session.ask(ASKED, max_new_tokens=20)
    new = memory.generate(Session(memory).state, query, max_new_tokens=20)[0].tolist()
    assert new.count(end) == 1
    assert new[-1] == end
    assert len(new) <= 6
    if writer != "delta":
        expected = memory.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20
        )[0, ids.shape[1] :]
        assert new == expected.tolist()
        assert memory.backbone.info.eos_id not in new
    assert answer == tokenizer.decode(new[:-1], skip_special_tokens=True)
    if writer == "full-context":
        following = [*ASKED, {"role": "assistant", "content": "x"}, {"role": "user", "content": ""}]
        text = tokenizer.apply_chat_template(following, tokenize=False)
        end_of_turn = text.rpartition("x")[2].removesuffix("<|turn_end|>\n")
        closed = tokenizer.encode(end_of_turn, add_special_tokens=False)
        assert int(session.state["mask"].sum()) == ids.shape[1] + len(new) - 1 + len(closed)
    saved = tmp_path / "saved"
    memory.backbone.save(saved, torch.float64)
    assert from_folder(saved, writer, reader).backbone.info.end_ids == memory.backbone.info.end_ids
