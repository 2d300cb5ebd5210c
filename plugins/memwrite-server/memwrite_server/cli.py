"""`memwrite serve`: memories over HTTP, and `memwrite serve-token`: a token for one tenant."""

from __future__ import annotations

from pathlib import Path

import click

from memwrite.errors import ConfigError


@click.command()
@click.argument("words", nargs=-1, metavar="[RUNS]... [OVERRIDES]...")
@click.option("--model", help="In place of RUNS: a model's folder, a GGUF file, smollm2-135m, ...")
@click.option("--writer", help="With --model: its name; `memwrite plugins` lists them.")
@click.option("--reader", help="With --model: by default the first that reads its states.")
@click.option("--store", "place", required=True, help="Where memories are kept: a file or a URL.")
@click.option("--tokens", help="File of tenants' tokens; `memwrite serve-token` makes them.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--seconds", default=120.0, show_default=True, help="That a request may take.")
@click.option("--body", default=1 << 20, show_default=True, help="Bytes of a request's body.")
@click.option(
    "--batch", default=16, show_default=True, type=click.IntRange(1), help="Answers at once."
)
@click.option(
    "--waiting",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Requests under way, over all tenants.",
)
@click.option(
    "--each", type=click.IntRange(1), help="Of them, those of one tenant; by default half."
)
def serve(
    words: tuple[str, ...],
    model: str | None,
    writer: str | None,
    reader: str | None,
    place: str,
    tokens: str | None,
    host: str,
    port: int,
    seconds: float,
    body: int,
    batch: int,
    waiting: int,
    each: int | None,
) -> None:
    """Serve the memories of RUNS, run folders or configs, over HTTP in OpenAI's shape.

    Each is a model that clients name by its folder or file. OVERRIDES, as in backbone.device=cuda, change all of them.
    Without --tokens everybody on this machine is one tenant, and no other machine is answered.
    """
    from memwrite_server.serving import open_models, run
    from memwrite_server.settings import Settings
    from memwrite_server.tenants import Tenants

    if tokens is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"a server that other machines reach ({host}) needs tokens: make one with "
            f"`memwrite serve-token NAME --tokens FILE`, and give --tokens FILE"
        )
    known = Tenants([]) if tokens is None else Tenants.from_file(Path(tokens))
    settings = Settings(
        body=body,
        seconds=seconds,
        batch=batch,
        waiting=waiting,
        each=each or max(1, waiting // 2),
    )
    models = open_models(words, model, writer, reader)
    run(models, place, known, settings, host, port)


@click.command("serve-token")
@click.argument("name")
@click.option("--tokens", required=True, help="File of tenants' tokens, made where it is missing.")
def serve_token(name: str, tokens: str) -> None:
    """Print a new token of the tenant NAME, and append its hash to the file of tokens."""
    from memwrite_server.tenants import new_token

    click.echo(new_token(name, Path(tokens)))
