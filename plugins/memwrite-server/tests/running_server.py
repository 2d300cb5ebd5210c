"""Servers in this process, on free ports, around tiny random models."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from memwrite_server.app import create_app
from memwrite_server.service import Service
from memwrite_server.settings import Settings
from memwrite_server.tenants import Tenants, new_token
from memwrite_specs.testing import MODELS
from openai import OpenAI

from memwrite import Memory
from memwrite.stores import Store

PARAMS = {**MODELS["llama"]["params"], "max_position_embeddings": 512}
#: In float64, so that a batch chooses as a lone row does.
MODEL = {"type": "llama", "params": PARAMS, "dtype": "float64"}
WRITER = {"name": "forward", "params": {"slots": 4}}


def tiny(writer: Mapping[str, Any] = WRITER, reader: str = "prefix", seed: int = 0) -> Memory:
    """A memory around a tiny random model."""
    parts = {"writer": dict(writer), "reader": {"name": reader}}
    return Memory.from_config({"backbone": MODEL, **parts, "seed": seed})


@dataclass
class Running:
    """A server that runs, and clients for it."""

    url: str
    service: Service
    tokens: Mapping[str, str]

    def openai(self, tenant: str = "ava", **options: Any) -> OpenAI:
        token = self.tokens.get(tenant, "none")
        options = {"max_retries": 0, **options}
        return OpenAI(base_url=f"{self.url}/v1", api_key=token, **options)

    def http(self, tenant: str = "ava") -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.tokens.get(tenant, 'none')}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def running(
    folder: Path,
    models: Mapping[str, Memory],
    settings: Settings | None = None,
    tenants: tuple[str, ...] = ("ava", "ben"),
) -> Iterator[Running]:
    """Serve models from a store in `folder`."""
    file = folder / "tokens.txt"
    tokens = {name: new_token(name, file) for name in tenants}
    known = Tenants.from_file(file) if tenants else Tenants([])
    with Store(folder / "memories.db") as store:
        service = Service(models, store, known, settings)
        config = uvicorn.Config(create_app(service), log_level="warning")
        server = uvicorn.Server(config)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", service, tokens)
        finally:
            server.should_exit = True
            thread.join()


#: The fixture `serve`: starts servers that stop with the test.
Serve = Callable[..., Running]
