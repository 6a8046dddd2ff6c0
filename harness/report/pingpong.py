"""The table of a ping-pong: the distribution of every figure, and what grew."""

from __future__ import annotations

import numpy as np
from tabulate import tabulate

from harness.model.pingpong import FIGURES, RESOURCES, PingPong

__all__ = ["pingpong_table"]


def pingpong_table(found: PingPong) -> str:
    """Least, median, 95th percentile and most of each figure; the first and last reading of what may grow."""
    rows = []
    for name in FIGURES:
        values = found.column(name)
        shown = [f"{value:.1f}" for value in (min(values), np.median(values), np.percentile(values, 95), max(values))] if values else ["-"] * 4
        rows.append([name, str(len(values)), *shown])
    table = tabulate(rows, headers=["figure", "n", "min", "median", "p95", "max"], tablefmt="simple", disable_numparse=True,
                     colalign=["left", *["right"] * 5])  # fmt: skip
    growth = found.growth()
    held = [[name, *(f"{value:.0f}" for value in (found.column(name)[0], found.column(name)[-1], growth[name]))] for name in RESOURCES]
    resources = tabulate(held, headers=["harness", "first", "last", "grown since the fifth"], tablefmt="simple", disable_numparse=True,
                         colalign=["left", *["right"] * 3])  # fmt: skip
    problems = "\n".join(found.problems())
    return f"{table}\n\n{resources}\n\n{problems or f'{len(found.rounds)} migrations, every packet accounted for, nothing grew'}"
