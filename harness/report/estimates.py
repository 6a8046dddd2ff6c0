"""Published estimators side by side, as text."""

from __future__ import annotations

from tabulate import tabulate

from harness.analysis.estimators import Estimates

__all__ = ["estimates_table"]


def estimates_table(found: Estimates) -> str:
    kept = "-" if found.kept_interval_ns is None else f"{found.kept_interval_ns / 1e6:.3f} ms"
    head = f"{found.sent} requests, {found.lost} without a reply; interval {found.interval_ns / 1e6:g} ms, kept {kept} (median)"
    rows = [
        [each.name, each.used_by, "no value" if each.downtime_ns is None else f"{each.downtime_ns / 1e6:.3f}", each.formula]
        for each in found.estimates
    ]
    align = ["left", "left", "right", "left"]
    table = tabulate(rows, headers=["estimator", "used by", "downtime ms", "formula"], tablefmt="simple", disable_numparse=True, colalign=align)
    return f"{head}\n\n{table}"
