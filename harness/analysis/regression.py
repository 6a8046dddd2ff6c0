"""Fresh runs against a baseline, and a figure's course over many nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from scipy import stats

from harness.analysis.metrics import MAIN, Reading, Unit
from harness.analysis.permutation import DRAWS
from harness.analysis.significance import ALPHA, Finding, Kind, Metric, Sample, judge
from harness.analysis.statistics import Change, Median, median
from harness.model.baseline import Baseline
from harness.model.result import Verdict

__all__ = ["BaselineCheck", "Night", "Trend", "against_baseline", "trend"]

TOLERANCE = 0.05
"""Two nights differ by a few per cent without any reason: host, cache, neighbours. Less than this is no regression of a time."""
_JUDGED = (*MAIN, "migration_ms")
_SEED = 20250118


class BaselineCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One group of runs against its baseline. `why` says what the verdict rests on, or why there is none."""

    verdict: Verdict
    why: str
    runs: int
    findings: tuple[Finding, ...] = ()


def against_baseline(
    baseline: Baseline, runs: Sequence[Mapping[str, Reading]], *, tolerance: float = TOLERANCE
) -> BaselineCheck:
    """Judge runs as one group against the baseline's: all figures of the whole run together, not those of single streams.

    A time has to be off by more than `tolerance` of the baseline's median to be a regression; a count by anything that chance does
    not explain. Inconclusive only if nothing regressed and no figure has a verdict.
    """
    cases = []
    for name, old in baseline.readings.items():
        fresh = [run[name] for run in runs if name in run]
        known = [value for value in old.values if value is not None]
        if not (name in _JUDGED or name.startswith("figures.")) or not fresh or not known:
            continue
        count = old.unit == Unit.PACKETS
        metric = Metric(
            name=name, unit=old.unit, kind=Kind.COUNT if count else Kind.TIME, margin_share=max(tolerance, 0.05),
            resolution=max(
                old.resolution, *(each.resolution for each in fresh), 0.0 if count else tolerance * abs(float(np.median(known)))
            ),
        )  # fmt: skip
        values = tuple(float("nan") if each.value is None else each.value for each in fresh)
        cases.append((metric, Sample(a=tuple(known), b=values, paired=False)))
    findings = judge(cases)
    by_change = {change: [f.metric.name for f in findings if f.change is change] for change in Change}
    if worse := by_change[Change.REGRESSED]:
        verdict, why = Verdict.REGRESSED, f"worse than the baseline: {', '.join(worse)}"
    elif better := by_change[Change.IMPROVED]:
        verdict, why = Verdict.IMPROVED, f"better than the baseline: {', '.join(better)}"
    elif same := by_change[Change.UNCHANGED]:
        verdict, why = Verdict.UNCHANGED, f"no figure is worse, and as in the baseline: {', '.join(same)}"
    else:
        verdict, why = Verdict.INCONCLUSIVE, "; ".join(f"{f.metric.name}: {f.why}" for f in findings) or "nothing to compare"
    return BaselineCheck(verdict=verdict, why=why, runs=len(runs), findings=findings)


class Night(msgspec.Struct, frozen=True, kw_only=True):
    day: str
    value: Median


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over the nights. `slope` is by night (Theil and Sen), `slope_p` Kendall's; `step_day` is the first night after the
    most likely step, `step_p` the probability of so clear a step in nights of any order. None with fewer than 4 nights."""

    nights: tuple[Night, ...]
    slope: float | None = None
    slope_p: float | None = None
    step_day: str | None = None
    step: float | None = None
    step_p: float | None = None

    @property
    def stepped(self) -> bool:
        return self.step_p is not None and self.step_p <= ALPHA


def trend(values: Sequence[tuple[str, float]]) -> Trend:
    """From the day and the value of each run. A night is what is drawn: its runs share its host's mood."""
    days: dict[str, list[float]] = {}
    for day, value in values:
        days.setdefault(day, []).append(value)
    nights = tuple(Night(day=day, value=median(found)) for day, found in sorted(days.items()))
    medians = np.array([night.value.median for night in nights])
    if medians.size < 4:
        return Trend(nights=nights)
    order = np.arange(medians.size)
    slope = float(stats.theilslopes(medians, order)[0])
    tau = stats.kendalltau(order, medians).pvalue
    at, clearness = _clearest_step(medians)
    random = np.random.default_rng(_SEED)
    draws = min(DRAWS, 1999)
    reached = sum(_clearest_step(random.permutation(medians))[1] >= clearness - 1e-9 for _ in range(draws))
    return Trend(
        nights=nights, slope=slope, slope_p=None if np.isnan(tau) else float(tau), step_day=nights[at].day,
        step=float(np.median(medians[at:]) - np.median(medians[:at])), step_p=(1 + reached) / (draws + 1),
    )  # fmt: skip


def _clearest_step(values: np.ndarray) -> tuple[int, float]:
    """Where the ranks before and after differ most, and by how many of their standard deviations (after Pettitt)."""
    ranks = stats.rankdata(values)
    n = values.size
    before = np.arange(1, n)
    sums = np.cumsum(ranks)[:-1] - before * (n + 1) / 2
    scores = np.abs(sums) / np.sqrt(before * (n - before) * (n + 1) / 12)
    at = int(np.argmax(scores))
    return at + 1, float(scores[at])
