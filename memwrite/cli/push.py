"""`memwrite push`: a run folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--branch", help="To push to; by default main.")
@click.option("--pull-request", is_flag=True, help="Open one, in place of a commit.")
@click.option("--license", "terms", help="For the model card, as in apache-2.0.")
def push(
    run: str,
    repository: str,
    private: bool,
    branch: str | None,
    pull_request: bool,
    terms: str | None,
) -> None:
    """Push the run folder RUN to the Hugging Face hub, with a model card made from its own record.

    Log in with `hf auth login` before. `Memory.from_pretrained("USER/NAME")` opens it anywhere.
    """
    from memwrite.errors import StorageError
    from memwrite.memory import Memory

    memory = Memory.from_pretrained(Path(run))
    try:
        url = memory.push_to_hub(
            repository,
            private=private or None,
            branch=branch,
            create_pr=pull_request or None,
            model_card_kwargs={} if terms is None else {"license": terms},
        )
    except Exception as error:  # of every kind, from a wrong name to a lost connection
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StorageError(f"'{run}' could not be pushed to '{repository}': {reason}") from None
    click.echo(url)
