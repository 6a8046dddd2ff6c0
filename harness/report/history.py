"""Lists of runs, baseline checks and trends for a terminal or a mail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from harness.analysis.metrics import Unit
from harness.analysis.regression import BaselineCheck, Trend
from harness.analysis.significance import Finding
from harness.model.baseline import Baseline, RunKey
from harness.model.result import QemuPair
from harness.store.index import Entry

__all__ = ["check_text", "runs_table", "trend_text"]

_BARS = "▁▂▃▄▅▆▇█"


def runs_table(entries: Sequence[Entry], found: Mapping[str, Mapping[str, tuple[float | None, float, Unit]]]) -> str:
    """One line a run, oldest first."""
    if not entries:
        return "no runs"
    rows = [
        [
            entry.began.replace("T", " ").rstrip("Z"), entry.scenario, entry.qemu, entry.accelerator,
            _value(found[entry.path], "lost", 0), _value(found[entry.path], "compute_ms", 1), _value(found[entry.path], "network_ms", 1),
            entry.verdict, "loaded" if entry.loaded else "", entry.path,
        ]
        for entry in entries
    ]  # fmt: skip
    headers = ["began (UTC)", "scenario", "QEMU", "accel", "lost", "compute ms", "network ms", "verdict", "", "run"]
    align = ["left"] * 4 + ["right"] * 3 + ["left"] * 3
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _value(readings: Mapping[str, tuple[float | None, float, Unit]], name: str, digits: int) -> str:
    value = readings.get(name, (None, 0.0, Unit.MS))[0]
    return "-" if value is None else f"{value:.{digits}f}"


def check_text(key: RunKey, baseline: Baseline | None, remark: str, qemu: QemuPair, check: BaselineCheck) -> str:
    """The verdict first, then each figure."""
    lines = [f"{key.scenario}: {check.verdict.upper()}", f"  {check.why}", f"  {key.qemu}, {key.accelerator}, guest {key.kernel}, {key.host}"]
    if baseline is None:
        return "\n".join(lines)
    old, new = baseline.builds.source, qemu.source
    lines.append(f"  baseline of {baseline.set_at}: {len(baseline.runs)} runs, QEMU {old.version} build {old.build}")
    lines.append(f"  now: {check.runs} runs, QEMU {new.version} build {new.build}{' (the same)' if new.build == old.build else ''}")
    if remark:
        lines.append(f"  {remark}")
    rows = [_finding_row(finding) for finding in check.findings]
    headers = ["", "baseline", "now", "difference", "", "p", "", ""]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    return "\n".join([*lines, "", *("  " + line for line in table.splitlines())])


def _finding_row(found: Finding) -> list[str]:
    digits = 0 if found.metric.unit in (Unit.PACKETS, Unit.US) else 1
    if found.a is None or found.b is None or found.difference is None:
        return [found.metric.name, "-", "-", "-", "", "", found.change, found.why]
    difference = f"{found.difference:+.{digits}f} {found.metric.unit}"
    if found.low is not None and found.high is not None:
        difference += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return [
        found.metric.name, f"{found.a.median:.{digits}f}", f"{found.b.median:.{digits}f}", difference,
        "" if found.relative is None else f"{found.relative:+.1%}", "" if found.p_adjusted is None else f"{found.p_adjusted:.2g}",
        found.change, found.why,
    ]  # fmt: skip


def trend_text(metric: str, key: RunKey, found: Trend) -> str:
    """The nights as bars and as a table, and what may be said of them."""
    lines = [f"{metric}: {key.scenario}, {key.qemu}, {key.accelerator}, guest {key.kernel}, {key.host}"]
    medians = [night.value.median for night in found.nights]
    low, span = min(medians), max(medians) - min(medians)
    lines.append("  " + "".join(_BARS[round((value - low) / span * 7) if span else 3] for value in medians))
    if found.slope is not None:
        lines.append(f"  slope {found.slope:+.3g} a night (p = {_probability(found.slope_p)})")
        if found.stepped and found.step is not None:
            lines.append(f"  stepped by {found.step:+.3g} on {found.step_day} (p = {_probability(found.step_p)})")
        else:
            lines.append(f"  no clear step (p = {_probability(found.step_p)})")
    else:
        lines.append(f"  {len(medians)} nights are too few for a trend")
    rows = [
        [
            night.day, str(night.value.count), f"{night.value.median:.2f}",
            "" if night.value.low is None or night.value.high is None else f"{night.value.low:.2f} .. {night.value.high:.2f}",
        ]
        for night in found.nights
    ]  # fmt: skip
    table = tabulate(rows, headers=["night", "n", "median", "95 %"], tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * 3])
    return "\n".join([*lines, *("  " + line for line in table.splitlines())])


def _probability(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"
