"""Permutation tests: exact where the null distribution can be counted out, seeded draws where it can't.

All tests here are one-sided: how probable is so large a statistic if nothing but chance decided which sign a difference has
(pairs), or which arm a run belongs to (two independent series). Nothing is assumed of how the values are distributed. Times are
scored by their ranks, so that one stalled run does not decide; counts are scored by themselves, since what is asked
is how many packets were lost. A run, never a packet, is the unit that is drawn: packets of one run share its fate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Scores", "first_crossing", "paired_p", "rank_sum_p", "signed_scores"]

Floats = NDArray[np.float64]

DRAWS = 9999
_SEED = 20231107
_LONGEST_COUNT = 4_000_000
_CELLS_AT_ONCE = 4_000_000


class Scores(StrEnum):
    """What a difference counts for in the statistic."""

    RANK = "rank"
    VALUE = "value"


def signed_scores(differences: Floats, *, scores: Scores) -> Floats:
    """Scores with their signs along the last axis; a difference of 0 takes its rank and counts nothing (Pratt)."""
    sizes = np.abs(differences)
    weights = stats.rankdata(sizes, axis=-1) if scores is Scores.RANK else sizes
    found: Floats = np.sign(differences) * weights
    return found


def paired_p(differences: Sequence[float] | Floats, *, scores: Scores) -> float:
    """The probability of so large a sum of signed scores when every sign is the toss of a coin. Exact for ranks and for
    whole numbers up to a total of some millions; else from seeded draws, with the data as one of them."""
    signed = signed_scores(np.asarray(differences, dtype=np.float64), scores=scores)
    weights = np.abs(signed)
    whole = np.rint(2 * weights).astype(np.int64)
    if not whole.any():
        return 1.0
    divisor = int(np.gcd.reduce(whole))
    if np.array_equal(whole, 2 * weights) and int(whole.sum()) // divisor <= _LONGEST_COUNT:
        observed = int(whole[signed > 0].sum()) // divisor
        return float(min(_subset_sums(whole // divisor)[observed:].sum(), 1.0))
    signs = _signs(weights.size, DRAWS).astype(np.float64)
    reached = np.count_nonzero(weights @ signs >= signed.sum() * (1 - 1e-12))
    return float((1 + reached) / (DRAWS + 1))


def rank_sum_p(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """The probability of so large ranks of `b` when the arms were dealt by chance. Exact, ties included, to 80 values in all;
    beyond by the normal approximation with its corrections."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not a.size or not b.size:
        return 1.0
    if a.size + b.size > 80:
        return float(stats.mannwhitneyu(b, a, alternative="greater", method="asymptotic").pvalue)
    ranks = np.rint(2 * stats.rankdata(np.concatenate((a, b)))).astype(np.int64)
    observed = int(ranks[a.size :].sum())
    ways = np.zeros((b.size + 1, int(ranks.sum()) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    return float(min(ways[b.size, observed:].sum() / math.comb(a.size + b.size, b.size), 1.0))


def first_crossing(
    differences: Floats, *, looks: Sequence[int], spent: Sequence[float], scores: Scores, draws: int = DRAWS
) -> NDArray[np.int64]:
    """Group-sequential tests of many series at once, a row each: the first look at which the sum of signed scores passes its
    boundary, or -1.

    Look k sees the first `looks[k]` columns. Its boundary is chosen among the same draws of signs for all looks, such that no more than the
    share `spent[k]` of them has passed a boundary up to then: whatever the number of looks, a series without an effect crosses
    with a probability of at most `spent[-1]`.
    """
    rows = np.atleast_2d(differences)
    found = np.full(rows.shape[0], -1, dtype=np.int64)
    if not looks:
        return found
    signs = _signs(looks[-1], draws)
    at_once = max(_CELLS_AT_ONCE // draws, 1)
    for start in range(0, rows.shape[0], at_once):
        block = rows[start : start + at_once]
        found[start : start + at_once] = _crossings(block, looks, spent, scores, signs)
    return found


def _crossings(
    block: Floats, looks: Sequence[int], spent: Sequence[float], scores: Scores, signs: NDArray[np.float32]
) -> NDArray[np.int64]:
    found = np.full(block.shape[0], -1, dtype=np.int64)
    used = np.zeros(block.shape[0], dtype=np.int64)
    out = np.zeros((block.shape[0], signs.shape[1]), dtype=np.bool_)
    for look, (size, share) in enumerate(zip(looks, spent, strict=True)):
        signed = signed_scores(block[:, :size], scores=scores)
        # The data themselves are one of the draws: one fewer may pass.
        allowed = np.maximum(int(share * (signs.shape[1] + 1) + 1e-9) - 1 - used, -1)
        if (allowed < 0).all():
            continue
        # Sums of half ranks are exact in single precision, and twice as fast; counts may be large.
        drawn = np.abs(signed).astype(np.float32) @ signs[:size] if scores is Scores.RANK else np.abs(signed) @ signs[:size]
        drawn[out] = -np.inf
        for row in range(block.shape[0]):
            if allowed[row] < 0:
                continue
            boundary = np.partition(drawn[row], -1 - allowed[row])[-1 - allowed[row]]
            out[row] |= drawn[row] > boundary
            used[row] = np.count_nonzero(out[row])
            if found[row] < 0 and signed[row].sum() > boundary:
                found[row] = look
    return found


@functools.lru_cache(maxsize=4)
def _signs(size: int, draws: int) -> NDArray[np.float32]:
    """Seeded, and the same beginning for every size."""
    random = np.random.default_rng(_SEED)
    return random.integers(0, 2, size=(size, draws)).astype(np.float32) * 2 - 1


def _subset_sums(weights: NDArray[np.int64]) -> Floats:
    """The probability of each sum of those weights that a coin picks."""
    found = np.zeros(int(weights.sum()) + 1)
    found[0] = 1.0
    for weight in weights[weights > 0]:
        found[weight:] += found[: found.size - weight].copy()
        found /= 2
    return found
