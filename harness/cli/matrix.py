"""`switchover matrix`: every way to migrate, on every QEMU at hand, in one table. `ping-pong`: one guest, many migrations."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from harness.cli.waiting import run_to_end
from harness.errors import TestbedError

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
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Every way to migrate, on every QEMU at hand and between them: one run for each cell, one table.

    Ends with 1 when a cell failed, 2 when one broke, 5 when one was inconclusive. `matrix.json` is complete after every cell.
    """
    from harness.cache import cache_dir
    from harness.cli.progress import reporting
    from harness.matrix import plan_matrix, run_matrix
    from harness.model.matrix import CellResult, CellVerdict, MatrixFacts
    from harness.report.matrix import matrix_table
    from harness.run import RunOptions
    from harness.store.folders import fresh_folder, fresh_name

    cells = run_to_end(plan_matrix(qemu or _QEMUS, cache=cache_dir(), only=only or []))
    if list_cells:
        print("\n".join(f"{cell.name}  QEMU {cell.qemu}" + (f"  skipped: {cell.skip}" if cell.skip else "") for cell in cells))
        raise typer.Exit(0)
    folder = fresh_folder(results, fresh_name("matrix"))
    began = time.monotonic()

    def facts(found: list[CellResult]) -> MatrixFacts:
        return MatrixFacts(planned=len(cells), seconds=time.monotonic() - began, cells=tuple(found))

    def save(found: list[CellResult]) -> None:
        try:
            fresh = folder / ".matrix.json.new"
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(facts(found)), indent=1) + b"\n")
            fresh.replace(folder / "matrix.json")
        except OSError as error:
            raise TestbedError(f"{folder} can't be written: {error.strerror}", hint="choose another folder with --results") from error

    with reporting(quiet=json) as progress:
        options = RunOptions(results=folder, cache=cache_dir(), cold=False)
        found = run_to_end(run_matrix(cells, options=options, progress=progress, done=save))
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(facts(found)), indent=2) + b"\n")
    else:
        print(matrix_table(facts(found)))
        print(folder)
    verdicts = {cell.verdict for cell in found}
    codes = {CellVerdict.FAIL: 1, CellVerdict.BROKE: 2, CellVerdict.INCONCLUSIVE: 5}
    raise typer.Exit(next((code for verdict, code in codes.items() if verdict in verdicts), 0))


def ping_pong(
    scenario: Annotated[str, typer.Argument(help="A TOML file or the name of a shipped scenario.", metavar="SCENARIO")] = "ping-pong",
    times: Annotated[int, typer.Option("--times", min=1, help="Migrations.")] = 50,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set mechanism=tap-handover", metavar="K=V")] = None,
    results: Annotated[Path, typer.Option("--results", help="Where its folder goes.", envvar="SWITCHOVER_RESULTS")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Migrate one guest back and forth without a reboot: the distribution of every figure, and what grew meanwhile.

    Ends with 1 when a migration failed, a packet is unexplained, or descriptors, threads or processes grew.
    """
    from harness.cache import cache_dir
    from harness.cli.progress import reporting
    from harness.model.load import load_scenario
    from harness.pingpong import ping_pong as work
    from harness.report.pingpong import pingpong_table
    from harness.run import RunOptions
    from harness.store.folders import fresh_name

    loaded = load_scenario(scenario, settings=settings or [])
    folder = results / fresh_name("ping-pong")
    with reporting(quiet=json) as progress:
        found = run_to_end(work(loaded, times=times, options=RunOptions(results=folder, cache=cache_dir(), cold=False), progress=progress))
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        print(pingpong_table(found))
        print(folder)
    raise typer.Exit(1 if any(found.problems()) else 0)
