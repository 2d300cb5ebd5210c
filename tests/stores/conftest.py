"""A place for a store, of every kind in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import PLACES


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return PLACES[request.param](tmp_path)
