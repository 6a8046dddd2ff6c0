"""Verdicts on drawn campaigns: how often they cry wolf, how often they see the wolf, and what they say when they can't."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from harness.analysis.permutation import Scores, first_crossing, paired_p, rank_sum_p
from harness.analysis.significance import (
    ALPHA,
    Finding,
    Kind,
    Looks,
    Metric,
    Sample,
    holm,
    judge,
    power_of,
    runs_needed,
    smallest_difference,
    upper_limit,
)
from harness.analysis.statistics import Change

TIME = Metric(name="network downtime", unit="ms", resolution=1.0)
LOST = Metric(name="lost", unit="packets", kind=Kind.COUNT)
CAMPAIGNS = 1000


def drifting(random: np.random.Generator, *, rounds: int, campaigns: int = CAMPAIGNS) -> np.ndarray:
    """A load that both arms of a round share, and that wanders."""
    return 100 + np.cumsum(random.normal(0, 3, (campaigns, rounds)), axis=1)


# -- the tests themselves


@pytest.mark.parametrize("scores", Scores)
@pytest.mark.parametrize("values", [[3, -1, 4, 1, -5, 9], [2, 2, -2, 0, 7, 7], [1, 1, 1, 1, 1, 1], [-4, -3, -2, -1, -6, -9]])
def test_the_pairs_probability_is_that_of_all_signs_counted_out(values: list[float], scores: Scores) -> None:
    sizes = np.abs(values)
    weights = stats.rankdata(sizes) * (sizes > 0) if scores is Scores.RANK else sizes
    observed = (weights * np.sign(values)).sum()
    sums = [(weights * np.array(signs)).sum() for signs in product((-1, 1), repeat=len(values))]
    assert paired_p(values, scores=scores) == pytest.approx(np.mean([s >= observed - 1e-9 for s in sums]))


def test_both_tests_agree_with_the_textbook() -> None:
    random = np.random.default_rng(3)
    for size in (6, 12, 25):
        d = random.normal(0.4, 1, size)
        expected = stats.wilcoxon(d, alternative="greater", method="exact").pvalue
        assert paired_p(d, scores=Scores.RANK) == pytest.approx(expected)
        a, b = random.normal(0, 1, size), random.normal(0.4, 1, size + 3)
        expected = stats.mannwhitneyu(b, a, alternative="greater", method="exact").pvalue
        assert rank_sum_p(a, b) == pytest.approx(expected)


def test_fractions_are_drawn_and_large_series_approximated() -> None:
    random = np.random.default_rng(4)
    d = random.normal(0.5, 1, 20)
    drawn = paired_p(d, scores=Scores.VALUE)
    assert drawn == paired_p(d, scores=Scores.VALUE)
    assert drawn == pytest.approx(stats.ttest_1samp(d, 0, alternative="greater").pvalue, abs=0.02)
    assert rank_sum_p(np.zeros(60), np.ones(60)) < 1e-9


def test_no_difference_is_certain() -> None:
    assert paired_p([0, 0, 0], scores=Scores.VALUE) == 1
    assert paired_p([0, 0, 0], scores=Scores.RANK) == 1
    assert rank_sum_p([], [1]) == 1


# -- false alarms: at most 5 % of 1000 campaigns without an effect


def test_without_an_effect_six_metrics_together_raise_few_alarms() -> None:
    random = np.random.default_rng(11)
    metrics = [Metric(name=f"m{k}", unit="ms") for k in range(6)]
    load = drifting(random, rounds=12)
    a = load[:, None, :] + random.normal(0, 5, (CAMPAIGNS, 6, 12))
    b = load[:, None, :] + random.normal(0, 5, (CAMPAIGNS, 6, 12))
    ways = [
        holm([2 * min(paired_p(y - x, scores=Scores.RANK), paired_p(x - y, scores=Scores.RANK)) for x, y in zip(aa, bb, strict=True)])
        for aa, bb in zip(a, b, strict=True)
    ]
    alarms = np.mean([min(p) <= ALPHA for p in ways])
    assert alarms <= 0.05
    # The same numbers through the front door, for a few that alarmed and a few that did not.
    for number in [*np.flatnonzero([min(p) <= ALPHA for p in ways])[:2], 0, 1]:
        samples = [(m, Sample(a=tuple(a[number, k]), b=tuple(b[number, k]))) for k, m in enumerate(metrics)]
        assert [f.p_adjusted for f in judge(samples)] == pytest.approx([min(1, p) for p in ways[number]])


def test_without_an_effect_clustered_losses_raise_few_alarms() -> None:
    # A run loses hundreds of packets or none: a test that took each packet for itself would see an effect in most of these.
    random = np.random.default_rng(12)
    stopped_ms = random.gamma(2, 60, (2, CAMPAIGNS, 10))
    lost = random.poisson(stopped_ms)
    d = (lost[1] - lost[0]).astype(float)
    p = np.array([2 * min(paired_p(row, scores=Scores.VALUE), paired_p(-row, scores=Scores.VALUE)) for row in d])
    assert np.mean(p <= ALPHA) <= 0.05
    totals = lost.sum(axis=2)[:, :100]
    naive = [stats.binomtest(int(b), int(a + b)).pvalue for a, b in totals.T]
    assert np.mean(np.array(naive) <= 0.05) > 0.5


def test_looking_six_times_raises_no_more_alarms_than_once() -> None:
    random = np.random.default_rng(13)
    d = random.standard_t(3, (CAMPAIGNS, 30))
    looks = Looks.up_to(30)
    spent = looks.spent(ALPHA / 2, rounds=30)
    up = first_crossing(d, looks=looks.at, spent=spent, scores=Scores.RANK)
    down = first_crossing(-d, looks=looks.at, spent=spent, scores=Scores.RANK)
    assert np.mean((up >= 0) | (down >= 0)) <= 0.05
    # What looking without a plan would do.
    naive = [
        any(stats.wilcoxon(row[:at], method="exact").pvalue <= ALPHA for at in looks.at) for row in d[:300]
    ]
    assert np.mean(naive) > 0.08


def test_early_alarms_stay_below_what_was_spent_by_then() -> None:
    random = np.random.default_rng(14)
    d = random.normal(0, 1, (CAMPAIGNS, 30))
    looks = Looks.up_to(30)
    spent = looks.spent(0.2, rounds=30)
    found = first_crossing(d, looks=looks.at, spent=spent, scores=Scores.RANK, draws=1999)
    for k, share in enumerate(spent):
        assert np.mean((found >= 0) & (found <= k)) <= share + 2 * np.sqrt(share * (1 - share) / CAMPAIGNS)


# -- power: a 10 % effect at the stated number of runs


@pytest.mark.parametrize("paired", [True, False])
def test_the_stated_runs_show_ten_percent_with_the_stated_power(paired: bool) -> None:
    effect, noise = 10.0, 10.0
    spread = noise * np.sqrt(2) if paired else noise
    runs = runs_needed(effect=effect, spread=spread, paired=paired)
    assert runs is not None
    random = np.random.default_rng(21)
    load = drifting(random, rounds=runs) if paired else np.full((CAMPAIGNS, runs), 100.0)
    a = load + random.normal(0, noise, load.shape)
    b = load + effect + random.normal(0, noise, load.shape)
    if paired:
        p = [paired_p(y - x, scores=Scores.RANK) for x, y in zip(a, b, strict=True)]
    else:
        p = [rank_sum_p(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean(np.array(p) <= ALPHA / 2) >= 0.8


def test_the_stated_runs_show_ten_percent_with_early_stopping_too() -> None:
    runs = runs_needed(effect=10, spread=14, stop_early=True)
    assert runs is not None
    assert runs >= (runs_needed(effect=10, spread=14) or 0)
    d = np.random.default_rng(22).normal(10, 14, (CAMPAIGNS, runs))
    looks = Looks.up_to(runs)
    found = first_crossing(d, looks=looks.at, spent=looks.spent(ALPHA / 2, rounds=runs), scores=Scores.RANK)
    assert np.mean(found >= 0) >= 0.8
    # Which is what stopping is for: fewer runs on the average.
    assert np.mean([looks.at[k] if k >= 0 else runs for k in found]) < 0.9 * runs


def test_the_smallest_difference_is_one_that_is_seen() -> None:
    random = np.random.default_rng(23)
    seen = []
    for _ in range(60):
        a, b = random.normal(100, 5, 16), random.normal(100, 5, 16)
        smallest = smallest_difference(a, b, paired=True)
        assert smallest is not None
        seen.append(power_of(16, effect=smallest, spread=5 * np.sqrt(2)))
    assert 0.7 <= np.median(seen) <= 0.95


def test_more_runs_show_less() -> None:
    random = np.random.default_rng(24)
    a, b = random.normal(100, 5, 40), random.normal(100, 5, 40)
    few = smallest_difference(a[:10], b[:10], paired=True)
    many = smallest_difference(a, b, paired=True)
    assert few is not None
    assert many is not None
    assert many < few
    assert smallest_difference(a[:5], b[:5], paired=True) is None
    assert runs_needed(effect=0.001, spread=100) is None


# -- verdicts


def one(metric: Metric, a: list[float], b: list[float], *, paired: bool = True, looks: Looks | None = None) -> Finding:
    (found,) = judge([(metric, Sample(a=tuple(a), b=tuple(b), paired=paired))], looks=looks)
    return found


noise = np.random.default_rng(31).normal(0, 2, (2, 12))
base = (200 + noise[0]).tolist()


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    ("shift", "change"), [(50, Change.REGRESSED), (-50, Change.IMPROVED), (0, Change.UNCHANGED), (10, Change.INCONCLUSIVE)]
)
def test_a_verdict_for_each_case(shift: float, change: Change, paired: bool) -> None:
    metric = Metric(name="m", unit="ms", resolution=9.5, margin_share=0)
    found = one(metric, base, (200 + shift + noise[1]).tolist(), paired=paired)
    assert found.change is change
    assert found.difference == pytest.approx(shift, abs=2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high


def test_more_may_be_better() -> None:
    metric = Metric(name="throughput", unit="Mbit/s", more_is_better=True)
    assert one(metric, base, [v + 50 for v in base]).change is Change.IMPROVED
    assert one(metric, base, [v - 50 for v in base]).change is Change.REGRESSED


def test_nothing_is_claimed_below_the_resolution() -> None:
    shifted = [v + 8 for v in base]
    assert one(Metric(name="m", unit="ms", resolution=1, margin_share=0), base, shifted).change is Change.REGRESSED
    assert one(Metric(name="m", unit="ms", resolution=8, margin_share=0), base, shifted).change is not Change.REGRESSED


def test_five_runs_prove_nothing_and_say_so() -> None:
    found = one(TIME, base[:5], [v + 100 for v in base[:5]])
    assert found.change is Change.INCONCLUSIVE
    assert found.smallest is None
    assert "too few" in found.why


def test_an_inconclusive_finding_says_what_it_could_have_shown() -> None:
    found = one(Metric(name="m", unit="ms", margin_share=0.001), base, (200 + noise[1][::-1]).tolist())
    assert found.change is Change.INCONCLUSIVE
    assert found.smallest is not None
    assert f"{found.smallest:.3g} ms or more" in found.why


def test_a_loss_in_every_run_is_seen_and_one_lost_packet_is_not() -> None:
    assert one(LOST, [213.0] * 8, [0.0] * 8).change is Change.IMPROVED
    found = one(LOST, [0.0] * 20, [0.0] * 19 + [1.0])
    assert found.change is Change.INCONCLUSIVE
    assert found.p_value == 1


def test_counts_are_unchanged_only_after_many_runs() -> None:
    few = one(LOST, [0.0] * 8, [0.0] * 8)
    assert few.change is Change.INCONCLUSIVE
    assert "31% of the runs" in few.why
    many = one(LOST, [0.0] * 20, [0.0] * 20)
    assert many.change is Change.UNCHANGED
    assert "fewer than 14%" in many.why


def test_limits_of_a_share() -> None:
    assert upper_limit(0, of=20) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert upper_limit(20, of=20) == 1


def test_missing_values_leave_their_round() -> None:
    nan = float("nan")
    found = one(TIME, [*base, nan, 1.0], [*(v + 50 for v in base), 3.0, nan])
    assert found.runs == (12, 12)
    assert found.change is Change.REGRESSED
    empty = one(TIME, [nan], [nan])
    assert (empty.change, empty.p_value, empty.runs) == (Change.INCONCLUSIVE, None, (0, 0))


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        one(TIME, [1.0], [1.0, 2.0])


def test_what_can_raise_no_alarm_costs_the_others_nothing() -> None:
    weak = Sample(a=(0.0,) * 8, b=(1.0, -2, 3, 4, 5, 6, 7, 8))
    none = Sample(a=(0.0,) * 8, b=(0.0,) * 8)
    few = Sample(a=(0.0,) * 3, b=(9.0,) * 3)
    metric = Metric(name="m", unit="ms", margin_share=0)
    for looks in (None, Looks(at=(8,))):
        found = judge([(LOST, none), (metric, weak), (metric, few), (LOST, few)], looks=looks)
        assert [f.change for f in found] == [Change.INCONCLUSIVE, Change.REGRESSED, Change.INCONCLUSIVE, Change.INCONCLUSIVE]


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# -- looks


def test_a_clear_difference_stops_at_an_early_look() -> None:
    looks = Looks(at=(6, 12, 18, 24))
    random = np.random.default_rng(41)
    a, b = random.normal(200, 3, 24), random.normal(260, 3, 24)
    changes = [one(TIME, a[:n].tolist(), b[:n].tolist(), looks=looks).change for n in looks.at]
    assert changes == [Change.INCONCLUSIVE, Change.REGRESSED, Change.REGRESSED, Change.REGRESSED]


def test_equal_arms_stop_early_too() -> None:
    looks = Looks(at=(10, 20, 30))
    random = np.random.default_rng(42)
    a, b = random.normal(200, 3, 30), random.normal(200, 3, 30)
    changes = [one(TIME, a[:n].tolist(), b[:n].tolist(), looks=looks).change for n in looks.at]
    assert changes[-1] is Change.UNCHANGED
    assert Change.REGRESSED not in changes


def test_a_rejected_metric_leaves_its_share_to_the_others() -> None:
    looks = Looks(at=(8,))
    sure = Sample(a=tuple(range(8)), b=tuple(x + 50.0 for x in range(8)))
    # Only the second rank is against: p = 6/256 = 0.0234 two-sided, so 0.056 / 2 suffices and 0.056 / 3 does not.
    weak = Sample(a=(0.0,) * 8, b=(1.0, -2, 3, 4, 5, 6, 7, 8))
    noisy = Sample(a=(0.0,) * 8, b=(-1.0, 2, -3, 4, -5, 6, -7, 8))
    names = [Metric(name=n, unit="ms", margin_share=0) for n in ("sure", "weak", "noisy")]
    found = judge([(names[2], noisy), (names[1], weak), (names[0], sure)], alpha=0.056, looks=looks)
    assert [f.change for f in found] == [Change.INCONCLUSIVE, Change.REGRESSED, Change.REGRESSED]
    found = judge([(names[2], noisy), (names[1], weak), (names[0], noisy)], alpha=0.056, looks=looks)
    assert [f.change for f in found] == [Change.INCONCLUSIVE] * 3


def test_looks_are_spread_over_the_rounds() -> None:
    assert Looks.up_to(30).at == (6, 11, 16, 20, 25, 30)
    assert Looks.up_to(4).at == (4,)
    assert Looks(at=(10, 20)).spent(0.05, rounds=15) == pytest.approx((0.0125,))
