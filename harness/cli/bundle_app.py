"""The options of `switchover bundle` and `replay`; the work is done in `bundle` and `replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(bundle)


def bundle(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    others: Annotated[list[Path] | None, typer.Argument(help="Further runs of the same scenario, to say how often it was seen.", metavar="[RUN...]")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The bundle's file, or its folder; default: RUN.tar.zst here.")] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Cut what is missed least until it fits, such as 500K or 10M.")] = None,
    mail: Annotated[bool, typer.Option("--mail", help="Print the summary for a mailing list instead; write no file.")] = False,
) -> None:
    """Pack a run into one archive that anyone can open safely and run again."""
    from harness.cli.bundle import bundle as work
    from harness.cli.bundle import mail as text
    from harness.cli.bundle import report_of

    if mail:
        if output is not None or max_size is not None:
            raise UsageError("--mail prints a text and writes no bundle", hint="leave out --output and --max-size, or make the bundle by a second call")
        print(text(run, others=others or []), end="")
        return
    made, target = work(run, others=others or [], output=output, max_size=max_size)
    print(report_of(made, target))
