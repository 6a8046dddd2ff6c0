"""Postcopy: the three downtimes side by side, the time that vCPUs waited for pages, and what packets waited after the switchover."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tabulate import tabulate

from harness.model.result import RunResult

__all__ = ["fault_tail_us", "postcopy_table"]

_TAIL = 0.99


def fault_tail_us(distribution: Sequence[int]) -> float | None:
    """An upper bound of the 99th percentile of page waits, from QEMU's distribution (bucket N: 2^N to 2^(N+1) microseconds)."""
    total = sum(distribution)
    seen = 0
    for bucket, count in enumerate(distribution):
        seen += count
        if count and seen >= _TAIL * total:
            return float(2 ** (bucket + 1))
    return None


def postcopy_table(results: Sequence[RunResult]) -> str:
    """A line for each postcopy run and their medians; empty when there is none. A dash where this QEMU has no such figure."""
    runs = [run for run in results if run.migration is not None and run.migration.mode == "postcopy"]
    if not runs:
        return ""
    rows = [_row(run) for run in runs]
    medians = [_median([row[column] for row in rows]) for column in range(len(rows[0]))]
    names = [run.run_id for run in runs] + ["median"]
    shown = [[name, *(_shown(value) for value in row)] for name, row in zip(names, [*rows, medians], strict=True)]
    headers = [
        "run", "reported ms", "compute ms", "network ms", "total ms", "vCPU blocked ms", "faults", "fault mean us", "fault p99 us <=",
        "tail p50 ms", "tail p99 ms", "tail max ms", "after p99 ms",
    ]  # fmt: skip
    align = ["left", *["right"] * (len(headers) - 1)]
    return "postcopy:\n" + str(tabulate(shown, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _row(run: RunResult) -> list[float | None]:
    assert run.migration is not None
    told = run.migration.destination
    distribution = [int(count) for count in told.get("postcopy-latency-dist", ())]
    mean_ns = told.get("postcopy-latency")
    requests = run.migration.ram.get("postcopy-requests")
    to_guest = next((s for s in run.streams if s.direction != "from-guest"), None)
    phases = to_guest.latency_by_phase if to_guest is not None else {}
    tail, after = phases.get("postcopy-tail") or phases.get("unannounced"), phases.get("after")
    downtime = run.downtime
    return [
        downtime.reported_ms.value, downtime.compute_ms.value, downtime.network_ms.value, run.migration.total_ms,
        _number(told.get("postcopy-blocktime")), _number(sum(distribution) if distribution else requests),
        None if mean_ns is None else float(mean_ns) / 1000, fault_tail_us(distribution),
        *((None, None, None) if tail is None else (tail.p50, tail.p99, tail.max)), None if after is None else after.p99,
    ]  # fmt: skip


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.1f}"
