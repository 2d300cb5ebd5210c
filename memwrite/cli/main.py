"""Entry point: the group of commands, and the one place that turns errors into sentences."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import EntryPoint
from typing import Any

import click

import memwrite
from memwrite.errors import MemwriteError
from memwrite.utils.entry_points import installed
from memwrite.utils.progress import show_progress


class _Group(click.Group):
    """Bad input ends with one sentence on standard error and exit code 2; a bug with another and code 1.

    Installed packages may bring further commands: entry points of the group "memwrite.commands", where the
    allowlist (`MEMWRITE_PLUGINS`) has them. They are loaded when they are called.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_installed_commands()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        own = super().get_command(ctx, name)
        if own is not None or name not in _installed_commands():
            return own
        try:
            command: click.Command = _installed_commands()[name].load()
        except Exception as error:
            return _broken(name, error)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        was, warnings.formatwarning = warnings.formatwarning, _sentence
        try:
            with show_progress():
                return super().invoke(ctx)
        except MemwriteError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except BrokenPipeError:
            # Whoever reads our output has seen enough, as `head` does; nothing is left to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if os.environ.get("MEMWRITE_DEBUG") == "1":
                raise
            click.echo(
                f"Error: unexpected {type(error).__name__}: {' '.join(str(error).split())} "
                f"(MEMWRITE_DEBUG=1 shows the traceback)",
                err=True,
            )
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        finally:
            warnings.formatwarning = was


def _broken(name: str, error: Exception) -> click.Command:
    """Return a stand-in for a command that could not be loaded, which raises its error when it is called."""
    sentence = f"the command '{name}' could not be loaded: {type(error).__name__}: {error}"

    def fail(**_: object) -> None:
        raise click.ClickException(" ".join(sentence.split()))

    anything = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True}
    return click.Command(
        name, settings, fail, [anything], short_help="(broken)", add_help_option=False
    )


def _installed_commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in installed("memwrite.commands")[0]}


def _sentence(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning for people, without the place in the code."""
    return f"Warning: {message}\n"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(memwrite.__version__)
def main() -> None:
    """Write a context once into a small state, throw the context away, read answers from the state."""


def _register() -> None:
    from memwrite.cli.ask import ask, recall
    from memwrite.cli.audit import audit
    from memwrite.cli.chat import chat
    from memwrite.cli.demo import demo
    from memwrite.cli.eval import evaluate
    from memwrite.cli.forget import forget
    from memwrite.cli.imports import export, import_
    from memwrite.cli.plugins import plugins
    from memwrite.cli.push import push
    from memwrite.cli.store import store
    from memwrite.cli.train import train
    from memwrite.cli.write import write

    for command in (
        write,
        forget,
        recall,
        ask,
        chat,
        plugins,
        push,
        train,
        evaluate,
        import_,
        export,
        demo,
        store,
        audit,
    ):
        main.add_command(command)


_register()
