"""Documents from wherever they lie: the same ones, in an order that nothing but their names decides."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner
from pyarrow import parquet
from test_ingest import CONFIG, TEXTS, states

from memwrite.cli.main import main
from memwrite.errors import InputError
from memwrite.stores.documents import Document, Documents, Skipped
from memwrite.stores.sources import Parquet
from memwrite.utils.extras import MissingExtra

ROWS = [{"id": key, "text": text} for key, text in TEXTS.items()]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def jsonl_file(folder: Path) -> str:
    (folder / "docs.jsonl").write_bytes(json_lines(ROWS))
    return str(folder / "docs.jsonl")


def compressed(folder: Path) -> str:
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    return str(folder / "docs.jsonl.gz")


def pattern(folder: Path) -> str:
    """Written last first."""
    for start in (30, 20, 10, 0):
        (folder / f"docs-{start:02}.jsonl").write_bytes(json_lines(ROWS[start : start + 10]))
    return str(folder / "docs-*.jsonl")


def parquet_file(folder: Path) -> str:
    """In row groups of seven, and with a column that nobody asks for."""
    table = pa.Table.from_pylist([{**row, "vector": [1.0, 2.0]} for row in ROWS])
    parquet.write_table(table, folder / "docs.parquet", row_group_size=7)
    return str(folder / "docs.parquet")


def mixed(folder: Path) -> str:
    parquet.write_table(pa.Table.from_pylist(ROWS[:15]), folder / "a.PARQUET")
    (folder / "b.jsonl").write_bytes(json_lines(ROWS[15:]))
    return f"{folder}/*"


def url(folder: Path) -> str:
    with fsspec.open(f"memory://{folder}/docs.jsonl", "wb") as file:
        file.write(json_lines(ROWS))
    return f"memory://{folder}/docs.jsonl"


def url_pattern(folder: Path) -> str:
    pattern(folder)
    return f"file://{folder}/docs-*.jsonl"


def saved_dataset(folder: Path) -> str:
    from datasets import Dataset

    Dataset.from_list([{**row, "n": 1} for row in ROWS]).save_to_disk(
        folder / "saved", num_shards=3
    )
    return str(folder / "saved")


def from_hub(folder: Path) -> str:
    """A folder is what the hub gives; nothing is downloaded here."""
    (folder / "repository").mkdir()
    parquet_file(folder / "repository")
    return f"hub:{folder}/repository:train"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def found(place: str, **fields: str) -> list[Document | Skipped]:
    return [*Documents.of(place, **fields).read()]


def pairs(place: str, **fields: str) -> list[tuple[str, str]]:
    return [(d.key, d.text) for d in found(place, **fields) if isinstance(d, Document)]


@pytest.mark.parametrize(
    "made",
    [
        jsonl_file, compressed, pattern, parquet_file, mixed, url, url_pattern, saved_dataset, from_hub,
    ],
)  # fmt: skip
def test_every_form_gives_the_same_documents(tmp_path: Path, made: Callable[[Path], str]) -> None:
    place = made(tmp_path)
    documents = [*Documents.of(place).read()]
    assert [(d.key, d.text) for d in documents if isinstance(d, Document)] == [*TEXTS.items()]
    assert Documents.of(place).count() == (None if made in (compressed, url) else len(TEXTS))


def test_lines_without_an_id_are_called_by_file_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one file by number alone; and the keys stay when files are added, or read from elsewhere."""
    for name in ("b/one", "a/two", "a/deep/three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines([{"text": name}, {"text": "more"}]))
    assert pairs(f"{tmp_path}/b/one.jsonl") == [("1", "b/one"), ("2", "more")]
    assert [key for key, _ in pairs(f"{tmp_path}/a/*.jsonl")] == ["two.jsonl:1", "two.jsonl:2"]
    monkeypatch.chdir(tmp_path / "b")
    expected = [
        f"{name}.jsonl:{line}" for name in ("a/deep/three", "a/two", "b/one") for line in (1, 2)
    ]
    for place in (f"{tmp_path}/**/*.jsonl", "../**/*.jsonl", f"file://{tmp_path}/**/*.jsonl"):
        assert [key for key, _ in pairs(place)] == expected
    parquet.write_table(pa.table({"text": ["x", "y"]}), tmp_path / "rows.parquet")
    assert pairs(f"{tmp_path}/rows.parquet") == [("1", "x"), ("2", "y")]


def test_a_name_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "docs[1].jsonl").write_bytes(json_lines(ROWS[:2]))
    (tmp_path / "docs1.jsonl").write_bytes(json_lines(ROWS[2:3]))
    assert len(found(f"{tmp_path}/docs[1].jsonl")) == 2


def test_splits_of_a_dataset_are_files(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    part = {name: Dataset.from_list([{"n": 7, "text": name}]) for name in ("train", "test")}
    DatasetDict(part).with_format("numpy").save_to_disk(tmp_path / "saved")
    assert pairs(f"{tmp_path}/saved") == [("test:1", "test"), ("train:1", "train")]
    assert pairs(f"{tmp_path}/saved", id_field="n") == [("7", "test")]  # and no number of numpy's


def test_fields_have_the_names_that_they_are_given(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"url": ["u1", "u2"], "content": ["x", "y"]}), tmp_path / "a.parquet"
    )
    place = f"{tmp_path}/a.parquet"
    assert pairs(place, text_field="content", id_field="url") == [("u1", "x"), ("u2", "y")]
    with pytest.raises(InputError, match=r"no column 'text', but content, url: .* --text-field"):
        found(place)


