"""From a guest's clock to the host's, across stops during which the guest's clock stands still.

Between two stops the guest's clock less the host's is a straight line: an offset and a drift. A packet that a TAP saw
at host time h and the guest received at guest time g gives g - h, which is never below the offset, but for the way into
the guest; the line is the highest one below all of them. A stop shows as a step of the offset by the time stopped.
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

_FEWEST = 10
_SHORTEST_NS = 1_000_000_000
"""In less time no drift can be told from the noise of the way into the guest; it then does no harm either."""
_MOST_DRIFT = 5e-4
"""Clocks that differ by more than 500 ppm are not calibrated; the kernel's own NTP slew ends there too."""
_BACKLOG_NS = 1_000_000
"""What waited longer than this in or before a busy guest says nothing about its clock."""


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

    def to_host(self, guest_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        # The drift is some 1e-4 at most: one step from the segment's own origin is exact to some nanoseconds.
        mapped: NDArray[np.int64] = guest_ns - self.offset_at(guest_ns - np.int64(self.offset_ns))
        return mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockMap:
    """Maps a guest's receive times; made by `fit_clock`."""

    segments: tuple[_Segment, ...]
    windows: tuple[StopWindow, ...]

    @property
    def drift_ppm(self) -> float:
        """How much faster than the host's the guest's clock goes."""
        return self.segments[0].drift * 1e6

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
            mapped = segment.to_host(guest_ns)
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
    # Of frames that waited for RESUME the captures don't say when the guest had them: that is to be measured, not assumed.
    known = (host != NEVER) & (guest != NEVER) & ~carried & ~_waited(host, windows)
    host, guest = host[known], guest[known]
    bounds = [np.iinfo(np.int64).min, *(w.resume_ns for w in windows), np.iinfo(np.int64).max]
    stops = [*(w.stop_ns for w in windows), np.iinfo(np.int64).max]
    stretches = []
    for start, stop in zip(bounds[:-1], stops, strict=True):
        mine = (host >= start) & (host < stop)
        if np.count_nonzero(mine) < _FEWEST:
            return None
        stretches.append((start, host[mine], guest[mine] - host[mine]))
    drift = _common_drift([(times, difference) for _, times, difference in stretches])
    segments = tuple(_lay(times, difference, start, drift) for start, times, difference in stretches)
    return ClockMap(segments=segments, windows=tuple(windows))


def with_clock(ledger: Ledger, clock: ClockMap) -> Ledger:
    """The same account with delivery times that count the way into the guest, and the frame QEMU held over a stop.

    The captures say when the guest could have a frame at the earliest, its own clock when it had it: the later one
    is taken; for a frame that waited for RESUME the guest's clock alone, so that the STOP and RESUME events have
    no part in the time. Streams that the guest does not receive are returned as they are.
    """
    if ledger.direction is not Direction.TO_GUEST:
        return ledger
    known = (ledger.delivered_ns != NEVER) & (ledger.received_ns != NEVER)
    mapped = np.maximum(clock.to_host(ledger.received_ns), ledger.delivered_ns)
    for segment, window in zip(clock.segments[1:], clock.windows, strict=True):
        # Captured after the stop, so received after it: a time at which the clock stood still is no question here.
        waited = _waited(ledger.delivered_ns, (window,))
        mapped[waited] = segment.to_host(ledger.received_ns[waited])
    return replace(ledger, delivered_ns=np.where(known, mapped, ledger.delivered_ns))


def _waited(delivered_ns: NDArray[np.int64], windows: Sequence[StopWindow]) -> NDArray[np.bool_]:
    """Frames that are held to be delivered at RESUME because they were on their way while the guest was stopped."""
    mask: NDArray[np.bool_] = np.isin(delivered_ns, [window.resume_ns for window in windows])
    return mask


def _common_drift(stretches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> float:
    """The drift of lines that lie below all differences and as near to them as can be; one for all stretches.

    A migrated guest keeps its clock source and its calibration, so the drift is one; fitted to a single short stretch
    it would follow the guest's own backlog. The sum of the heights above the lines is convex in the drift.
    """
    span_ns = max(int(times.max() - times.min()) for times, _ in stretches)
    if span_ns < _SHORTEST_NS:
        return 0.0
    centred = [(times - times.min(), (difference - difference.min()).astype(np.float64)) for times, difference in stretches]

    def height(drift: float) -> float:
        total = 0.0
        for times, difference in centred:
            above = difference - drift * times
            total += float(np.minimum(above - above.min(), _BACKLOG_NS).sum())
        return total

    low, high = -_MOST_DRIFT, _MOST_DRIFT
    for _ in range(40):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if height(first) <= height(second):
            high = second
        else:
            low = first
    return (low + high) / 2


def _lay(times: NDArray[np.int64], difference: NDArray[np.int64], start_ns: int, drift: float) -> _Segment:
    """The highest line of that drift below all differences: nothing arrives before it was sent."""
    origin = int(times.min())
    floor = int(difference.min())
    above = (difference - floor) - drift * (times - origin)
    return _Segment(start_ns=start_ns, origin_ns=origin, offset_ns=floor + float(above.min()), drift=drift)
