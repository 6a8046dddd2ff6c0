"""A comparison for a terminal or a mail."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from tabulate import tabulate

from harness.analysis.comparison import ArmSummary, Comparison, MetricDifference, MetricSummary
from harness.analysis.metrics import MAIN, Unit
from harness.errors import UsageError

__all__ = ["comparison_table"]

_TITLES = {
    "lost": "lost", "duplicated": "dup", "reordered": "reord", "unexplained": "unexplained", "compute_ms": "compute ms",
    "network_ms": "network ms", "reported_ms": "reported ms", "tcp_stall_ms": "TCP stall ms",
}  # fmt: skip


def comparison_table(comparison: Comparison, *, metrics: Sequence[str] = ()) -> str:
    """Each arm's medians with 95 % intervals (counts: median and extremes), then the differences to the first arm.

    `metrics` are names of readings, or patterns (`figures.virtio_net_*`), in place of the main ones. `UsageError` for one that no run has.
    """
    if not comparison.arms:
        return "\n".join(["no run was finished", *comparison.notes])
    known = list(dict.fromkeys(name for arm in comparison.arms for name in arm.metrics))
    for wanted in metrics:
        if not any(fnmatchcase(name, wanted) for name in known):
            near = get_close_matches(wanted, known, n=1)
            raise UsageError(f"no run has a reading {wanted!r}", hint=f"did you mean {near[0]!r}?" if near else "--json shows all readings")
    shown = [name for name in known if any(fnmatchcase(name, wanted) for wanted in metrics)] or [n for n in MAIN if n in known]
    rows = [
        [arm.label, str(arm.runs), *(_cell(arm.metrics.get(name)) for name in shown), _remarks(arm)]
        for arm in comparison.arms
    ]
    headers = ["arm", "n", *(_title(name) for name in shown), ""]
    align = ["left", *["right"] * (len(shown) + 1), "left"]
    parts = [tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align)]
    changes = [each for each in comparison.differences if each.metric in shown]
    if changes:
        how = "round by round" if changes[0].paired else "of all pairs"
        lines = [[c.b, _title(c.metric), _interval(c), _share(c.relative), _p(c), c.change, c.why] for c in changes]
        heads = [f"against {comparison.arms[0].label}", "", f"difference {how}", "", "p", "", ""]
        parts.append(tabulate(lines, headers=heads, tablefmt="simple", disable_numparse=True))
    parts += [f"note: {note}" for note in comparison.notes]
    return "\n\n".join(parts)


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.removeprefix("figures.").replace("_", " "))


def _remarks(arm: ArmSummary) -> str:
    remarks = []
    if arm.failed:
        remarks.append(f"{arm.failed} failed")
    if arm.inconclusive:
        remarks.append(f"{arm.inconclusive} INCONCLUSIVE")
    return ", ".join(remarks)


def _cell(metric: MetricSummary | None) -> str:
    if metric is None:
        return "-"
    middle = metric.median
    if metric.unit is Unit.PACKETS:
        if metric.lowest == metric.highest:
            return f"{middle.median:g}"
        return f"{middle.median:g} ({metric.lowest:g}..{metric.highest:g})"
    digits = 1 if metric.unit is Unit.MS else 0
    if middle.low is None or middle.high is None:
        return f"{middle.median:.{digits}f}"
    return f"{middle.median:.{digits}f} [{middle.low:.{digits}f}, {middle.high:.{digits}f}]"


def _share(relative: float | None) -> str:
    return "" if relative is None else f"{relative:+.1%}"


def _p(change: MetricDifference) -> str:
    """Corrected for all metrics of the table; in brackets where looks decided, and it is that of one look at the end."""
    if change.p_adjusted is not None:
        return f"{change.p_adjusted:.2g}"
    return "" if change.p_value is None else f"({change.p_value:.2g})"


def _interval(change: MetricDifference) -> str:
    found, digits = change.difference, 1 if change.unit is Unit.MS else 0
    text = f"{found.median:+.{digits}f} {change.unit}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return text