def test_bad_rows_are_told_with_their_file(tmp_path: Path) -> None:
    """Rows around them are read, also those of the same batch."""
    bad = pa.array([b"good", b"\xff", b"", b"last"], pa.binary()).view(pa.string())
    ids = pa.array(["a", "b", "c", "a"])
    parquet.write_table(pa.table({"id": ids, "text": bad}), tmp_path / "1.parquet")
    table = pa.table({"id": pa.array([7, None, 8]), "text": pa.array(["x", "y", None])})
    parquet.write_table(table, tmp_path / "2.parquet")
    (tmp_path / "3.jsonl").write_bytes(b'{"text": 3}\n\n{"id": 7, "text": "again"}\n')
    rows = found(f"{tmp_path}/*")
    assert [(d.key, d.text) for d in rows if isinstance(d, Document)] == [("a", "good"), ("7", "x")]
    one, two, three = (f"{tmp_path}/{name}" for name in ("1.parquet", "2.parquet", "3.jsonl"))
    assert [(s.file, s.line, s.reason) for s in rows if isinstance(s, Skipped)] == [
        (one, 2, "not UTF-8 text (byte 0)"),
        (one, 3, "'text' is empty"),
        (one, 4, "'a' is the id of line 1 too"),
        (two, 2, "'id' is neither a string nor a whole number"),
        (two, 3, "'text' is missing or not a string"),
        (three, 1, "'text' is missing or not a string"),
        (three, 3, f"'7' is the id of line 1 of '{two}' too"),
    ]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{}/*.jsonl", "matches no file"),
        ("{}/broken.parquet", "cannot be read: .*[Pp]arquet"),
        ("{}/folder", "cannot be read: it is a folder, but not of a saved dataset"),
        ("{}/saved", "cannot be read: "),
        ("{}/broken.jsonl.gz", "cannot be read: "),
        ("nosuch://bucket/*.jsonl", "cannot be read: .*nosuch"),
        ("file://{}/none.jsonl", "cannot be read: No such file"),
        ("hub:{}/folder", "cannot be read: "),
    ],
)
def test_what_cannot_be_read_says_so(tmp_path: Path, place: str, message: str) -> None:
    for name in ("broken.parquet", "broken.jsonl.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8bno" * 9)
    for name in ("folder", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        found(place.format(tmp_path))


class Measured:
    """A file system of one file that counts the bytes that are read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read = data, 0

    def open(self, path: str, mode: str) -> io.BytesIO:
        outer = self

        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                outer.read += len(data)
                return data

        return File(self.data)


def test_a_table_is_read_in_parts() -> None:
    """The first rows cost about as much as a row group, not the whole file; and a column that is not wanted costs nothing."""
    texts = [os.urandom(200).hex() for _ in range(4000)]
    sink = io.BytesIO()
    parquet.write_table(
        pa.table({"text": texts, "other": texts}), sink, row_group_size=200, use_dictionary=False
    )
    system = Measured(sink.getvalue())
    rows = Parquet("t", "", "t.parquet", system).rows(["text", "id"])
    next(rows)
    first = system.read
    assert first < len(sink.getvalue()) / 4
    assert [row["text"] for _, row in rows] == texts[1:]
    assert first < system.read < len(sink.getvalue()) * 0.6


@pytest.mark.parametrize(
    ("place", "package", "name"),
    [("x.parquet", "pyarrow", "parquet"), ("saved", "datasets", "datasets"), ("hub:u/d", "datasets", "datasets")],
)  # fmt: skip
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, package: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").touch()
    Path("saved").mkdir()
    Path("saved/dataset_dict.json").touch()
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"'{package}' .* 'memwrite\[{name}\]'"):
        Documents.of(place)


def test_many_files_become_one_store(tmp_path: Path) -> None:
    """With the states that one file gives; what is skipped is told with its file; and the store is none of the files."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    words = ["write", str(config), "--batch-size", "40", "--input"]
    one, many = str(tmp_path / "one.db"), str(tmp_path / "many.db")
    assert CliRunner().invoke(main, [*words, jsonl_file(tmp_path), "--out", one]).exit_code == 0
    (tmp_path / "many").mkdir()
    place = pattern(tmp_path / "many")
    bad = tmp_path / "many" / "docs-99.jsonl"
    bad.write_text("{}\n")
    done = CliRunner().invoke(main, [*words, place, "--out", many])
    assert done.exit_code == 3
    assert done.stderr == f"{bad}, line 1: skipped: 'text' is missing or not a string\n"
    first, other = states(Path(one)), states(Path(many))
    assert first.keys() == other.keys()
    assert all(torch.equal(first[key], other[key]) for key in first)
    taken = CliRunner().invoke(main, [*words, place, "--out", str(bad)])
    assert taken.exit_code == 2
    assert "is a file of documents: name another file with --out" in taken.stderr
    parquet.write_table(pa.table({"name": ["n"], "body": ["b"]}), tmp_path / "t.parquet")
    named = [f"{tmp_path}/t.parquet", "--text-field", "body", "--id-field", "name"]
    assert CliRunner().invoke(main, [*words, *named, "--out", one]).exit_code == 0
    assert "n" in states(Path(one))
