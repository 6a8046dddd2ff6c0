"""The options of `switchover report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories or bundles.", metavar="RUN...")],
    output: Annotated[Path | None, typer.Option("--output", help="Write it to this file.")] = None,
) -> None:
    """Everything about a run as plain text, from its folder or from a bundle, which stays closed."""
    from harness.cli.reporting import text_of, written

    text = "\n\n\n".join(text_of(run) for run in runs) + "\n"
    if output is None:
        print(text, end="")
    else:
        written(text, output)
