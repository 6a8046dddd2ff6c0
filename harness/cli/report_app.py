"""The options of `switchover report`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["html_report", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, campaign directories, or bundles.", metavar="RUN...")],
    text: Annotated[bool, typer.Option("--text", help="Plain text on standard output instead: single runs and bundles.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="The file to write (HTML: beside the first run, with its name, unless given).", metavar="FILE")
    ] = None,
) -> None:
    """Runs as one HTML file with everything in it: charts, tables, links to the raw files. Bundles stay closed."""
    if not text:
        print(html_report(runs, output=output))
        return
    from harness.cli.reporting import text_of, written

    words = "\n\n\n".join(text_of(run) for run in runs) + "\n"
    if output is None:
        print(words, end="")
    else:
        written(words, output)


def html_report(runs: list[Path], *, output: Path | None = None) -> Path:
    """Write the page; where it is."""
    from harness.bundle import open_run
    from harness.cli.reporting import written
    from harness.report.html import Source, render
    from harness.store.campaigns import campaign_of, run_folders
    from harness.store.rundir import RunDirectory

    target = output or runs[0].parent / f"{runs[0].name.removesuffix('.tar.zst').removesuffix('.html')}.html"
    title = runs[0].name if len(runs) == 1 else ""
    runs = run_folders(runs)
    folders = [path for path in runs if path.is_dir()]
    with contextlib.ExitStack() as stack:
        campaign = campaign_of(folders) if folders else None
        sources = [
            Source(run=RunDirectory.open(Path(trial.directory)), path=Path(trial.directory))
            for arm in (campaign.arms if campaign else ()) for trial in arm.trials if trial.directory and trial.result is not None
        ]  # fmt: skip
        for path in runs:
            if path not in folders:
                sources.append(Source(run=stack.enter_context(open_run(path)), path=path, bundled=True))
        compared = campaign if campaign is not None and len(campaign.runs) > 1 else None
        page = render(sorted(sources, key=lambda source: source.run.run_id), output=target, campaign=compared, title=title if len(sources) > 1 else "")
    written(page, target)
    return target
