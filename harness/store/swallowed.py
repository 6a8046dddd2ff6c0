"""The frames that a source QEMU took from its TAP and its guest never got: parked ones, purged ones, and those of which neither is known.

QEMU reads a TAP in order and parks one frame a queue: while it holds that one it reads no more. So a frame behind which it read on was not
parked but freed: purged by the stop path. And a frame behind which others wait unread was parked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.analysis.columns import Columns
from harness.analysis.evidence import ProbeSet
from harness.model.facts import MigrationFacts, QueueFacts, RunFacts
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
    waiting = len(read_frames(run.path / migration.stranded_file))
    queues = migration.queues or (QueueFacts(undelivered=len(undelivered), waiting=waiting),)

    def probes(ranges: list[tuple[int, int]]) -> ProbeSet:
        return frozenset().union(*(probes_of(_rows(undelivered, first, last), nonce=facts.nonce) for first, last in ranges))

    every, parked, purged = list[tuple[int, int]](), list[tuple[int, int]](), list[tuple[int, int]]()
    first = 0
    for queue in queues:
        # Without the TAP's own counter (older runs, several queues): the queue held all that QEMU had not read, unless it overflowed.
        count = migration.taken if migration.taken is not None and not migration.queues else max(0, queue.undelivered - queue.waiting)
        every.append((first, first + count))
        if count:
            parked.append((first + count - (1 if queue.waiting else 0), first + count))
            purged.append((first, first + count - 1))
        first += queue.undelivered
    if migration.mechanism not in _STOCK:
        return Swallowed(every=probes(every), parked=frozenset(), purged=frozenset(), figures={})
    figures = {f"{name}_frames": float(sum(last - at for at, last in ranges)) for name, ranges in (("purged", purged), ("parked", parked))}
    return Swallowed(every=probes(every), parked=probes(parked), purged=probes(purged), figures=figures)


def _rows(columns: Columns, first: int, last: int) -> Columns:
    return columns.select(np.arange(first, min(last, len(columns))))
