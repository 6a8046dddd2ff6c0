"""`switchover bisect`: which commit made a figure worse."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from harness.cache import cache_dir
from harness.cli.progress import reporting
from harness.errors import UsageError

__all__ = ["register"]

EXIT_INCONCLUSIVE = 5


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(bisect)
    app.command("bisect-step", hidden=True)(bisect_step)


def bisect(
    tree: Annotated[Path | None, typer.Argument(help="A git checkout of QEMU (or of a kernel, with --build and --kernel). It is only read.")] = None,
    good: Annotated[str | None, typer.Option("--good", help="A commit, branch or tag that is all right.", metavar="REV")] = None,
    bad: Annotated[str, typer.Option("--bad", help="A later one that is not.", metavar="REV")] = "HEAD",
    scenario: Annotated[str, typer.Option("--scenario", help="What is run: a TOML file, or a shipped scenario.")] = "udp-none",
    metric: Annotated[str, typer.Option("--metric", help="The reading that got worse; `list --json` shows them all.", metavar="NAME")] = "network_ms",
    above: Annotated[float | None, typer.Option("--above", help="What counts as bad (half-way between the ends unless given).", metavar="VALUE")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key of the scenario.", metavar="K=V")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=4, help="Runs of each end, by turns.")] = 6,
    most: Annotated[int, typer.Option("--most", min=3, help="After so many runs without an answer a commit is skipped.")] = 30,
    build: Annotated[str | None, typer.Option("--build", help="How a kernel tree is built: a shell command, run in a clone.", metavar="COMMAND")] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", help="The bzImage that --build leaves, relative to the tree.", metavar="FILE")] = None,
    again: Annotated[
        Path | None, typer.Option("--resume", help="Go on with a bisection that was cut short; all else stands in its folder.", metavar="FOLDER")
    ] = None,
    results: Annotated[Path | None, typer.Option("--results", help="Where the runs go.", envvar="SWITCHOVER_RESULTS")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Find the commit that made a figure worse. Exit 5: the ends don't differ, or only commits are left that can't be judged."""
    from harness.bisect import begin, bisection_text, close, measure_ends, narrow, no_difference_text, resume
    from harness.run import RunOptions

    if again is not None:
        if tree is not None or good is not None:
            raise UsageError("--resume takes the tree and its ends from the folder", hint="leave TREE and --good out")
        folder, facts = resume(again)
    elif tree is None or good is None:
        raise UsageError("a bisection needs a tree and a good commit", hint="switchover bisect TREE --good REV, or --resume FOLDER")
    else:
        folder, facts = begin(
            tree, results=results or Path("results"), good=good, bad=bad, scenario=scenario, metric=metric, settings=settings or [], repeat=repeat,
            most=most, threshold=above, build=build, kernel=kernel,
        )  # fmt: skip
    options = RunOptions(results=folder.path, cache=cache_dir())
    finding = None
    try:
        if facts.boundary is None:
            with reporting(quiet=json) as progress:
                facts, finding = asyncio.run(measure_ends(folder, facts, options=options, progress=progress))
        if facts.boundary is not None:
            words = [sys.executable, "-m", "harness.cli", "bisect-step", str(folder.path), *(["--quiet"] if json else [])]
            facts = narrow(folder, facts, step=words)
    finally:
        close(folder, options=options)
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode({"folder": str(folder.path), **msgspec.to_builtins(facts)}), indent=2) + b"\n")
    else:
        print(no_difference_text(facts, finding) if facts.boundary is None and finding is not None else bisection_text(folder, facts))
    raise typer.Exit(0 if len(facts.culprits) == 1 else EXIT_INCONCLUSIVE)


def bisect_step(
    folder: Annotated[Path, typer.Argument(help="The folder of a bisection.")],
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """What `git bisect run` calls for each commit."""
    from harness.bisect import BisectFolder, step
    from harness.run import RunOptions

    with reporting(quiet=quiet) as progress:
        code = step(BisectFolder(folder), options=RunOptions(results=folder, cache=cache_dir()), progress=progress)
    raise typer.Exit(code)
