"""Arms side by side: medians with intervals, counts as counts, and the differences that may be claimed.

Each arm is compared with the first one. Where the arms ran by turns, differences are taken round by round, so that a
drift of the host cancels out. What a difference may be called is decided in `significance`: the main figures of all arms are
judged together, and those of single streams by themselves. Timings of two accelerators are not compared at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness.analysis.metrics import DECISIVE, MAIN, Reading, Unit, readings
from harness.analysis.significance import Finding, Kind, Looks, Metric, Sample, judge
from harness.analysis.statistics import Change, Median, median
from harness.model.campaign import Arm, Campaign
from harness.model.result import Outcome, RunResult

__all__ = ["ArmSummary", "Comparison", "MetricDifference", "MetricSummary", "all_clear", "compare_campaign"]


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one arm. `values` are in the order of the runs; `total` is for counts."""

    unit: Unit
    values: tuple[float | None, ...]
    median: Median
    lowest: float
    highest: float
    total: float | None
    resolution: float


class ArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`failed` runs could not be made; `inconclusive` ones are among `runs`, and their counts are shown all the same."""

    label: str
    scenario: str
    mechanism: str
    accelerator: str
    runs: int
    failed: int
    inconclusive: int
    metrics: dict[str, MetricSummary]


class MetricDifference(msgspec.Struct, frozen=True, kw_only=True):
    """`b` less `a`, as `significance.Finding` has it; `difference` is the Hodges-Lehmann estimate with its interval.

    `change` says what it means, `why` what that rests on, or what the runs could have shown. `p_adjusted` is None where a
    campaign's looks decided.
    """

    metric: str
    a: str
    b: str
    unit: Unit
    paired: bool
    difference: Median
    resolution: float
    change: Change
    why: str
    relative: float | None
    effect: float | None
    p_value: float | None
    p_adjusted: float | None
    smallest: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    arms: tuple[ArmSummary, ...]
    differences: tuple[MetricDifference, ...]
    notes: tuple[str, ...]


def compare_campaign(campaign: Campaign, *, resolutions: Mapping[str, float] | None = None) -> Comparison:
    """Compare the arms of a campaign. `resolutions` are those that a calibration showed, by metric; the coarser one counts."""
    known = resolutions or {}
    arms = [arm for arm in campaign.arms if arm.runs]
    taken = {arm.label: {trial.round: readings(trial.result) for trial in arm.trials if trial.result} for arm in arms}
    summaries = tuple(_summary(arm, taken[arm.label], known) for arm in arms)
    cases: list[_Case] = []
    notes = [f"{arm.label}: {text}" for arm in campaign.arms for text in arm.failures]
    for arm, summary in list(zip(arms, summaries, strict=True))[1:]:
        alike = summary.accelerator == summaries[0].accelerator
        if not alike:
            notes.append(
                f"{arm.label} ran with {summary.accelerator}, {arms[0].label} with {summaries[0].accelerator}:"
                " their timings are not compared"
            )
        for name in summaries[0].metrics:
            if name in summary.metrics and (alike or summary.metrics[name].unit is Unit.PACKETS):
                pair = (summaries[0], summary)
                cases.append(_case(name, pair, (taken[arms[0].label], taken[arm.label]), campaign.interleaved))
    loaded = sum(any("another run was under way" in note for note in run.notes) for run in campaign.runs)
    if loaded:
        notes.append(f"{loaded} of {len(campaign.runs)} runs shared the host with another run: their timings say little")
    differences = _judged(cases, campaign.looks)
    if campaign.looks:
        rounds = max((trial.round + 1 for arm in arms for trial in arm.trials), default=0)
        notes.append(f"looked at after {', '.join(map(str, campaign.looks))} rounds, ended after {rounds}: judged by those looks")
    return Comparison(arms=summaries, differences=differences, notes=tuple(notes))


def all_clear(comparison: Comparison) -> bool:
    """Whether every arm's decisive figures have a verdict: more runs would not change what is said of them."""
    asked = [each for each in comparison.differences if each.metric in DECISIVE]
    return bool(asked) and all(each.change is not Change.INCONCLUSIVE for each in asked)


