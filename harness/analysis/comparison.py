"""Arms side by side: medians with intervals, counts as counts, and the differences that may be claimed.

Each arm is compared with the first one. Where the arms ran by turns, differences are taken round by round, so that a
drift of the host cancels out; else they are differences of the medians. No difference below the resolution is claimed,
and timings of two accelerators are not compared at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness.analysis.metrics import Reading, Unit, readings
from harness.analysis.statistics import FEWEST, Change, Median, median, paired_difference, unpaired_difference
from harness.model.campaign import Arm, Campaign
from harness.model.result import Outcome, RunResult

__all__ = ["ArmSummary", "Comparison", "MetricDifference", "MetricSummary", "compare_campaign"]


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
    """`b` less `a`. `change` says what it means where less is better; `why` why it could not be told."""

    metric: str
    a: str
    b: str
    unit: Unit
    paired: bool
    difference: Median
    resolution: float
    change: Change
    why: str = ""


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
    differences: list[MetricDifference] = []
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
                differences.append(_difference(name, pair, (taken[arms[0].label], taken[arm.label]), campaign.interleaved))
    loaded = sum(any("another run was under way" in note for note in run.notes) for run in campaign.runs)
    if loaded:
        notes.append(f"{loaded} of {len(campaign.runs)} runs shared the host with another run: their timings say little")
    return Comparison(arms=summaries, differences=tuple(differences), notes=tuple(notes))


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


def _difference(
    name: str, arms: tuple[ArmSummary, ArmSummary], rounds: tuple[Rounds, Rounds], interleaved: bool
) -> MetricDifference:
    (a, b), (first, second) = arms, rounds
    left, right = ({n: v[name].value for n, v in taken.items() if name in v} for taken in (first, second))
    both = [n for n in sorted(left) if left[n] is not None and right.get(n) is not None]
    resolution = max(a.metrics[name].resolution, b.metrics[name].resolution)
    paired = interleaved and len(both) > 0
    if paired:
        values = tuple([float(side[n] or 0.0) for n in both] for side in (left, right))
        found, change = paired_difference(values[0], values[1], resolution=resolution)
        fewest = len(both)
    else:
        ours, theirs = ([float(v) for v in side.values() if v is not None] for side in (left, right))
        found, change = unpaired_difference(ours, theirs, resolution=resolution)
        fewest = min(len(ours), len(theirs))
    why = ""
    if change is Change.INCONCLUSIVE:
        unit = a.metrics[name].unit
        why = f"{fewest} runs are too few" if fewest < FEWEST else f"the interval reaches across ±{resolution:g} {unit}"
    return MetricDifference(
        metric=name, a=a.label, b=b.label, unit=a.metrics[name].unit, paired=paired, difference=found,
        resolution=resolution, change=change, why=why,
    )  # fmt: skip
