"""How long an end of a TCP connection was silent across a stop, and how long its clock stood still there.

Two figures of one thing, from a capture at the other end alone; neither knows the STOP and RESUME events' times:

- the **silence**: from the last segment of any kind that it sent to the next one, less the time that usually passes between two of
  its segments. It is what the peer has of a stop: the stop itself, and what the guest needs to answer again. Acknowledged bytes tell
  less of that: they move on when the backlog has been dealt with.
- the **clock's loss**: how much further the host's clock went in it than the sender's, by its TCP timestamps (RFC 7323). A stopped
  guest's clock stands still, while that of one whose processors wait for the host's goes on; so it is the stop alone. Timestamps
  tick once a millisecond (Linux since 4.13). Each side of the silence has its line, host time less the sender's, and no segment is
  seen before it was stamped: the line is the lowest difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.sightings import StopWindow

__all__ = ["TICK_NS", "Silence", "find_silence"]

TICK_NS = 1_000_000
"""Of Linux's TCP timestamps."""
_LOOK_NS = 1_000_000_000
"""How much of the connection on either side says what is usual."""
_FEWEST = 20
_TICK_ERROR = 0.02
"""A clock that a hypervisor's guest keeps is off by less; the next other ticks in use are 4 ms and 1 us."""
_WRAP = 1 << 32


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """`usual_ns`: the median time between two segments in the second before; `longest_usual_ns`: that which 99 of 100 don't exceed.

    `clock_lost_ns`: `None` where the sender's timestamps don't tell.
    """

    start_ns: int
    end_ns: int
    usual_ns: int
    longest_usual_ns: int
    clock_lost_ns: int | None

    @property
    def duration_ns(self) -> int:
        return max(0, self.end_ns - self.start_ns - self.usual_ns)


def find_silence(emitted: NDArray[np.int64], *, windows: Sequence[StopWindow] = ()) -> Silence | None:
    """The longest silence that overlaps a stop; without stops the longest of all.

    `emitted`: two rows, the sorted times of one end's segments, and its timestamps. `None` where less than 20 segments in the second
    before say what is usual, or none follows.
    """
    times = emitted[0]
    if times.size < _FEWEST:
        return None
    gaps = np.diff(times)
    mine = np.ones(gaps.size, dtype=np.bool_)
    if windows:
        mine[:] = False
        for window in windows:
            mine |= (times[:-1] < window.resume_ns) & (times[1:] > window.stop_ns)
    if not mine.any():
        return None
    at = int(np.flatnonzero(mine)[gaps[mine].argmax()])
    before = gaps[int(np.searchsorted(times, times[at] - _LOOK_NS)) : at]
    if before.size < _FEWEST - 1:
        return None
    usual, longest = np.percentile(before, (50, 99), method="higher")
    return Silence(
        start_ns=int(times[at]), end_ns=int(times[at + 1]), usual_ns=int(usual), longest_usual_ns=int(longest),
        clock_lost_ns=_clock_lost_ns(emitted, at=at),
    )  # fmt: skip


def _clock_lost_ns(emitted: NDArray[np.int64], *, at: int) -> int | None:
    """How much the lowest difference between host's and sender's time grew from before segment `at` + 1 to after it."""
    times, stamps = emitted
    near = (times >= times[at] - _LOOK_NS) & (times <= times[at + 1] + _LOOK_NS) & (stamps != 0)
    first = int(np.count_nonzero(near[: at + 1]))
    times, stamps = times[near], stamps[near]
    if min(first, times.size - first) < _FEWEST:
        return None
    # The low 32 bits count on from segment to segment; one that overtook another steps back.
    steps = (np.diff(stamps) + _WRAP // 2) % _WRAP - _WRAP // 2
    sender_ns = np.concatenate(([0], np.cumsum(steps))) * TICK_NS
    lowest = []
    for begin, end in pairwise((0, first, times.size)):
        if not _ticks_in_ms(times[begin:end], sender_ns[begin:end]):
            return None
        lowest.append(int((times[begin:end] - sender_ns[begin:end]).min()))
    return lowest[1] - lowest[0]


def _ticks_in_ms(times_ns: NDArray[np.int64], sender_ns: NDArray[np.int64]) -> bool:
    """Whether both went on alike, but for a tick's length at either end and what a busy sender is late."""
    span_ns = int(times_ns[-1] - times_ns[0])
    late_ns = 2 * TICK_NS + int(np.diff(times_ns).max())
    return abs(int(sender_ns[-1] - sender_ns[0]) - span_ns) <= _TICK_ERROR * span_ns + late_ns
