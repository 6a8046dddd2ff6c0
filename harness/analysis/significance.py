"""Whether two arms differ: effect size, a permutation test corrected for many metrics, and what the runs could have shown at all.

A difference is called one only when its test, corrected by Holm's method for all metrics that are judged together, finds more than the metric's
`resolution` (nothing is claimed below it). `unchanged` is a claim too, and is tested: differences that
would matter (`margin`) are ruled out on both sides, or, for counts, no run differs and few could. All else is `inconclusive`, and `smallest` says what difference the runs would have shown.

With `Looks` the test may be repeated while a campaign goes on. Each look spends a part of the error that was allowed for the whole
(Lan and DeMets), so stopping at the first clear answer raises no more false alarms than one look at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.analysis.permutation import DRAWS, Scores, first_crossing, paired_p, rank_sum_p
from harness.analysis.statistics import Change, Median, median

__all__ = ["ALPHA", "POWER", "Finding", "Kind", "Looks", "Metric", "Sample", "holm", "judge", "power_of", "runs_needed", "upper_limit"]

ALPHA = 0.04
"""At most this often anything at all is called a change among metrics that are judged together and did not change. 5 % is
what is promised; the rest is kept for what the tests take for granted: that one round says nothing of the next."""
_INTERVAL = 0.05
POWER = 0.8
RARE = 0.2
"""Counts may be called unchanged when fewer than this share of the runs can differ (with 14 runs or more)."""

Floats = NDArray[np.float64]
_SEED = 20240229
_TRIALS = 2000
_PLANNING_DRAWS = 2999
_BISECTIONS = 14
_MANY = 100


class Kind(StrEnum):
    TIME = "time"
    COUNT = "count"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared. `resolution`: what the measurement can't tell apart; `margin`: what would not matter, as a share of
    the first arm's median (`margin_share`) or in the metric's own unit, whichever is more."""

    name: str
    unit: str
    kind: Kind = Kind.TIME
    resolution: float = 0.0
    margin_share: float = 0.05
    margin: float = 0.0
    more_is_better: bool = False

    @property
    def scores(self) -> Scores:
        return Scores.VALUE if self.kind is Kind.COUNT else Scores.RANK


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Both arms' values, by rounds if `paired`. A round without a value (NaN) in one arm is left out of both."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    paired: bool = True

    def arrays(self) -> tuple[Floats, Floats]:
        a, b = np.asarray(self.a, dtype=np.float64), np.asarray(self.b, dtype=np.float64)
        if not self.paired:
            return a[np.isfinite(a)], b[np.isfinite(b)]
        if a.size != b.size:
            raise ValueError(f"series measured by turns have equal lengths, not {a.size} and {b.size}")
        known = np.isfinite(a) & np.isfinite(b)
        return a[known], b[known]


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """When a growing campaign is looked at: after these numbers of rounds, the last of which is the most there will be.

    Fixed before the first run. By look k the share (k / last) squared of the error is spent: little at first, when a
    few runs look clear by chance most easily.
    """

    at: tuple[int, ...]

    @classmethod
    def up_to(cls, rounds: int, *, first: int = 6, looks: int = 6) -> Looks:
        """Looks spread evenly from `first` to `rounds`."""
        if rounds <= first:
            return cls(at=(rounds,))
        return cls(at=tuple(sorted({round(x) for x in np.linspace(first, rounds, looks)})))

    def so_far(self, rounds: int) -> tuple[int, ...]:
        return tuple(at for at in self.at if at <= rounds)

    def spent(self, alpha: float, *, rounds: int) -> tuple[float, ...]:
        """The error spent by each look so far."""
        return tuple(alpha * (at / self.at[-1]) ** 2 for at in self.so_far(rounds))


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of `b` against `a`. Figures are `None` where there are too few runs for them."""

    metric: Metric
    a: Median | None
    b: Median | None
    runs: tuple[int, int]
    difference: float | None
    """Hodges-Lehmann: the median of all mean (paired) or single differences."""
    low: float | None
    high: float | None
    relative: float | None
    """The difference as a share of `a`, estimated in the same way; `None` where that is 0."""
    effect: float | None
    """From -1 to 1: how much more often `b` is the greater one (rank-biserial correlation; Cliff's delta if not paired)."""
    p_value: float | None
    p_adjusted: float | None
    """By Holm's method over all metrics judged together; `None` where looks decide instead."""
    smallest: float | None
    """The smallest difference that so many runs with this spread show with a probability of 80 %; `None`: none at all."""
    change: Change
    why: str

    @property
    def clear(self) -> bool:
        return self.change is not Change.INCONCLUSIVE


def judge(
    cases: Sequence[tuple[Metric, Sample]], *, alpha: float = ALPHA, looks: Looks | None = None
) -> tuple[Finding, ...]:
    """A finding for each case, all judged together. With `looks`, the rounds so far are taken as looks of that design.

    A case whose runs could not be called different whatever came out (all counts 0, too few runs) costs the others nothing:
    it can raise no false alarm.
    """
    pairs = [(metric, *sample.arrays(), sample.paired) for metric, sample in cases]
    ways = [_p_values(metric, a, b, paired=paired) for metric, a, b, paired in pairs]
    nominal = [min(1.0, 2 * min(way)) for way in ways]
    able = [number for number, case in enumerate(pairs) if _attainable(*case) <= alpha]
    adjusted = [1.0] * len(pairs)
    for number, p in zip(able, holm([nominal[number] for number in able]), strict=True):
        adjusted[number] = p
    if looks is None:
        changed = [p <= alpha for p in adjusted]
        equal = [_equal(*case, alpha=alpha) for case in pairs]
    else:
        changed = _sequential_changes([(metric, a, b) for metric, a, b, _ in pairs], able, looks, alpha)
        equal = [_sequentially_equal(metric, a, b, looks=looks, alpha=alpha) for metric, a, b, _ in pairs]
    found = []
    for number, (metric, a, b, paired) in enumerate(pairs):
        up, down = ways[number]
        change = Change.INCONCLUSIVE
        if changed[number]:
            change = Change.REGRESSED if (up < down) is not metric.more_is_better else Change.IMPROVED
        elif equal[number]:
            change = Change.UNCHANGED
        found.append(
            _finding(
                metric, a, b, paired=paired, change=change, p_value=nominal[number],
                p_adjusted=adjusted[number] if looks is None else None, alpha=alpha / max(len(able), 1),
            )
        )  # fmt: skip
    return tuple(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the probability of any false alarm among all of them stays below alpha."""
    order = np.argsort(p_values, kind="stable")
    found, highest = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        found[at] = highest
    return found


def upper_limit(hits: int, *, of: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson: with `hits` in `of` runs, the true share is below this with that confidence (0 of 20: 13.9 %)."""
    return 1.0 if hits >= of else float(stats.beta.ppf(confidence, hits + 1, of - hits))


# -- the tests


def _p_values(metric: Metric, a: Floats, b: Floats, *, paired: bool) -> tuple[float, float]:
    """One-sided: that `b` is greater, and that it is smaller, than `a` by more than the resolution."""
    r = metric.resolution
    if paired:
        return paired_p(b - a - r, scores=metric.scores), paired_p(a - b - r, scores=metric.scores)
    return rank_sum_p(a + r, b), rank_sum_p(-a + r, -b)


def _attainable(metric: Metric, a: Floats, b: Floats, paired: bool) -> float:
    """The smallest two-sided p-value that any outcome could have given."""
    if not a.size or not b.size:
        return 1.0
    if not paired:
        return min(1.0, 2 / math.comb(a.size + b.size, a.size)) if np.unique(np.concatenate((a, b))).size > 1 else 1.0
    sides = [b - a - metric.resolution, a - b - metric.resolution]
    return min(1.0, 2 * min(0.5 ** np.count_nonzero(d) for d in sides))


def _margin(metric: Metric, a: Floats) -> float:
    share = metric.margin_share * abs(float(np.median(a))) if a.size and metric.kind is Kind.TIME else 0.0
    return max(metric.margin, metric.resolution, share)


def _equal(metric: Metric, a: Floats, b: Floats, paired: bool, *, alpha: float) -> bool:
    """Two one-sided tests: more than `margin` is ruled out on both sides."""
    if metric.kind is Kind.COUNT:
        return _never_differs(a, b)
    margin = _margin(metric, a)
    if not a.size or not b.size or margin <= 0:
        return False
    moved = msgspec.structs.replace(metric, resolution=-margin)
    return max(_p_values(moved, a, b, paired=paired)) <= alpha


def _never_differs(a: Floats, b: Floats) -> bool:
    """Counts that agree in every run, in so many runs that few could differ. Looking more than once gives no more false claims:
    who agrees at the last look agreed at the first."""
    same = bool(a.size and b.size) and np.unique(np.concatenate((a, b))).size == 1
    return same and upper_limit(0, of=min(a.size, b.size)) <= RARE


def _sequential_changes(
    pairs: Sequence[tuple[Metric, Floats, Floats]], able: Sequence[int], looks: Looks, alpha: float
) -> list[bool]:
    """Holm's steps with a boundary for each case and step: what is rejected leaves its share to the others."""
    changed = [False] * len(pairs)
    while True:
        open_ = [number for number in able if not changed[number]]
        for number in open_:
            metric, a, b = pairs[number]
            share = alpha / len(open_) / 2
            changed[number] = any(
                _crossed(side * (b - a) - metric.resolution, looks, share, metric.scores) for side in (1, -1)
            )
        if not any(changed[number] for number in open_):
            return changed


def _sequentially_equal(metric: Metric, a: Floats, b: Floats, *, looks: Looks, alpha: float) -> bool:
    if metric.kind is Kind.COUNT:
        return _never_differs(a, b)
    margin = _margin(metric, a)
    if not a.size or margin <= 0:
        return False
    return all(_crossed(side * (b - a) + margin, looks, alpha, metric.scores) for side in (1, -1))


def _crossed(differences: Floats, looks: Looks, alpha: float, scores: Scores) -> bool:
    rounds = differences.size
    spent = looks.spent(alpha, rounds=rounds)
    # What even the smallest share of the draws can't reach needs no drawing.
    if not spent or spent[-1] < 2.0**-rounds or spent[-1] * (DRAWS + 1) < 1:
        return False
    found = first_crossing(differences[np.newaxis, :], looks=looks.so_far(rounds), spent=spent, scores=scores)
    return bool(found[0] >= 0)


# -- sizes


def _finding(
    metric: Metric, a: Floats, b: Floats, *, paired: bool, change: Change, p_value: float, p_adjusted: float | None,
    alpha: float,
) -> Finding:  # fmt: skip
    if not a.size or not b.size:
        return Finding(
            metric=metric, a=median(a) if a.size else None, b=median(b) if b.size else None, runs=(a.size, b.size),
            difference=None, low=None, high=None, relative=None, effect=None, p_value=None, p_adjusted=None, smallest=None,
            change=Change.INCONCLUSIVE, why="there are no values to compare",
        )  # fmt: skip
    shift, low, high = _shift(a, b, paired=paired)
    base = _shift(np.zeros(a.size), a, paired=True)[0] if a.size <= _MANY else float(np.median(a))
    smallest = smallest_difference(a, b, paired=paired, alpha=alpha, resolution=metric.resolution)
    return Finding(
        metric=metric, a=median(a), b=median(b), runs=(a.size, b.size), difference=shift, low=low, high=high,
        relative=shift / abs(base) if base else None, effect=_effect(a, b, paired=paired), p_value=p_value,
        p_adjusted=p_adjusted, smallest=smallest, change=change,
        why=_why(metric, a, b, change=change, smallest=smallest),
    )  # fmt: skip


def _why(metric: Metric, a: Floats, b: Floats, *, change: Change, smallest: float | None) -> str:
    runs = f"{a.size} runs each" if a.size == b.size else f"{a.size} and {b.size} runs"
    if change is Change.UNCHANGED and metric.kind is Kind.COUNT:
        return f"the same in {runs}: fewer than {upper_limit(0, of=min(a.size, b.size)):.0%} of the runs can differ, with 95 % confidence"
    if change is Change.UNCHANGED:
        return f"a difference of more than {_margin(metric, a):.3g} {metric.unit} is ruled out"
    if change is not Change.INCONCLUSIVE:
        return f"more than the resolution of {metric.resolution:.3g} {metric.unit}, corrected for all metrics"
    if smallest is None:
        return f"{runs} are too few to show any difference"
    if metric.kind is Kind.COUNT and not np.count_nonzero(a) and not np.count_nonzero(b):
        share = upper_limit(0, of=min(a.size, b.size))
        return f"none in {runs}: up to {share:.0%} of the runs may have some, with 95 % confidence"
    return f"{runs} with this spread show a difference of {smallest:.3g} {metric.unit} or more"


def _shift(a: Floats, b: Floats, *, paired: bool) -> tuple[float, float | None, float | None]:
    """The Hodges-Lehmann estimate and the interval of the differences that the two-sided rank test at 5 % does not reject."""
    if paired:
        d = b - a
        rows, columns = np.triu_indices(d.size)
        values = np.sort((d[rows] + d[columns]) / 2)
        cut = _signed_rank_cut(d.size, _INTERVAL / 2)
    else:
        # Of very many the quantiles will do.
        left, right = (np.quantile(side, np.linspace(0, 1, 400)) if side.size > 400 else side for side in (a, b))
        values = np.sort((right[:, np.newaxis] - left).ravel())
        cut = _rank_sum_cut(a.size, b.size, _INTERVAL / 2)
        if cut is not None and values.size < a.size * b.size:
            cut = cut * values.size // (a.size * b.size)
    estimate = float(np.median(values))
    if cut is None:
        return estimate, None, None
    return estimate, float(values[cut]), float(values[-1 - cut])


def _effect(a: Floats, b: Floats, *, paired: bool) -> float:
    if not paired:
        return float(np.sign(b[:, np.newaxis] - a).mean())
    d = b - a
    ranks = stats.rankdata(np.abs(d)) * (d != 0)
    total = ranks.sum()
    return float((ranks * np.sign(d)).sum() / total) if total else 0.0


def _signed_rank_cut(n: int, alpha: float) -> int | None:
    """How many of the smallest sums of signed ranks have, together, a probability of at most alpha; None: not even the first."""
    p = np.cumsum(_signed_rank_distribution(n))
    cut = int(np.searchsorted(p, alpha * (1 + 1e-9), side="right")) - 1
    return cut if cut >= 0 else None


def _signed_rank_distribution(n: int) -> Floats:
    found = np.zeros(n * (n + 1) // 2 + 1)
    found[0] = 1.0
    for rank in range(1, n + 1):
        found[rank:] += found[: found.size - rank].copy()
        found /= 2
    return found


def _rank_sum_cut(m: int, n: int, alpha: float) -> int | None:
    if m + n > 80:
        spread = math.sqrt(m * n * (m + n + 1) / 12)
        cut = math.floor(m * n / 2 + float(stats.norm.ppf(alpha)) * spread - 0.5)
        return cut if cut >= 0 else None
    # ways[k, u]: of the ranks so far, k are dealt to b, and u pairs have a's value below b's (Mann-Whitney's U).
    ways = np.zeros((n + 1, m * n + 1))
    ways[0, 0] = 1.0
    for dealt in range(m + n):
        fresh = ways.copy()
        for to_b in range(max(0, dealt - m), min(dealt, n - 1) + 1):
            below = dealt - to_b
            fresh[to_b + 1, below:] += ways[to_b, : m * n + 1 - below]
        ways = fresh
    p = np.cumsum(ways[n]) / math.comb(m + n, n)
    cut = int(np.searchsorted(p, alpha * (1 + 1e-9), side="right")) - 1
    return cut if cut >= 0 else None


# -- planning


def power_of(
    runs: int, *, effect: float, spread: float, alpha: float = ALPHA, paired: bool = True, looks: Looks | None = None
) -> float:
    """How often `runs` rounds show a difference of `effect` in the direction it has, found by drawing normal values.

    `spread` is the standard deviation of the differences of pairs, or, if not paired, of either arm's values; same unit as
    `effect`. With `looks`: at any of them.
    """
    random = np.random.default_rng(_SEED)
    if not paired:
        a, b = random.normal(0, spread, (_TRIALS, runs)), random.normal(abs(effect), spread, (_TRIALS, runs))
        return float(np.mean(_rank_sum_rejections(a, b, alpha)))
    d = random.normal(abs(effect), spread, (_TRIALS, runs))
    if looks is None:
        return float(np.mean(_paired_rejections(d, alpha)))
    spent = looks.spent(alpha / 2, rounds=runs)
    found = first_crossing(d, looks=looks.so_far(runs), spent=spent, scores=Scores.RANK, draws=_PLANNING_DRAWS)
    return float(np.mean(found >= 0))


def runs_needed(
    *, effect: float, spread: float, alpha: float = ALPHA, power: float = POWER, paired: bool = True, stop_early: bool = False
) -> int | None:
    """The fewest rounds that show `effect` with at least that power, the error of drawing included; `None` if 1,000 don't."""
    wanted = power + 2 * math.sqrt(power * (1 - power) / _TRIALS)

    def enough(runs: int, *, looks: Looks | None = None) -> bool:
        return power_of(runs, effect=effect, spread=spread, alpha=alpha, paired=paired, looks=looks) >= wanted

    low, high = 0, 8
    while not enough(high):
        low, high = high, high * 2
        if high > 1000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    if stop_early:
        while not enough(high, looks=Looks.up_to(high)):
            high += max(1, high // 12)
    return high


def smallest_difference(
    a: Floats, b: Floats, *, paired: bool, alpha: float = ALPHA, power: float = POWER, resolution: float = 0.0
) -> float | None:
    """The smallest shift that so many runs with the spread seen show with that power, found by resampling; `None`: none at all."""
    if not a.size or not b.size:
        return None
    if min(a.size, b.size) > _MANY:
        # Medians of so many are normal, and the test loses little against one of means (Pitman's 3 / pi).
        sides = [b - a] if paired else [a, b]
        error = math.sqrt(sum(float(np.var(side, ddof=1)) / side.size for side in sides) * math.pi / 3)
        return resolution + error * float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    random = np.random.default_rng(_SEED)
    trials = _TRIALS // 4

    def resampled(values: Floats) -> Floats:
        # A sample is narrower than what it was drawn from.
        centred = (values - np.median(values)) * math.sqrt(values.size / max(values.size - 1, 1))
        drawn: Floats = centred[random.integers(0, values.size, (trials, values.size))]
        return drawn

    if paired:
        if _signed_rank_cut(a.size, alpha / 2) is None:
            return None
        d = resampled(b - a)

        def shows(shift: float) -> bool:
            return bool(_paired_rejections(d + shift, alpha).mean() >= power)
    else:
        if _rank_sum_cut(a.size, b.size, alpha / 2) is None:
            return None
        left, right = resampled(a), resampled(b)

        def shows(shift: float) -> bool:
            return bool(_rank_sum_rejections(left, right + shift, alpha).mean() >= power)

    # Beyond this every resampled difference is positive.
    high = 2 * float(np.ptp(a) + np.ptp(b)) + 1e-9
    if not shows(high):
        return None
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high + resolution


def _paired_rejections(d: Floats, alpha: float) -> NDArray[np.bool_]:
    """Which rows a two-sided test calls greater than 0."""
    n = d.shape[1]
    cut = _signed_rank_cut(n, alpha / 2)
    if cut is None:
        return np.zeros(d.shape[0], dtype=np.bool_)
    ranks = stats.rankdata(np.abs(d), axis=1)
    negative = (ranks * (d <= 0)).sum(axis=1)
    found: NDArray[np.bool_] = negative <= cut
    return found


def _rank_sum_rejections(a: Floats, b: Floats, alpha: float) -> NDArray[np.bool_]:
    """Which rows a two-sided test calls greater in `b`."""
    m, n = a.shape[1], b.shape[1]
    cut = _rank_sum_cut(m, n, alpha / 2)
    if cut is None:
        return np.zeros(a.shape[0], dtype=np.bool_)
    ranks = stats.rankdata(np.concatenate((a, b), axis=1), axis=1)
    # How often a value of a is above one of b.
    above = ranks[:, :m].sum(axis=1) - m * (m + 1) / 2
    found: NDArray[np.bool_] = above <= cut
    return found
