"""Medians with bootstrap intervals.

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
from scipy import stats

_RESAMPLES = 9999
_SEED = 20230801
_ROWS_AT_ONCE = 2_000_000
_MANY = 200


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


FEWEST = 5
"""With fewer values the most extreme ones do not span 90 % of what a median may be."""


def median(values: Sequence[float] | NDArray[np.float64], *, confidence: float = 0.95) -> Median:
    """The median and its interval; raises `ValueError` without values or for one that is not finite."""
    data = np.asarray(values, dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError("a median needs values, all of them finite")
    low = high = None
    if data.size > _MANY:
        # As good as resampling with so many, and exact: the order statistics between which a coin's heads fall.
        rank = int(stats.binom.ppf((1 - confidence) / 2, data.size, 0.5))
        ordered = np.sort(data)
        low, high = float(ordered[rank - 1]), float(ordered[-rank])
    elif data.size >= FEWEST:
        tail = (1 - confidence) / 2 * 100
        low, high = (float(each) for each in np.percentile(_resampled_medians(data), (tail, 100 - tail)))
    return Median(median=float(np.median(data)), low=low, high=high, count=data.size, confidence=confidence)


def _resampled_medians(data: NDArray[np.float64]) -> NDArray[np.float64]:
    random = np.random.default_rng(_SEED)
    found = []
    at_once = max(_ROWS_AT_ONCE // data.size, 1)
    for start in range(0, _RESAMPLES, at_once):
        rows = min(at_once, _RESAMPLES - start)
        found.append(np.median(data[random.integers(0, data.size, size=(rows, data.size))], axis=1))
    return np.concatenate(found)
