"""The phases of a migration, and the phase in which each packet was sent."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.evidence import Fate
from harness.analysis.ledger import Ledger
from harness.analysis.sightings import NEVER


class PhaseName(StrEnum):
    BEFORE = "before"
    PRECOPY = "precopy"
    STOPPED = "stopped"
    UNANNOUNCED = "unannounced"
    POSTCOPY_TAIL = "postcopy-tail"
    AFTER = "after"


# `unannounced` and `postcopy-tail` overlap: a packet belongs to the first of these that holds it.
_PRECEDENCE = (
    PhaseName.STOPPED,
    PhaseName.UNANNOUNCED,
    PhaseName.POSTCOPY_TAIL,
    PhaseName.PRECOPY,
    PhaseName.BEFORE,
    PhaseName.AFTER,
)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """From `start_ns`, included, to `end_ns`, not included."""

    name: PhaseName
    start_ns: int
    end_ns: int


class PhaseCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the packets sent in one phase."""

    phase: PhaseName
    sent: int
    delivered: int
    late: int

    @property
    def lost(self) -> int:
        return self.sent - self.delivered


class Milestones(msgspec.Struct, frozen=True, kw_only=True):
    """The times that make the phases, from the timeline and the captures; `None`: it did not happen."""

    start_ns: int
    end_ns: int
    migrate_ns: int | None = None
    stop_ns: int | None = None
    resume_ns: int | None = None
    announced_ns: int | None = None
    """The first frame of the guest at the destination's port."""
    completed_ns: int | None = None
    postcopy: bool = False


def phases(milestones: Milestones) -> tuple[Phase, ...]:
    """The phases in order of their start; those of no length are left out. Without a migration all is `before`.

    A switchover that never resumed ends with `stopped`; a guest that was never heard again leaves `unannounced`
    open to the end.
    """
    m = milestones
    spans: list[tuple[PhaseName, int, int]] = []
    begin = m.stop_ns if m.migrate_ns is None else m.migrate_ns
    spans.append((PhaseName.BEFORE, m.start_ns, m.end_ns if begin is None else begin))
    if begin is not None:
        spans.append((PhaseName.PRECOPY, begin, m.end_ns if m.stop_ns is None else m.stop_ns))
    if m.stop_ns is not None:
        spans.append((PhaseName.STOPPED, m.stop_ns, m.end_ns if m.resume_ns is None else m.resume_ns))
    if m.stop_ns is not None and m.resume_ns is not None:
        announced = m.end_ns if m.announced_ns is None else max(m.announced_ns, m.resume_ns)
        spans.append((PhaseName.UNANNOUNCED, m.resume_ns, announced))
        after = announced
        if m.postcopy:
            tail = m.end_ns if m.completed_ns is None else max(m.completed_ns, m.resume_ns)
            spans.append((PhaseName.POSTCOPY_TAIL, m.resume_ns, tail))
            after = max(after, tail)
        spans.append((PhaseName.AFTER, after, m.end_ns))
    return tuple(Phase(name=name, start_ns=start, end_ns=end) for name, start, end in spans if end > start)


def phase_of(times_ns: NDArray[np.int64], found: Sequence[Phase]) -> NDArray[np.int8]:
    """Index into `found` for each time. What lies before the first phase or behind the last belongs to that one."""
    index = np.full(times_ns.size, -1, dtype=np.int8)
    if not found:
        return index
    inside = np.clip(times_ns, min(p.start_ns for p in found), max(p.end_ns for p in found) - 1)
    for name in reversed(_PRECEDENCE):
        for number, phase in enumerate(found):
            if phase.name is name:
                index[(inside >= phase.start_ns) & (inside < phase.end_ns)] = number
    return index


def sent_by_phase(ledger: Ledger, found: Sequence[Phase]) -> tuple[PhaseCounts, ...]:
    """A stream's packets by the phase they were sent in, by the host's clock where a capture saw them.

    A packet that no capture saw is placed by its sender's clock.
    """
    sent_ns = np.where(ledger.host_sent_ns != NEVER, ledger.host_sent_ns, ledger.sent_ns)
    index = phase_of(sent_ns, found)
    counts = []
    for number, phase in enumerate(found):
        mine = index == number
        counts.append(
            PhaseCounts(
                phase=phase.name,
                sent=int(np.count_nonzero(mine)),
                delivered=int(np.count_nonzero(ledger.fate[mine] == Fate.DELIVERED)),
                late=int(np.count_nonzero(ledger.late[mine])),
            )
        )
    return tuple(counts)
