"""Medians, their intervals, and what a difference may be called."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.statistics import FEWEST, Change, compare, median

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

finite = st.floats(-1e6, 1e6)


@unhurried
@given(st.lists(finite, min_size=FEWEST, max_size=30))
def test_the_interval_holds_the_median_and_lies_within_the_data(values: list[float]) -> None:
    found = median(values)
    assert found.low is not None
    assert found.high is not None
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found == median(values)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = median(random.normal(10, 1, 25))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 10 <= found.high
    assert 180 <= hits <= 200


def test_constant_data_have_an_interval_of_no_width() -> None:
    found = median([3.0] * 10)
    assert (found.median, found.low, found.high) == (3, 3, 3)


def test_few_values_have_no_interval() -> None:
    found = median([1, 2, 3, 4])
    assert (found.median, found.low, found.high, found.count) == (2.5, None, None, 4)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_figure_without_figures(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        median(values)


drift = np.linspace(0, 500, 20)
noise = np.random.default_rng(2).normal(0, 1, 20)


@pytest.mark.parametrize(
    ("shift", "resolution", "change"),
    [
        (-10, 2, Change.IMPROVED),
        (10, 2, Change.REGRESSED),
        (0, 2, Change.UNCHANGED),
        (10, 10, Change.INCONCLUSIVE),
        (10, 50, Change.UNCHANGED),
    ],
)
def test_pairs_take_the_drift_out(shift: float, resolution: float, change: Change) -> None:
    a = drift + noise
    b = drift + shift + noise[::-1]
    found = compare(a.tolist(), b.tolist(), resolution=resolution)
    assert found.change is change
    assert found.difference.median == pytest.approx(shift, abs=1.5)


def test_few_pairs_prove_nothing() -> None:
    assert compare([100.0] * 4, [1.0] * 4, resolution=1).change is Change.INCONCLUSIVE
    assert compare([100.0] * 5, [1.0] * 5, resolution=1).change is Change.IMPROVED


def test_unequal_series_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        compare([1.0], [1.0, 2.0], resolution=1)
