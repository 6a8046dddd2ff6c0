"""A matrix of migrations: its cells, what became of each, and the file that holds them (`matrix.json`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from harness.model.result import RunResult, Verdict
from harness.model.scenario import Direction, Scenario

__all__ = ["UNSETTLED", "Cell", "CellResult", "CellVerdict", "MatrixFacts", "cell_result"]


class CellVerdict(StrEnum):
    """`skip`: this environment lacks something. `broke`: the testbed did, or the plan can't work at all."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIP = "skip"
    BROKE = "broke"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment of a matrix. With a `skip` it is not run, for that reason."""

    name: str
    group: str
    qemu: str
    scenario: Scenario
    skip: str = ""


UNSETTLED = frozenset({CellVerdict.FAIL, CellVerdict.INCONCLUSIVE, CellVerdict.BROKE})
"""Verdicts of cells that may be worth another run."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a cell: times in milliseconds, None where there is none. `why`: for every verdict but `pass`."""

    name: str
    group: str
    qemu: str
    verdict: CellVerdict
    why: str = ""
    lost_to_guest: int | None = None
    lost_from_guest: int | None = None
    unexplained: int | None = None
    compute_ms: float | None = None
    network_ms: float | None = None
    reported_ms: float | None = None
    seconds: float = 0.0
    run: str | None = None


class MatrixFacts(msgspec.Struct, frozen=True, kw_only=True):
    """matrix.json. `planned`: how many cells there are to be; fewer are there when it was interrupted.

    `qemus`, `only`: what was asked for, so that it can go on.
    """

    schema_version: Literal[1] = 1
    planned: int
    seconds: float
    cells: tuple[CellResult, ...]
    qemus: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


_VERDICTS = {Verdict.PASS: CellVerdict.PASS, Verdict.FAIL: CellVerdict.FAIL, Verdict.INCONCLUSIVE: CellVerdict.INCONCLUSIVE}


def cell_result(cell: Cell, result: RunResult, *, seconds: float, run: str) -> CellResult:
    """A cell's line, from its run."""

    def lost(direction: Direction) -> int | None:
        streams = [stream for stream in result.streams if stream.direction == direction]
        return sum(stream.lost for stream in streams) if streams else None

    verdict = _VERDICTS.get(result.verdict, CellVerdict.BROKE)
    return CellResult(
        name=cell.name, group=cell.group, qemu=cell.qemu, verdict=verdict, seconds=seconds, run=run,
        why="" if verdict is CellVerdict.PASS else "; ".join((*result.expectations, *result.notes)) or f"verdict {result.verdict}",
        lost_to_guest=lost(Direction.TO_GUEST), lost_from_guest=lost(Direction.FROM_GUEST),
        unexplained=sum(stream.ledger.unexplained for stream in result.streams),
        compute_ms=result.downtime.compute_ms.value, network_ms=result.downtime.network_ms.value,
        reported_ms=result.downtime.reported_ms.value,
    )  # fmt: skip
