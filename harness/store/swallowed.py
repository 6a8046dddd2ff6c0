"""The frames that a source QEMU took from its TAP and its guest never got: parked ones, purged ones, and those of which neither is known.

QEMU reads a TAP in order and parks one frame a queue: while it holds that one it reads no more. So a frame behind which it read on was not
parked but freed: purged by the stop path. And a frame behind which others wait unread was parked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.analysis.columns import Columns
from harness.analysis.evidence import ProbeSet
from harness.model.facts import MigrationFacts, RunFacts
from harness.store.frames import probes_of, read_frames
from harness.store.rundir import RunDirectory

__all__ = ["Swallowed", "find_swallowed"]

_STOCK = frozenset({"none", "tap-handover"})
"""Mechanisms in which QEMU itself does nothing for the frames; what others made of them is not for this rule to say."""


@dataclass(frozen=True)
class Swallowed:
    """Probes of one switchover; `parked` and `purged` are parts of `every`. `figures` count frames of any kind."""

    every: ProbeSet
    parked: ProbeSet
    purged: ProbeSet
    figures: dict[str, float]


def find_swallowed(run: RunDirectory, facts: RunFacts, migration: MigrationFacts) -> Swallowed | None:
    """`None` where it is not known what the guest got or what waited."""
    if migration.undelivered_file is None or migration.stranded_file is None:
        return None
    undelivered = read_frames(run.path / migration.undelivered_file)
    count = migration.taken
    waiting = len(read_frames(run.path / migration.stranded_file))
    if count is None:  # older runs: the queue held all that QEMU had not read, unless it overflowed
        count = max(0, len(undelivered) - waiting)

    def probes(first: int, last: int) -> ProbeSet:
        return probes_of(_rows(undelivered, first, last), nonce=facts.nonce)

    every = probes(0, count)
    if migration.mechanism not in _STOCK:
        return Swallowed(every=every, parked=frozenset(), purged=frozenset(), figures={})
    parked = 1 if count and waiting else 0
    purged = count - 1 if count else 0
    figures = {"purged_frames": float(purged), "parked_frames": float(parked)}
    return Swallowed(every=every, parked=probes(count - parked, count), purged=probes(0, purged), figures=figures)


def _rows(columns: Columns, first: int, last: int) -> Columns:
    return columns.select(np.arange(first, min(last, len(columns))))
