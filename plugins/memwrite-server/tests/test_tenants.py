"""Two tenants that attack each other: neither reads, changes or learns of what the other has."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner
from memwrite_server.cli import serve_token
from memwrite_server.tenants import NOBODY, Tenants
from running_server import Running

from memwrite.errors import ConfigError

TEXT = "Ava's secret is 4711."


@pytest.fixture(scope="module", autouse=True)
def written(server: Running) -> None:
    with server.http("ava") as client:
        client.put("/v1/memories/secret", json={"text": TEXT, "model": "tiny"})


@pytest.mark.parametrize(
    "key",
    [
        "secret",
        "ava/secret",
        "../ava/secret",
        "..%2Fava%2Fsecret",
        "/ava/secret",
        "ben/../ava/secret",
    ],
)
@pytest.mark.parametrize(
    ("method", "action", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/ask", {"question": "What?"}),
        ("POST", "/append", {"text": "Overwritten."}),
        ("POST", "/fork", {"to": "mine"}),
    ],
)
def test_the_memories_of_another_are_as_if_they_were_not_there(
    server: Running, key: str, method: str, action: str, body: dict[str, str] | None
) -> None:
    with server.http("ben") as ben, server.http("ava") as ava:
        before = ava.get("/v1/memories/secret").json()
        theirs = ben.request(method, f"/v1/memories/{key}{action}", json=body)
        nobodys = ben.request(method, f"/v1/memories/nothing-at-all{action}", json=body)
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json()["error"]["code"] in ("memory_not_found", None)
        assert "4711" not in theirs.text
        assert ava.get("/v1/memories/secret").json() == before


def test_chats_and_lists_show_nothing_of_another(server: Running) -> None:
    with pytest.raises(openai.NotFoundError):
        server.openai("ben").chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What?"}],
            extra_body={"memory": "secret"},
        )
    with server.http("ben") as ben:
        for prefix in ("", "secret", "ava/", "../ava/"):
            assert ben.get("/v1/memories", params={"prefix": prefix}).json()["data"] == []


def test_both_may_have_the_same_key(server: Running) -> None:
    def answer(tenant: str) -> str:
        with server.http(tenant) as client:
            got = client.post("/v1/memories/secret/ask", json={"question": "?", "max_tokens": 9})
            text: str = got.json()["answer"]
            return text

    before = answer("ava")
    with server.http("ben") as ben:
        ben.put("/v1/memories/secret", json={"text": "Ben's is another.", "model": "tiny"})
        assert answer("ava") == before != answer("ben")
        assert ben.delete("/v1/memories/secret").status_code == 200
    assert answer("ava") == before


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {}", "Bearer {}x"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/memories", "/v1/memories/secret"])
def test_without_a_token_there_is_nothing(server: Running, header: str | None, path: str) -> None:
    import httpx2

    headers = {} if header is None else {"Authorization": header.format(server.tokens["ava"])}
    got = httpx2.get(f"{server.url}{path}", headers=headers)
    assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")
    assert got.headers["www-authenticate"] == "Bearer"


def test_a_file_of_tokens_holds_hashes_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    tokens = []
    for name in ("ava", "ben", "ava"):
        result = CliRunner().invoke(serve_token, [name, "--tokens", str(path)])
        tokens.append(result.output.strip())
    assert not any(token in path.read_text() for token in tokens)
    assert hashlib.sha256(tokens[0].encode()).hexdigest() in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    known = Tenants.from_file(path)
    assert [known.of(token) for token in tokens] == ["ava", "ben", "ava"]
    assert known.of(None) is known.of("") is known.of("mw-") is None
    assert Tenants([]).of(None) == NOBODY


@pytest.mark.parametrize("lines", ["", "# nothing", "ava", "ava abc", "a/b " + "0" * 64])
def test_a_file_without_tokens_is_refused(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(lines)
    with pytest.raises(ConfigError, match="serve-token"):
        Tenants.from_file(path)
