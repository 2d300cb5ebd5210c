"""From a command line to a running server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import uvicorn

from memwrite.cli._options import check_keeps
from memwrite.errors import ConfigError
from memwrite.memory import Memory
from memwrite.plugins.registry import registry
from memwrite.stores import Store
from memwrite_server.app import create_app
from memwrite_server.service import Service
from memwrite_server.settings import Settings
from memwrite_server.tenants import Tenants


def open_models(
    words: Sequence[str], model: str | None, writer: str | None, reader: str | None
) -> dict[str, Memory]:
    """Return what is to be served, by name.

    Args:
        words: run folders, configs, and overrides of all of them.
        model: a language model in place of run folders.
        writer: its writer.
        reader: its reader.

    Raises:
        ConfigError: there is nothing to serve, or two would have one name.
        MemwriteError: one cannot be built.
    """
    overrides = [word for word in words if "=" in word]
    runs = [word for word in words if "=" not in word]
    sources: dict[str, Any] = {}
    if model is not None:
        if runs or writer is None:
            raise ConfigError("--model needs a --writer, and stands in place of run folders")
        reader = reader or registry().reader_for(writer).name
        parts = {"writer": {"name": writer}, "reader": {"name": reader}}
        sources[Path(model).stem] = {"backbone": {"path": model}, **parts}
    for run in runs:
        name = Path(run).resolve().name.removesuffix(".yaml").removesuffix(".yml")
        if name in sources:
            raise ConfigError(f"two of the models would be called '{name}': rename one of them")
        sources[name] = run
    if not sources:
        raise ConfigError("give run folders or configs to serve, or a language model with --model")
    models = {name: Memory.from_config(source, overrides) for name, source in sources.items()}
    for name, memory in models.items():
        check_keeps(memory)
        if memory.caveat:
            click.echo(f"Note: {name}: {memory.caveat}.", err=True)
    return models


def run(
    models: dict[str, Memory],
    place: str,
    tenants: Tenants,
    settings: Settings,
    host: str,
    port: int,
) -> None:
    """Serve until the process is told to stop; what is under way is finished first.

    Raises:
        ConfigError: the port cannot be had.
        StorageError: the store cannot be used.
    """
    with Store(place) as store:
        app = create_app(Service(models, store, tenants, settings))
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=int(settings.seconds) + 1,
            server_header=False,
        )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(f"{host}:{port} cannot be listened on: {error.strerror}") from None
        shown = f"[{host}]" if ":" in host else host
        click.echo(
            f"Serving {', '.join(models)} at http://{shown}:{listening.getsockname()[1]}", err=True
        )
        # uvicorn stops in order, and then hands the signal on, which would end the process in the middle.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run([listening])
