"""Every way to migrate, on every QEMU at hand, and between them: one run for each cell, one table at the end.

A cell that can't be run here is skipped with its reason, one that breaks says how, and the others go on.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from harness.builds import resolve_qemu
from harness.errors import EnvironmentLackError, FeatureLackError, SwitchoverError, UsageError
from harness.host.deadline import Deadline
from harness.migrate.trials import TRIALS, Trial
from harness.migrate.variety import FAILURES, VARIETY
from harness.model.matrix import Cell, CellResult, CellVerdict, cell_result
from harness.model.result import RunResult
from harness.model.scenario import Scenario
from harness.run import RunOptions, run_scenario
from harness.vm.board import common_type
from harness.vm.discovery import Features, discover

__all__ = ["BETWEEN", "GROUPS", "plan_matrix", "run_matrix"]

Progress = Callable[[str], None]
Run = Callable[[Scenario], Awaitable[tuple[RunResult, Path]]]

BETWEEN: tuple[Trial, ...] = (
    Trial(name="precopy", group="versions"),
    Trial(name="precopy-handover", group="versions", mechanism="tap-handover"),
    Trial(name="postcopy", group="versions", migration={"mode": "postcopy"}),
)
"""What is tried between two QEMUs, in both directions."""
EVERYTHING = (*TRIALS, *VARIETY, *FAILURES)
_LONGEST_CELL_S = 600.0
"""Of a cell with the boots that it may need first: one that hangs is ended, and costs no more than that."""
GROUPS = tuple(dict.fromkeys(trial.group for trial in (*EVERYTHING, *BETWEEN)))


async def plan_matrix(qemus: Sequence[str], *, cache: Path, only: Sequence[str] = ()) -> list[Cell]:
    """The cells: every trial on every QEMU of `qemus`, and what is tried between each two of them, both ways.

    `only`: groups, or patterns of cells' names; empty: all. A QEMU that isn't there makes its cells skips.
    """
    known: dict[str, Features | str] = {}
    for name in qemus:
        try:
            install = await asyncio.to_thread(resolve_qemu, name, cache)
            known[name] = await discover(install, cache=cache)
        except (EnvironmentLackError, UsageError) as error:
            known[name] = f"QEMU {name} is not here: {error.message}"
    cells = [_cell(trial, name, name, known) for name in qemus for trial in EVERYTHING]
    cells += [_cell(trial, a, b, known) for a in qemus for b in qemus if a != b for trial in BETWEEN]
    wanted = [cell for cell in cells if not only or any(cell.group == word or fnmatch.fnmatchcase(cell.name, word) for word in only)]
    if not wanted:
        raise UsageError(f"no cell is called {', '.join(only)}", hint=f"give a group ({', '.join(GROUPS)}) or a pattern such as 'postcopy*'")
    return wanted


def _cell(trial: Trial, source: str, destination: str, known: dict[str, Features | str]) -> Cell:
    """One cell. Between two QEMUs the machine type is pinned to the older one's newest."""
    sides = [known[source], known[destination]]
    qemu = " -> ".join(dict.fromkeys(_named(name, side) for name, side in zip((source, destination), sides, strict=True)))
    machine = None
    skip = next((side for side in sides if isinstance(side, str)), "")
    found = [side for side in sides if isinstance(side, Features)]
    if not skip and source != destination:
        try:
            machine = common_type("q35", source=found[0], destination=found[1])
        except FeatureLackError as error:
            skip = error.message
    if not skip:
        skip = "; ".join(reason for side in found for reason in side.lacking(list(trial.requires)))
    return Cell(
        name=f"{trial.group}-{trial.name}", group=trial.group, qemu=qemu, skip=skip,
        scenario=trial.scenario(source=source, destination=destination, machine=machine),
    )  # fmt: skip


def _named(name: str, features: Features | str) -> str:
    return name if isinstance(features, str) else features.version if name == features.version else f"{name} ({features.version})"


async def run_matrix(
    cells: Sequence[Cell], *, options: RunOptions, progress: Progress, done: Callable[[list[CellResult]], None], run: Run | None = None,
    known: Sequence[CellResult] = (), until: Deadline | None = None,
) -> list[CellResult]:
    """Run the cells one after the other; `done` gets all results so far after each, so that an interrupt costs one cell.

    `known`: cells that are not run again, from an earlier part of the same matrix. After `until` no cell is begun.
    """

    async def real(scenario: Scenario) -> tuple[RunResult, Path]:
        return await run_scenario(scenario, options=options, progress=lambda _: None)

    results = {(cell.name, cell.qemu): cell for cell in known}

    def in_order() -> list[CellResult]:
        return [results[key] for cell in cells if (key := (cell.name, cell.qemu)) in results]

    for number, cell in enumerate(cells, 1):
        if (key := (cell.name, cell.qemu)) in results:
            continue
        if until is not None and until.expired:
            break
        progress(f"{number} of {len(cells)}: {cell.name}, QEMU {cell.qemu}")
        found = results[key] = await _try(cell, run or real)
        if found.verdict is not CellVerdict.PASS:
            progress(f"{cell.name}: {found.verdict}: {(found.why.splitlines() or ['no reason was given'])[0]}")
        done(in_order())
    return in_order()


async def _try(cell: Cell, run: Run) -> CellResult:
    """One cell; whatever goes wrong with it is its own affair, but for an interrupt."""
    began = time.monotonic()

    def without(verdict: CellVerdict, why: str) -> CellResult:
        return CellResult(name=cell.name, group=cell.group, qemu=cell.qemu, verdict=verdict, why=why, seconds=time.monotonic() - began)

    if cell.skip:
        return without(CellVerdict.SKIP, cell.skip)
    try:
        result, path = await Deadline(_LONGEST_CELL_S).wait(run(cell.scenario), awaited=f"the end of {cell.name}")
    except asyncio.CancelledError:
        raise
    except EnvironmentLackError as error:
        return without(CellVerdict.SKIP, error.message)
    except SwitchoverError as error:
        return without(CellVerdict.BROKE, str(error))
    except Exception as error:  # a defect of ours must not cost the cells of a night
        return without(CellVerdict.BROKE, "".join(traceback.format_exception(error)).strip())
    return cell_result(cell, result, seconds=time.monotonic() - began, run=path.name)
