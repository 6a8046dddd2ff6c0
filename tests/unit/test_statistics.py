"""Medians and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.statistics import FEWEST, median

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


def test_the_interval_of_many_values_covers_the_truth_too() -> None:
    random = np.random.default_rng(2)
    found = [median(random.exponential(10, 300)) for _ in range(300)]
    truth = 10 * np.log(2)
    assert 275 <= sum(each.low <= truth <= each.high for each in found if each.low is not None and each.high is not None) <= 298


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
