"""Servers that end with the tests that started them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from running_server import Running, Serve, running, tiny

from memwrite import Memory


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that stop with the test; all of them in one folder."""
    with ExitStack() as stack:

        def start(models: Mapping[str, Memory] | None = None, **given: Any) -> Running:
            return stack.enter_context(running(tmp_path, models or {"tiny": tiny()}, **given))

        yield start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server that the tests of a file share."""
    models = {"tiny": tiny(), "other": tiny(seed=1)}
    with running(tmp_path_factory.mktemp("server"), models) as shared:
        yield shared
