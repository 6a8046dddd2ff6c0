"""`switchover matrix`: every way to migrate, on every QEMU at hand, in one table. `ping-pong`: one guest, many migrations."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from harness.cli.nesting import HostKernel, run_inside, the_only
from harness.cli.waiting import run_to_end
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.model.matrix import MatrixFacts
    from harness.model.pingpong import PingPong

__all__ = ["register"]

_QEMUS = ["system", "10.0", "11.1", "reference"]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("matrix")(matrix)
    app.command("ping-pong")(ping_pong)


def matrix(
    only: Annotated[list[str] | None, typer.Argument(help="Groups, or patterns of cells such as 'postcopy*'.", metavar="[CELL...]")] = None,
    qemu: Annotated[list[str] | None, typer.Option("--qemu", help="A QEMU to run on; more than one: between them too.")] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="Run nothing: say what the cells are.")] = False,
    results: Annotated[Path, typer.Option("--results", help="Where the matrix's folder goes.", envvar="SWITCHOVER_RESULTS")] = Path("results"),
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the matrix in this folder.", metavar="FOLDER")] = None,
    again: Annotated[bool, typer.Option("--again", help="With --resume: run again what failed, broke or was inconclusive.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0, help="Begin no cell after so many minutes; --resume does the rest.")] = None,
    host_kernel: HostKernel = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Every way to migrate, on every QEMU at hand and between them: one run for each cell, one table.

    Ends with 1 when a cell failed, 2 when one broke, 5 when one was inconclusive or not reached. `matrix.json` is complete after every
    cell: whatever ended a matrix, `--resume` goes on behind the last one.
    """
    from harness.cache import cache_dir
    from harness.cli.progress import reporting
    from harness.host.deadline import PATIENCE, Deadline
    from harness.matrix import plan_matrix, run_matrix
    from harness.model.matrix import UNSETTLED, CellResult, MatrixFacts
    from harness.run import RunOptions
    from harness.store.folders import fresh_folder, fresh_name
    from harness.store.matrices import read_matrix, write_matrix

    if resume is not None and (only or qemu):
        raise UsageError("a matrix goes on with the cells it began with", hint="leave the cells and --qemu out")
    if again and resume is None:
        raise UsageError("there is nothing yet to be run again", hint="add --resume FOLDER")
    before = None if resume is None else read_matrix(resume)
    qemus, words = (tuple(qemu or _QEMUS), tuple(only or ())) if before is None else (before.qemus, before.only)
    cells = run_to_end(plan_matrix(qemus, cache=cache_dir(), only=words))
    if list_cells:
        print("\n".join(f"{cell.name}  QEMU {cell.qemu}" + (f"  skipped: {cell.skip}" if cell.skip else "") for cell in cells))
        raise typer.Exit(0)
    if host_kernel is not None:
        arguments = ["matrix", *words, *(word for name in qemus for word in ("--qemu", name))]
        if resume is not None:
            arguments = ["matrix", "--resume", str(resume.absolute()), *(["--again"] if again else [])]
        arguments += ["--minutes", f"{minutes:g}"] if minutes is not None else []
        with reporting(quiet=json) as progress:
            _, folders = run_inside(
                arguments, scenarios=[cell.scenario for cell in cells if not cell.skip], host_kernel=host_kernel,
                results=results if resume is None else resume.absolute().parent, progress=progress, into=resume,
            )  # fmt: skip
        folder = the_only(folders, "matrix.json")
        _show(read_matrix(folder), folder=folder, json=json)
    folder = resume if resume is not None else fresh_folder(results, fresh_name("matrix"))
    known = [cell for cell in (before.cells if before is not None else ()) if not (again and cell.verdict in UNSETTLED)]
    earlier_s, began = before.seconds if before is not None else 0.0, time.monotonic()

    def facts(found: list[CellResult]) -> MatrixFacts:
        seconds = earlier_s + time.monotonic() - began
        return MatrixFacts(planned=len(cells), seconds=seconds, cells=tuple(found), qemus=qemus, only=words)

    with reporting(quiet=json) as progress:
        progress(f"{len(cells)} cells, {len(known)} of them known; they go to {folder}")
        work = run_matrix(
            cells, options=RunOptions(results=folder, cache=cache_dir(), cold=False), progress=progress,
            done=lambda found: write_matrix(folder, facts(found)), known=known, until=None if minutes is None else Deadline(60 * minutes / PATIENCE),  # the user's minutes, wherever
        )  # fmt: skip
        found = run_to_end(work)
    _show(facts(found), folder=folder, json=json)


def _show(found: MatrixFacts, *, folder: Path, json: bool) -> NoReturn:
    """Print a matrix, and end with the status that it asks for."""
    from harness.model.matrix import CellVerdict
    from harness.report.matrix import matrix_table

    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        print(matrix_table(found))
        print(folder)
    verdicts = {cell.verdict for cell in found.cells}
    codes = {CellVerdict.FAIL: 1, CellVerdict.BROKE: 2, CellVerdict.INCONCLUSIVE: 5}
    raise typer.Exit(next((code for verdict, code in codes.items() if verdict in verdicts), 0 if len(found.cells) == found.planned else 5))


def ping_pong(
    scenario: Annotated[str, typer.Argument(help="A TOML file or the name of a shipped scenario.", metavar="SCENARIO")] = "ping-pong",
    times: Annotated[int, typer.Option("--times", min=1, help="Migrations.")] = 50,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set mechanism=tap-handover", metavar="K=V")] = None,
    host_kernel: HostKernel = None,
    results: Annotated[Path, typer.Option("--results", help="Where its folder goes.", envvar="SWITCHOVER_RESULTS")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Migrate one guest back and forth without a reboot: the distribution of every figure, and what grew meanwhile.

    Ends with 1 when a migration failed, a packet is unexplained, or descriptors, threads or processes grew.
    """
    from harness.cache import cache_dir
    from harness.cli.progress import reporting
    from harness.model.load import load_scenario
    from harness.pingpong import PINGPONG_FILE, read_ping_pong
    from harness.pingpong import ping_pong as work
    from harness.run import RunOptions
    from harness.store.folders import fresh_name

    loaded = load_scenario(scenario, settings=settings or [])
    folder = results / fresh_name("ping-pong")
    if host_kernel is not None:
        with reporting(quiet=json) as progress:
            _, folders = run_inside(
                ["ping-pong", scenario, "--times", str(times)], settings=settings, scenarios=[loaded], host_kernel=host_kernel, results=results,
                progress=progress,
            )  # fmt: skip
        folder = the_only(folders, PINGPONG_FILE)
        _show_ping_pong(read_ping_pong(folder), folder=folder, json=json)
    with reporting(quiet=json) as progress:
        found = run_to_end(work(loaded, times=times, options=RunOptions(results=folder, cache=cache_dir(), cold=False), progress=progress))
    _show_ping_pong(found, folder=folder, json=json)


def _show_ping_pong(found: PingPong, *, folder: Path, json: bool) -> NoReturn:
    """Print what came of it, and end with the status that it asks for."""
    from harness.report.pingpong import pingpong_table

    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        print(pingpong_table(found))
        print(folder)
    raise typer.Exit(1 if any(found.problems()) else 0)
