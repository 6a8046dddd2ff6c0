"""When each probe of a stream was seen at a capture point, and when it reached its receiver by the host's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import Columns
from harness.errors import UsageError

NEVER = -1
"""In arrays of times: not seen."""


class StopWindow(msgspec.Struct, frozen=True, kw_only=True):
    """An interval in which the mobile guest ran nowhere: from STOP to RESUME."""

    stop_ns: int
    resume_ns: int


class SequenceIndex:
    """Finds the place of sequence numbers in a stream's list of sent ones.

    Sequence numbers are 64 bits wide and do not wrap. Raises `UsageError` if one was sent twice.
    """

    def __init__(self, sent: NDArray[np.uint64], *, name: str) -> None:
        self.seq = np.sort(sent) if (sent[1:] <= sent[:-1]).any() else sent
        twice = np.flatnonzero(self.seq[1:] == self.seq[:-1])
        if twice.size:
            raise UsageError(f"stream {name}: sequence number {self.seq[twice[0]]} stands twice among the sent ones")
        self._first = self.seq[0] if self.seq.size else np.uint64(0)
        self._dense = self.seq.size > 0 and int(self.seq[-1]) - int(self._first) + 1 == self.seq.size

    def __len__(self) -> int:
        return self.seq.size

    def find(self, seq: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Index of each number in `seq`, -1 for one that was never sent."""
        if not len(self):
            return np.full(seq.size, -1, dtype=np.int64)
        if self._dense:
            at = seq - self._first  # unsigned: a smaller number becomes a huge one
            return np.where(at < np.uint64(len(self)), at, np.uint64(0xFFFFFFFFFFFFFFFF)).astype(np.int64)
        at = np.minimum(np.searchsorted(self.seq, seq), len(self) - 1)
        return np.where(self.seq[at] == seq, at, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """Per sent probe: first and last time at one point in one direction (`NEVER`), and how many copies."""

    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    copies: NDArray[np.uint16]

    @property
    def seen(self) -> NDArray[np.bool_]:
        return self.copies > 0


def no_sightings(count: int) -> Sightings:
    """Of `count` probes, none."""
    never = np.full(count, NEVER, dtype=np.int64)
    return Sightings(first_ns=never, last_ns=never, copies=np.zeros(count, dtype=np.uint16))


def find_sightings(
    columns: Columns | None, index: SequenceIndex, *, stream: int, nonce: int, probe: int, direction: int
) -> Sightings:
    """The sightings of a stream's probes (`probe`: which kind, as in `columns`) that went in `direction`."""
    if columns is None:
        return no_sightings(len(index))
    mine = (columns.probe == probe) & (columns.direction == direction) & (columns.probe_stream == stream)
    mine &= columns.probe_nonce == nonce
    rows = np.flatnonzero(mine)
    at = index.find(columns.probe_seq[rows])
    known = at >= 0
    if not known.all():
        rows, at = rows[known], at[known]
    time_ns = columns.time_ns[rows]
    copies = np.minimum(np.bincount(at, minlength=len(index)), 0xFFFF).astype(np.uint16)
    last = np.full(len(index), NEVER, dtype=np.int64)
    # Of several values for one place numpy keeps the last one.
    last[at] = time_ns
    first = last
    if (copies > 1).any():
        first = last.copy()
        first[at[::-1]] = time_ns[::-1]
    return Sightings(first_ns=first, last_ns=last, copies=copies)


def delivered_to_guest_ns(
    *, source: Sightings, destination: Sightings, carried: NDArray[np.bool_], windows: Sequence[StopWindow]
) -> NDArray[np.int64]:
    """When the guest could have each frame, at the earliest, on the host's clock (`NEVER` where no TAP saw it).

    A running QEMU reads a TAP at once, so that is the frame's time on the TAP that the guest read it from: the source's
    before STOP, the destination's after, or for a frame that a mechanism carried over (`carried`). What lay in
    a queue while the guest was stopped is delivered at RESUME. One frame a queue may be off: that which QEMU
    had read and not delivered when it stopped counts as delivered before STOP if it was not carried over.
    """
    first_stop_ns = min((window.stop_ns for window in windows), default=np.iinfo(np.int64).max)
    at_source = source.seen & ~carried & (source.first_ns < first_stop_ns)
    time_ns = np.where(at_source | ~destination.seen, source.first_ns, destination.last_ns)
    for window in windows:
        waiting = (time_ns >= window.stop_ns) & (time_ns < window.resume_ns)
        time_ns[waiting] = window.resume_ns
    only_carried = carried & ~destination.seen & (time_ns != NEVER)
    if windows:
        # Carried over inside the migration stream: no TAP of the destination saw it.
        time_ns[only_carried] = np.maximum(time_ns[only_carried], windows[-1].resume_ns)
    return time_ns
