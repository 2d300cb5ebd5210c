"""Sessions: what is said is written and forgotten, and no session knows of another."""

from __future__ import annotations

import operator
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from memwrite import Memory, Tokens
from memwrite.backbones.segmentation import sentences
from memwrite.backbones.tokenizers import train_bpe
from memwrite.cli.main import main
from memwrite.errors import InputError, StorageError
from memwrite.inference import online
from memwrite.session import Session
from memwrite.stores import Store

MESSAGES = [
    {"role": "user", "content": "The boat is red. It is old."},
    {"role": "assistant", "content": "I see."},
]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "online": (
        {"name": "delta", "params": {"rank": 4, "beta_bias": 0.0}},
        {"name": "lora", "params": {"init": "random", "gain": 2.0}},
    ),
    "messages": (
        {"name": "delta", "params": {"rank": 4, "granularity": "message", "beta_bias": 0.0}},
        {"name": "lora", "params": {"init": "random", "gain": 2.0}},
    ),
    "descent": (
        {"name": "gradient", "params": {"slots": 2, "lr": 1.0}},
        {"name": "prefix"},
    ),
}
each_kind = pytest.mark.parametrize("kind", PARTS)
pytestmark = pytest.mark.filterwarnings("ignore:writer 'delta'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model with a tokenizer that has a chat template."""
    out = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(["The boat is red. It is old. I see. user assistant\n"] * 3, 300)
    tokenizer.save(out / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2}  # fmt: skip
    memory = Memory.from_config(
        {
            "backbone": {"type": "llama", "params": sizes, "tokenizer": str(out / "tokenizer")},
            "writer": {"name": "no-memory"},
            "reader": {"name": "no-memory"},
        }
    )
    memory.save_run(out / "run")
    return str(out / "run")


@pytest.fixture
def built(folder: str) -> Any:
    @cache
    def build(kind: str) -> Memory:
        writer, reader = PARTS[kind]
        backbone = {"path": f"{folder}/backbone", "attention": "eager"}
        return Memory.from_config({"backbone": backbone, "writer": writer, "reader": reader})

    return build


def matrices(session: Session) -> torch.Tensor:
    return next(iter(session.state.tensors.values()))


@each_kind
def test_a_session_writes_what_is_said(kind: str, built: Any) -> None:
    memory = built(kind)
    session = Session(memory)
    session.append("The boat is red.")
    ids = memory.backbone.tokenizer.encode("The boat is red.")
    segments = None if kind != "messages" else torch.zeros(1, len(ids), dtype=torch.int64)
    tokens = Tokens.from_rows([ids])
    expected = memory.write(Tokens(tokens.ids, tokens.mask, segments)).state
    for name, tensor in session.state.tensors.items():
        assert torch.equal(tensor, expected[name])
    assert session.last is not None


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_an_answer_is_written_as_it_is_generated(options: dict[str, Any], built: Any) -> None:
    """The state after it is that of one write of question and answer, whatever beams were tried on the way."""
    memory = built("online")
    session = Session(memory)
    session.append("It is old.")
    before = session.state
    new, done = online.continue_text(
        memory.backbone, memory.writer, memory.reader,
        torch.tensor([memory.backbone.tokenizer.encode("The boat")]), before,
        {"max_new_tokens": 5, **options},
    )  # fmt: skip
    answer = session.ask("The boat", raw=True, max_new_tokens=5, **options)
    row = memory.backbone.tokenizer.encode("The boat") + new[0].tolist()
    whole = memory.write(Tokens.from_rows([row]), before).state
    torch.testing.assert_close(session.state["S"], whole["S"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(done.written.state["S"], session.state["S"])
    assert answer == memory.backbone.tokenizer.decode(new[0].tolist())


@each_kind
def test_reading_only_changes_nothing(kind: str, built: Any) -> None:
    session = Session(built(kind))
    session.append("The boat is red.")
    session.read_only = True
    before = matrices(session).clone()
    answers = [session.ask(MESSAGES, max_new_tokens=4) for _ in range(2)]
    assert answers[0] == answers[1]
    assert torch.equal(matrices(session), before)
    with pytest.raises(InputError, match="read-only"):
        session.append("no")


@each_kind
def test_forks_and_resets(kind: str, built: Any) -> None:
    session = Session(built(kind))
    session.append("The boat is red.")
    fork, before = session.fork(), matrices(session).clone()
    session.append("It is old.")
    assert torch.equal(matrices(fork), before)
    assert not torch.equal(matrices(session), before)
    fork.reset()
    assert torch.equal(matrices(fork), matrices(Session(built(kind))))


@each_kind
def test_two_sessions_in_two_threads_never_meet(kind: str, built: Any) -> None:
    memory = built(kind)
    texts = ["The boat is red. " * 3, "I see. It is old. " * 3]

    def talk(text: str) -> tuple[str, torch.Tensor]:
        session = Session(memory)
        said = ""
        for _ in range(3):
            session.append(text)
            said += session.ask(MESSAGES, max_new_tokens=5)
        return said, matrices(session)

    alone = [talk(text) for text in texts]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, t=t: found.update({i: talk(t)}))
        for i, t in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (said, state) in enumerate(alone):
        assert found[index][0] == said
        assert torch.equal(found[index][1], state)


def test_the_chat_template_is_honoured(built: Any) -> None:
    """The tokens are those of the template, each message a piece of its own; a text's specials stay text."""
    memory = built("messages")
    tokenizer = memory.backbone.tokenizer
    pieces = tokenizer.chat(MESSAGES, True, lambda text: [text])
    expected = tokenizer._tokenizer.apply_chat_template(
        MESSAGES, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert reduce(operator.iadd, pieces, []) == list(expected)
    assert len(pieces) == 3
    assert all(piece[0] == tokenizer.bos_id for piece in pieces)
    assert tokenizer.bos_id not in tokenizer.encode("<|start|>user")


def test_texts_and_templates_are_encoded_in_any_number_of_threads(built: Any) -> None:
    """A special token that one thread's user spells out is never read as such because another's template has it."""
    tokenizer = built("messages").backbone.tokenizer
    text = "<|start|>" * 200
    ways: list[Callable[[], Any]] = [
        lambda: tokenizer.encode(text),
        lambda: tokenizer.chat([{"role": "user", "content": text}], False, lambda text: [text]),
    ]
    with ThreadPoolExecutor(8) as pool:
        done = [(pool.submit(way), way) for way in ways * 200]
    alone = {way: way() for way in ways}
    assert all(future.result() == alone[way] for future, way in done)


def test_sentences_are_cut_at_stops() -> None:
    text = "Dr. No? Yes.\n\nA new one; 3.5 m\nlong! And"
    assert "".join(sentences(text)) == text
    assert sentences("One. Two? Three") == ["One.", " Two?", " Three"]


def test_messages_that_are_none(built: Any) -> None:
    session = Session(built("online"))
    for said in ("", [], [{"role": "user"}]):
        with pytest.raises(InputError):
            session.ask(said)
    with pytest.raises(InputError, match="positions"):
        session.ask("boat " * 200)


@each_kind
def test_files_of_sessions(kind: str, built: Any, tmp_path: Path) -> None:
    memory = built(kind)
    session = Session(memory)
    session.append("The boat is red.")
    session.save(tmp_path / "s.safetensors")
    again = Session(memory)
    again.load(tmp_path / "s.safetensors")
    assert torch.equal(matrices(again), matrices(session))
    reader, state = Memory.load(tmp_path / "s.safetensors")
    only = Session(reader, state, read_only=True)
    session.read_only = True
    assert only.ask("It", max_new_tokens=4) == session.ask("It", max_new_tokens=4)
    with pytest.raises(InputError, match="can only read"):
        Session(reader, state)


def test_states_that_grow_are_taken_back(folder: str, tmp_path: Path) -> None:
    """A memory that keeps everything has no one size of state; from files and stores it goes on all the same."""
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config({"backbone": {"path": f"{folder}/backbone"}, **parts})
    session, again = Session(memory), Session(memory)
    session.append("The boat is red.")
    session.save(tmp_path / "s.safetensors")
    again.load(tmp_path / "s.safetensors")
    with Store(tmp_path / "s.db") as store:
        store.put("boat", memory, session.state)
        stored = store.get("boat", memory)
    for state in (again.state, stored):
        for name, tensor in session.state.tensors.items():
            assert torch.equal(state[name], tensor)
    assert again.ask("It", max_new_tokens=4) == session.ask("It", max_new_tokens=4)


def test_a_file_of_another_reader_is_refused(built: Any, tmp_path: Path) -> None:
    """The same spec, but corrections that were learnt otherwise."""
    memory = built("online")
    Session(memory).save(tmp_path / "s.safetensors")
    with torch.no_grad():
        memory.reader.layers["0"].query += 1
    try:
        with pytest.raises(StorageError, match="another reader"):
            Session(memory).load(tmp_path / "s.safetensors")
    finally:
        with torch.no_grad():
            memory.reader.layers["0"].query -= 1


def test_warnings_are_sentences(built: Any, tmp_path: Path) -> None:
    """On standard error, without the place in the code."""
    built("online").save_run(tmp_path / "run")
    words = [str(Path(sys.executable).with_name("memwrite")), "chat", str(tmp_path / "run")]
    done = subprocess.run(words, input="", capture_output=True, text=True, check=True)
    assert done.stderr.startswith("Warning: writer 'delta'")
    assert done.stderr.count("\n") == 1


def test_chat_in_a_terminal(built: Any, tmp_path: Path) -> None:
    built("online").save_run(tmp_path / "run")
    lines = ["hello", "/state", f"/save {tmp_path / 's'}", "/reset", f"/load {tmp_path / 's'}"]
    lines += ["/read", "hello", "/what", f"/load {tmp_path / 'none'}", "/quit", "never"]
    words = ["chat", str(tmp_path / "run"), "--max-new-tokens", "3"]
    result = CliRunner().invoke(main, words, input="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "bytes, norm" in result.output
    assert "forgotten after" in result.output
    assert "read-only" in result.output
    assert "Error: " in result.output
    sizes = [line for line in result.output.splitlines() if line.startswith("state: ")]
    assert sizes[0].split(",")[:2] == sizes[1].split(",")[:2]
    assert "norm 0," not in sizes[1]
    assert "norm 0" in sizes[3]


def test_a_blank_line_does_not_end_a_piped_chat(built: Any, tmp_path: Path) -> None:
    """Every line that says something is answered, as it was typed."""
    built("messages").save_run(tmp_path / "run")
    words = ["chat", str(tmp_path / "run"), "--max-new-tokens", "2"]
    text = "\nhello\n\n   \n\r\n  boat\nlast"
    with pytest.MonkeyPatch.context() as patch:
        asked: list[Any] = []
        patch.setattr(Session, "ask", lambda _self, messages, **_: asked.append(messages) or "yes")
        result = CliRunner().invoke(main, words, input=text)
    assert result.exit_code == 0, result.output
    assert [message["content"] for (message,) in asked] == ["hello", "  boat", "last"]