def _accelerator(runs: tuple[RunResult, ...]) -> str:
    return "+".join(sorted({run.accelerator for run in runs}))


def _summary(arm: Arm, rounds: dict[int, dict[str, Reading]], known: Mapping[str, float]) -> ArmSummary:
    runs = arm.runs
    names = dict.fromkeys(name for values in rounds.values() for name in values)
    metrics = {}
    for name in names:
        found = [values[name] for _, values in sorted(rounds.items()) if name in values]
        numbers = [reading.value for reading in found if reading.value is not None]
        if not numbers:
            continue
        metrics[name] = MetricSummary(
            unit=found[0].unit, values=tuple(reading.value for reading in found), median=median(numbers),
            lowest=min(numbers), highest=max(numbers), total=sum(numbers) if found[0].is_count else None,
            resolution=max(_known(name, known), *(reading.resolution for reading in found)),
        )  # fmt: skip
    return ArmSummary(
        label=arm.label, scenario=runs[0].scenario.name, mechanism=runs[0].mechanism, accelerator=_accelerator(runs),
        runs=len(runs), failed=len(arm.failures), metrics=metrics,
        inconclusive=sum(run.outcome is Outcome.INCONCLUSIVE for run in runs),
    )  # fmt: skip


def _known(name: str, known: Mapping[str, float]) -> float:
    """A stream's own figure has the resolution of the figure of that kind."""
    return known.get(name, known.get(name.rpartition(".")[2], 0.0))


Rounds = dict[int, dict[str, Reading]]


class _Case(msgspec.Struct, frozen=True):
    name: str
    arms: tuple[ArmSummary, ArmSummary]
    metric: Metric
    sample: Sample


def _case(name: str, arms: tuple[ArmSummary, ArmSummary], rounds: tuple[Rounds, Rounds], interleaved: bool) -> _Case:
    left, right = ({n: v[name].value for n, v in taken.items() if name in v} for taken in rounds)
    both = sorted(left.keys() | right.keys()) if interleaved else []
    values = [
        tuple(float("nan") if value is None else float(value) for value in ([side.get(n) for n in both] or side.values()))
        for side in (left, right)
    ]
    unit = arms[0].metrics[name].unit
    metric = Metric(
        name=name, unit=unit, kind=Kind.COUNT if unit is Unit.PACKETS else Kind.TIME,
        resolution=max(arm.metrics[name].resolution for arm in arms),
    )  # fmt: skip
    return _Case(name, arms, metric, Sample(a=values[0], b=values[1], paired=interleaved))


def _judged(cases: list[_Case], looks: tuple[int, ...]) -> tuple[MetricDifference, ...]:
    """The main figures make one family; those of single streams, which are there to look into things, another."""
    found: dict[int, Finding] = {}
    design = Looks(at=looks) if looks else None
    for main in (True, False):
        numbers = [number for number, case in enumerate(cases) if (case.name in MAIN) is main]
        findings = judge([(cases[n].metric, cases[n].sample) for n in numbers], looks=design)
        found |= dict(zip(numbers, findings, strict=True))
    return tuple(_difference(case, found[number]) for number, case in enumerate(cases))


def _difference(case: _Case, found: Finding) -> MetricDifference:
    a, b = case.arms
    middle = found.difference if found.difference is not None else b.metrics[case.name].median.median - a.metrics[case.name].median.median
    return MetricDifference(
        metric=case.name, a=a.label, b=b.label, unit=a.metrics[case.name].unit, paired=case.sample.paired,
        difference=Median(median=middle, low=found.low, high=found.high, count=min(found.runs), confidence=0.95),
        resolution=case.metric.resolution, change=found.change, why=found.why, relative=found.relative,
        effect=found.effect, p_value=found.p_value, p_adjusted=found.p_adjusted, smallest=found.smallest,
    )  # fmt: skip
