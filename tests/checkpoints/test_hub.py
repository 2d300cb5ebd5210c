"""Run folders as repositories of the Hugging Face hub: against folders, and a server that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard, constants

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.errors import ConfigError

CONFIG: dict[str, Any] = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
    },
    "writer": {"name": "forward", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 3}},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a record."""
    folder = tmp_path / "run"
    Memory.from_config(CONFIG).save_run(folder)
    evaluation = {"state_floats": 32, "memory": {"exact_match": 0.5}, "full_context": None}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "log.jsonl").write_text('{"step": 7, "seconds": 61.2}\n{"loss": 1}\n{"cut')
    (folder / "README.md").write_text("Tuned on a Monday.\n")
    return folder


def logits(memory: Memory) -> torch.Tensor:
    state = memory.write("a text").state
    return memory.read(state, memory.encode("asked")).logits


def test_a_run_folder_comes_back_from_another_folder(run: Path, tmp_path: Path) -> None:
    """What was saved depends on nothing that was there before."""
    memory = Memory.from_pretrained(run)
    expected = logits(memory)
    memory.save_pretrained(tmp_path / "saved")
    run.rename(tmp_path / "gone")
    again = Memory.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), expected)
    assert again.trained
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {
        "README.md", "backbone", "config.json", "config.yaml", "evaluation.json", "log.jsonl", "weights.safetensors",
    }  # fmt: skip


def test_weights_are_those_of_now(run: Path, tmp_path: Path) -> None:
    memory = Memory.from_pretrained(run)
    with torch.no_grad():
        for part in (memory.writer, memory.model):
            next(part.parameters()).add_(1)
    memory.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(Memory.from_pretrained(tmp_path / "saved")), logits(memory))


def test_a_memory_of_no_run_folder_is_saved_as_one(tmp_path: Path) -> None:
    memory = Memory.from_config(CONFIG)
    memory.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(Memory.from_config(tmp_path / "saved")), logits(memory))
    changed = Memory.from_pretrained(tmp_path / "saved", overrides=["writer.params.steps=2"])
    assert changed.config.writer.params["steps"] == 2


def test_a_model_elsewhere_is_no_part_of_it(run: Path, tmp_path: Path) -> None:
    around = {**CONFIG, "backbone": {"path": str(run / "backbone")}}
    with pytest.warns(UserWarning, match="no part of what is saved"):
        Memory.from_config(around).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "backbone").exists()


def test_the_card_is_made_of_the_runs_own_record(run: Path, tmp_path: Path) -> None:
    memory = Memory.from_pretrained(run)
    memory.save_pretrained(tmp_path / "saved", model_card_kwargs={"license": "mit"})
    text = (tmp_path / "saved" / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.license) == ("memwrite", "mit")
    for part in (
        "# forward + prefix",
        "a llama model that was built from scratch",
        "A state has 32 numbers.",
        "| memory | 50.0% |",
        "Trained for 7 steps in 61 seconds.",
        "  name: kv-retrieval\n",
        "## Notes\n\nTuned on a Monday.\n",
    ):
        assert part in text
    Memory.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "README.md").read_text().strip() == text.strip()


def test_a_damaged_record_is_left_out(run: Path) -> None:
    (run / "evaluation.json").write_text("[")
    (run / "log.jsonl").unlink()
    text = str(Memory.from_pretrained(run).generate_model_card())
    assert "What it recalls" not in text
    assert "Trained for" not in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such/thing", "neither a run folder nor"),
        ("../up", "neither"),
        ("models", "config.yaml"),
    ],
)
def test_what_is_no_memory(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Memory.from_pretrained(name)


# ---- over the wire -----------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as it takes to make a repository, commit to it, and download it."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]]

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            self._json(
                {"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine", "id": "1"}
            )
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                {
                    "files": [
                        {"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/mine/commit/1",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                }
            )
        else:
            self._json({"warnings": [], "errors": []})

    def do_GET(self) -> None:
        name = re.sub(r"^/me/mine/resolve/\w+/", "", self.path)
        if "/tree/" in self.path:
            tree = [("file", name, data) for name, data in self.files.items()]
            self._json([{"type": t, "path": n, "size": len(d), "oid": "0"} for t, n, d in tree])
        elif self.path.startswith("/api/models/me/mine"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": "me/mine", "sha": "1" * 40, "siblings": siblings, "private": False})
        elif name in self.files:
            data = self.files[name]
            tag = hashlib.sha1(data).hexdigest()
            self._send(data, {"ETag": f'"{tag}"', "X-Repo-Commit": "1" * 40})
        else:
            self._send(b"", {"X-Error-Code": "EntryNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    class Own(Hub):
        files: ClassVar[dict[str, bytes]] = {}
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Own
    server.shutdown()


def test_pushed_and_fetched(hub: type[Hub], run: Path, tmp_path: Path) -> None:
    memory = Memory.from_pretrained(run)
    url = memory.push_to_hub("me/mine", private=True, token="secret")
    assert "me/mine" in str(url)
    assert {
        "config.yaml",
        "weights.safetensors",
        "backbone/model.safetensors",
        "README.md",
    } <= hub.files.keys()
    assert "/api/repos/create" in hub.asked
    hub.files["backbone/evil.py"] = b"raise SystemExit"
    again = Memory.from_pretrained("me/mine", cache_dir=tmp_path / "cache")
    assert torch.equal(logits(again), logits(memory))
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_the_command(hub: type[Hub], run: Path) -> None:
    result = CliRunner().invoke(main, ["push", str(run), "me/mine", "--license", "mit"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("/me/mine/commit/" + "1")
    assert b"license: mit" in hub.files["README.md"]
    for words, reason in (([run, "a/b/c"], "could not be pushed"), (["no/run", "me/x"], "no/run")):
        refused = CliRunner().invoke(main, ["push", *map(str, words)])
        assert refused.exit_code == 2
        assert reason in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_a_repository_that_is_no_memory(hub: type[Hub], tmp_path: Path) -> None:
    hub.files |= {"config.json": b"{}", "model.safetensors": b""}
    with pytest.raises(ConfigError, match=r"is no memory: it has no config\.yaml"):
        Memory.from_pretrained("me/mine", cache_dir=tmp_path / "cache")
