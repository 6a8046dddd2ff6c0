"""The table of a matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from harness.model.matrix import CellResult, CellVerdict, MatrixFacts

__all__ = ["matrix_table"]

_LONGEST_REASON = 110


def matrix_table(facts: MatrixFacts) -> str:
    """A line for each cell, and what they come to; no field is empty: what was not measured is a dash, what was not run has a reason."""
    rows = [_row(cell) for cell in facts.cells]
    headers = ["cell", "QEMU", "verdict", "lost to guest", "lost from guest", "compute ms", "network ms", "reported ms", "s", "why"]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=["left"] * 3 + ["right"] * 6 + ["left"])
    return f"{table}\n\n{_summary(facts)}"


def _row(cell: CellResult) -> Sequence[str]:
    why = " ".join(cell.why.split()) or "-"
    if len(why) > _LONGEST_REASON:
        why = why[: _LONGEST_REASON - 3] + "..."
    lost = [_count(cell.lost_to_guest), _count(cell.lost_from_guest)]
    times = [_ms(each) for each in (cell.compute_ms, cell.network_ms, cell.reported_ms)]
    return [cell.name, cell.qemu, cell.verdict, *lost, *times, f"{cell.seconds:.1f}", why]


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _summary(facts: MatrixFacts) -> str:
    counts = Counter(cell.verdict for cell in facts.cells)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in CellVerdict if counts[verdict])
    missing = f", {facts.planned - len(facts.cells)} not reached" if facts.planned > len(facts.cells) else ""
    unexplained = sum(cell.unexplained or 0 for cell in facts.cells)
    return f"{len(facts.cells)} cells in {facts.seconds / 60:.1f} min: {parts}{missing}; packets unexplained: {unexplained}"
