"""Which of two known groups a growing series of runs belongs to, with as few runs as the groups' distance allows.

The groups are the two ends of a bisection. A threshold stands half-way between their medians. How often a run of either end falls on the wrong
side says how many more readings on one side than on the other decide (Wald's sequential test of two proportions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np

__all__ = ["ERROR", "Boundary", "Side", "between", "decide"]

ERROR = 0.01
"""How often one commit may be called the wrong side of the threshold, if its runs fall as those of the ends did."""
_MOST_WRONG = 0.4
"""Ends that overlap more than this are no ends."""


class Side(StrEnum):
    GOOD = "good"
    BAD = "bad"


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """`wrong`: the share of the ends' runs on the wrong side, never taken as 0; `lead`: by how many readings one side must lead."""

    threshold: float
    wrong: float
    lead: int


def between(good: Sequence[float], bad: Sequence[float], *, threshold: float | None = None) -> Boundary | None:
    """The boundary between two ends, or None where they overlap too much to tell one run of them from another.

    Less is better: a run above the threshold counts as bad. Raises `ValueError` for an end without values.
    """
    if not good or not bad:
        raise ValueError("both ends need values")
    if threshold is None:
        threshold = (float(np.median(good)) + float(np.median(bad))) / 2
    # one wrong run more than was seen, as the ends have shown only a few (Laplace's rule)
    shares = ((sum(x > threshold for x in good) + 1) / (len(good) + 2), (sum(x <= threshold for x in bad) + 1) / (len(bad) + 2))
    wrong = max(shares)
    if wrong > _MOST_WRONG:
        return None
    step = math.log((1 - wrong) / wrong)
    return Boundary(threshold=threshold, wrong=wrong, lead=math.ceil(math.log((1 - ERROR) / ERROR) / step))


def decide(values: Sequence[float], boundary: Boundary) -> Side | None:
    """The side that leads by enough readings, as of the first time that one did; None while neither does."""
    ahead = 0
    for value in values:
        ahead += 1 if value > boundary.threshold else -1
        if abs(ahead) >= boundary.lead:
            return Side.BAD if ahead > 0 else Side.GOOD
    return None
