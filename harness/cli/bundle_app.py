"""The options of `switchover bundle` and `replay`; the work is done in `bundle` and `replay`."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from harness.cli.progress import reporting
from harness.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(bundle)
    app.command()(replay)


def _results(given: Path | None) -> Path:
    return given if given is not None else Path("results")


Results = Annotated[Path | None, typer.Option("--results", help="Where run directories go.", envvar="SWITCHOVER_RESULTS")]


def bundle(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    others: Annotated[list[Path] | None, typer.Argument(help="Further runs of the same scenario, to say how often it was seen.", metavar="[RUN...]")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The bundle's file, or its folder; default: RUN.tar.zst here.")] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Cut what is missed least until it fits, such as 500K or 10M.")] = None,
    mail: Annotated[bool, typer.Option("--mail", help="Print the summary for a mailing list instead; write no file.")] = False,
    minimise: Annotated[bool, typer.Option("--minimise", help="First make the scenario as small as the finding allows, by running it.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, help="With --minimise: how many smaller scenarios to try.")] = 80,
    results: Results = None,
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
    if minimise:
        _minimise(run, output=output, max_size=max_size, most=most, results=_results(results))
        return
    made, target = work(run, others=others or [], output=output, max_size=max_size)
    print(report_of(made, target))


def _minimise(run: Path, *, output: Path | None, max_size: str | None, most: int, results: Path) -> None:
    from harness.cli.replay import minimise as work
    from harness.cli.waiting import run_to_end
    from harness.model.load import dump_scenario

    with reporting() as progress:
        shrunk, target, size = work(run, output=output, max_size=max_size, most=most, results=results, progress=progress, run=run_to_end)
    print(dump_scenario(shrunk.scenario))
    spent = " (all that --most allowed)" if shrunk.spent else ""
    print(f"{target}: {size:,} bytes; {shrunk.asked} scenarios tried{spent}, {shrunk.runs} runs")
    if shrunk.run is None:
        print("nothing could be left out: the bundle is that of the run itself")


def replay(
    bundle: Annotated[Path, typer.Argument(help="What `switchover bundle` made.")],
    yes: Annotated[bool, typer.Option("--yes", help="Run it, and fetch what is missing, without asking.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Also compile the bundle's patches, in a sandbox. They are a stranger's code.")] = False,
    qemu: Annotated[str | None, typer.Option("--qemu", help="This QEMU on both sides in place of the sender's: a name or a path.")] = None,
    kernel: Annotated[Path | None, typer.Option("--kernel", help="This kernel in the guests.")] = None,
    repeat: Annotated[int | None, typer.Option("--repeat", min=1, help="Run exactly so often, whatever the runs show.")] = None,
    results: Results = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Run a bug report again, and say whether its finding shows itself here.

    Ends with 0 when it was reproduced, 1 when it was not, 5 when that can't be told (or nothing was run).
    """
    from harness.cli.replay import EXITS, json_of, replay_text
    from harness.cli.replay import replay as work
    from harness.cli.waiting import run_to_end

    with reporting(quiet=json) as progress:
        done = work(
            bundle, yes=yes, build=build, qemu=qemu, kernel=kernel, repeat=repeat, results=_results(results), progress=progress,
            quiet=json, run=run_to_end,
        )  # fmt: skip
    if done is None:
        print("nothing was run; --yes runs it", file=sys.stderr)
        raise typer.Exit(5)
    if json:
        print(jsonlib.dumps(msgspec.to_builtins(json_of(*done)), indent=2))
    else:
        print("\n" + replay_text(*done))
    raise typer.Exit(EXITS[done[0].conclusion])
