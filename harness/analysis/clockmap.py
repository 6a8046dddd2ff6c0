"""From a guest's clock to the host's, across stops during which the guest's clock stands still.

Between two stops the guest's clock less the host's is a straight line: an offset and a drift. A packet that a TAP saw
at host time h and the guest received at guest time g gives g - h, which is never below the offset, but for the way into
the guest; the smallest differences are the line. A stop shows as a step of the offset by the time stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.ledger import Ledger
from harness.analysis.sightings import NEVER, StopWindow
from harness.model.scenario import Direction

_BINS = 32
_FEWEST = 10


class ClockStep(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's clock less the host's changed by `step_ns` across a stop of `stopped_ns`."""

    stop_ns: int
    stopped_ns: int
    step_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    start_ns: int
    """Host time."""
    origin_ns: int
    offset_ns: float
    drift: float

    def offset_at(self, host_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        offset: NDArray[np.int64] = np.rint(self.offset_ns + self.drift * (host_ns - self.origin_ns)).astype(np.int64)
        return offset


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockMap:
    """Maps a guest's receive times; made by `fit_clock`."""

    segments: tuple[_Segment, ...]
    windows: tuple[StopWindow, ...]

    @property
    def steps(self) -> tuple[ClockStep, ...]:
        """What the guest's clock did at each stop."""
        found = []
        for window, before, after in zip(self.windows, self.segments, self.segments[1:], strict=False):
            ends = np.array([window.stop_ns, window.resume_ns])
            step_ns = int(after.offset_at(ends[1:])[0] - before.offset_at(ends[:1])[0])
            stopped_ns = window.resume_ns - window.stop_ns
            found.append(ClockStep(stop_ns=window.stop_ns, stopped_ns=stopped_ns, step_ns=step_ns))
        return tuple(found)

    def to_host(self, guest_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Host times of guest times. A time at which the guest's clock stood still maps to before the stop."""
        host_ns = np.empty(guest_ns.size, dtype=np.int64)
        todo = np.ones(guest_ns.size, dtype=np.bool_)
        for number, segment in enumerate(self.segments):
            # The drift is some 1e-5 at most: one step from the segment's own origin is exact to the nanosecond.
            guess = guest_ns - np.int64(segment.offset_ns)
            mapped = guest_ns - segment.offset_at(guess)
            last = number + 1 == len(self.segments)
            mine = todo if last else todo & (mapped <= self.windows[number].stop_ns)
            host_ns[mine] = mapped[mine]
            todo &= ~mine
        return host_ns


def fit_clock(ledgers: Sequence[Ledger], *, windows: Sequence[StopWindow]) -> ClockMap | None:
    """The map from the clock of the guest that received these streams; `None` if a segment has too few packets.

    Takes the streams to the guest; their probes must have been captured at the TAP. Exact to the shortest way from the
    TAP into the guest, which it counts as nothing: some 0.1 ms under TCG.
    """
    usable = [ledger for ledger in ledgers if ledger.direction is Direction.TO_GUEST]
    if not usable:
        return None
    host, guest = (
        np.concatenate([getattr(ledger, name) for ledger in usable]) for name in ("delivered_ns", "received_ns")
    )
    carried = np.concatenate([ledger.passed for ledger in usable])
    known = (host != NEVER) & (guest != NEVER) & ~carried
    host, guest = host[known], guest[known]
    bounds = [np.iinfo(np.int64).min, *(w.resume_ns for w in windows), np.iinfo(np.int64).max]
    stops = [*(w.stop_ns for w in windows), np.iinfo(np.int64).max]
    segments = []
    for start, stop in zip(bounds[:-1], stops, strict=True):
        mine = (host >= start) & (host < stop)
        if np.count_nonzero(mine) < _FEWEST:
            return None
        segments.append(_fit(host[mine], guest[mine], start))
    return ClockMap(segments=tuple(segments), windows=tuple(windows))


def with_clock(ledger: Ledger, clock: ClockMap) -> Ledger:
    """The same account with delivery times that count the way into the guest, and the frame QEMU held over a stop.

    The captures say when the guest could have a frame at the earliest, its own clock when it had it: the later one
    is taken. Streams that the guest does not receive are returned as they are.
    """
    if ledger.direction is not Direction.TO_GUEST:
        return ledger
    known = (ledger.delivered_ns != NEVER) & (ledger.received_ns != NEVER)
    mapped = np.maximum(clock.to_host(ledger.received_ns), ledger.delivered_ns)
    return replace(ledger, delivered_ns=np.where(known, mapped, ledger.delivered_ns))


def _fit(host: NDArray[np.int64], guest: NDArray[np.int64], start_ns: int) -> _Segment:
    """A line through the smallest differences: one in each of some equal stretches of time."""
    origin = int(host.min())
    difference = guest - host
    floor = int(difference.min())
    place = ((host - origin) * _BINS // max(int(host.max()) - origin + 1, 1)).astype(np.int64)
    lowest = np.full(_BINS, np.iinfo(np.int64).max)
    np.minimum.at(lowest, place, difference)
    filled = np.flatnonzero(np.bincount(place, minlength=_BINS) >= _FEWEST)
    if filled.size < _BINS // 2:
        return _Segment(start_ns=start_ns, origin_ns=origin, offset_ns=float(floor), drift=0.0)
    width = (int(host.max()) - origin + 1) / _BINS
    times = (filled + 0.5) * width
    drift, height = np.polyfit(times, (lowest[filled] - floor).astype(np.float64), 1)
    return _Segment(start_ns=start_ns, origin_ns=origin, offset_ns=floor + float(height), drift=float(drift))
