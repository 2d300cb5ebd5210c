"""A store in a bucket, on a real server of the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from moto.server import ThreadedMotoServer
from stored import MEMORY, PLACES, Stored, some
from test_copying import FEW, content, filled

from memwrite.errors import StorageError
from memwrite.stores import Store
from memwrite.stores.copying import copy_store
from memwrite.stores.documents import Document, Documents


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[None]:
    """A server on a free port, found as one finds any other that is not Amazon's."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setitem(PLACES, "s3", lambda folder: f"s3://memories{folder}/store")
        yield
    server.stop()


def test_a_bucket_is_a_dictionary_that_lasts() -> None:
    machine: Any = type("InBucket", (Stored,), {"kind": "s3"})
    case = machine.TestCase
    case.settings = settings(max_examples=2, stateful_step_count=10, deadline=None)
    case("runTest").runTest()


def test_there_and_back(tmp_path: Path) -> None:
    first, other, back = str(tmp_path / "1.db"), PLACES["s3"](tmp_path), str(tmp_path / "2.db")
    filled(first, FEW)
    assert copy_store(first, other).copied == 3
    assert copy_store(first, other).already == 3
    copy_store(other, back)
    assert content(first) == content(other) == content(back)


def test_nothing_is_there_once_it_is_deleted(tmp_path: Path) -> None:
    with Store(PLACES["s3"](tmp_path)) as store:
        assert [*store.list()] == []
        assert store.size().nbytes == 0
        assert store.delete("a") == 0
        for number in range(3):
            store.put("a", MEMORY, some(number), keep=2)
        store.rollback("a")
        assert torch.equal(store.get("a", MEMORY)["memory"], some(1)["memory"])
        assert store.delete("a") == 1
        assert store.size().nbytes == 0
        with pytest.raises(StorageError, match="holds nothing"):
            store.get("a", MEMORY)


def test_a_bucket_without_a_store_is_none() -> None:
    with pytest.raises(StorageError, match="there is no store at 's3://nowhere/store'"):
        Store("s3://nowhere/store", make=False)


def test_documents_come_out_of_a_bucket(tmp_path: Path) -> None:
    """Of many files, by a pattern."""
    import s3fs

    system = s3fs.S3FileSystem()
    for name in ("b.jsonl", "a.jsonl", "other.txt"):
        system.pipe_file(f"memories{tmp_path}/docs/{name}", f'{{"text": "{name}"}}\n'.encode())
    documents = [*Documents.of(f"s3://memories{tmp_path}/docs/*.jsonl").read()]
    assert [(d.key, d.text) for d in documents if isinstance(d, Document)] == [
        ("a.jsonl:1", "a.jsonl"),
        ("b.jsonl:1", "b.jsonl"),
    ]
    assert documents[0].file == f"s3://memories{tmp_path}/docs/a.jsonl"
