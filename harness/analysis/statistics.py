"""Medians with bootstrap intervals, and the difference of two series that were measured by turns.

The intervals are percentile intervals. The bias-corrected kind takes its acceleration from a jackknife, which says
nothing sound about a median and is undefined for constant data. Resampling is seeded: the same data give the same
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 9999
_SEED = 20230801
_ROWS_AT_ONCE = 2_000_000


class Median(msgspec.Struct, frozen=True, kw_only=True):
    """`low` and `high` are `None` where there are too few values for an interval (fewer than `FEWEST`)."""

    median: float
    low: float | None
    high: float | None
    count: int
    confidence: float


class Change(StrEnum):
    """What a difference means, where less is better."""

    IMPROVED = "improved"
    REGRESSED = "regressed"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """`b` less `a`, by pairs."""

    a: Median
    b: Median
    difference: Median
    change: Change


FEWEST = 5
"""With fewer values the most extreme ones do not span 90 % of what a median may be."""


def median(values: Sequence[float] | NDArray[np.float64], *, confidence: float = 0.95) -> Median:
    """The median and its interval; raises `ValueError` without values or for one that is not finite."""
    data = np.asarray(values, dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError("a median needs values, all of them finite")
    low = high = None
    if data.size >= FEWEST:
        tail = (1 - confidence) / 2 * 100
        low, high = (float(each) for each in np.percentile(_resampled_medians(data), (tail, 100 - tail)))
    return Median(median=float(np.median(data)), low=low, high=high, count=data.size, confidence=confidence)


def compare(a: Sequence[float], b: Sequence[float], *, resolution: float, confidence: float = 0.95) -> Difference:
    """Compare series measured by turns (ABAB...): run k of `a` is paired with run k of `b`, so that drift cancels out.

    `resolution` is what the calibration allows to claim, in the unit of the values: a difference whose interval does
    not leave +-`resolution` behind is never called a change. Raises `ValueError` for series of different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"series measured by turns have equal lengths, not {len(a)} and {len(b)}")
    pairs = median(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64), confidence=confidence)
    return Difference(
        a=median(a, confidence=confidence),
        b=median(b, confidence=confidence),
        difference=pairs,
        change=_judge(pairs, resolution),
    )


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, resolution: float, confidence: float = 0.95
) -> tuple[Median, Change]:
    """The median of `b` less `a` by pairs, and what it may be called; as `compare`."""
    found = compare(a, b, resolution=resolution, confidence=confidence)
    return found.difference, found.change


def unpaired_difference(
    a: Sequence[float], b: Sequence[float], *, resolution: float, confidence: float = 0.95
) -> tuple[Median, Change]:
    """The median of `b` less that of `a`, for series that were not measured by turns; their lengths may differ."""
    first, second = (np.asarray(each, dtype=np.float64) for each in (a, b))
    if not first.size or not second.size or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a difference needs values on both sides, all of them finite")
    low = high = None
    count = min(first.size, second.size)
    if count >= FEWEST:
        tail = (1 - confidence) / 2 * 100
        resampled = _resampled_medians(second, seed=_SEED + 1) - _resampled_medians(first)
        low, high = (float(each) for each in np.percentile(resampled, (tail, 100 - tail)))
    middle = float(np.median(second) - np.median(first))
    found = Median(median=middle, low=low, high=high, count=count, confidence=confidence)
    return found, _judge(found, resolution)


def _judge(difference: Median, resolution: float) -> Change:
    low, high = difference.low, difference.high
    if low is None or high is None:
        return Change.INCONCLUSIVE
    if high < -resolution:
        return Change.IMPROVED
    if low > resolution:
        return Change.REGRESSED
    if -resolution <= low and high <= resolution:
        return Change.UNCHANGED
    return Change.INCONCLUSIVE


def _resampled_medians(data: NDArray[np.float64], *, seed: int = _SEED) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    found = []
    at_once = max(_ROWS_AT_ONCE // data.size, 1)
    for start in range(0, _RESAMPLES, at_once):
        rows = min(at_once, _RESAMPLES - start)
        found.append(np.median(data[random.integers(0, data.size, size=(rows, data.size))], axis=1))
    return np.concatenate(found)
