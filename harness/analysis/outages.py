"""Delivery gaps, outages, network downtime and delays of one stream, on the host's clock.

An outage lasts from the last delivery before it to the first one after it, less one sending interval, which is also its
resolution. That interval is the one which was kept there: a sender on a busy host may send the next packet late, as the stop begins. A gap that the sender made itself, by sending late what then arrived at once, is none; a stream that the
moving guest sends is judged at its receiver, where the guest's silence counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.evidence import Fate
from harness.analysis.ledger import Ledger
from harness.analysis.sightings import NEVER, StopWindow
from harness.model.scenario import Direction


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """`start_ns`: the last delivery before, `end_ns`: the first one after, or the last send if there was none."""

    start_ns: int
    end_ns: int
    duration_ns: int
    """From start to end, less one sending interval."""
    recovered: bool
    interval_ns: int = 0
    """That interval: the planned one, or what passed from the last delivery until the sender sent its next packet."""


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """Of the delivered packets: for an echo the round trip seen at the peer's port; else from the first capture point
    on the way to the delivery (to the guest: without what the guest itself takes)."""

    p50_ns: int
    p99_ns: int
    max_ns: int


def delivery_times(ledger: Ledger) -> NDArray[np.int64]:
    """The sorted times of all deliveries that the host's clock knows."""
    return np.sort(ledger.delivered_ns[ledger.delivered_ns != NEVER])


def longest_gap_ns(ledger: Ledger) -> int | None:
    """The longest time between two deliveries; `None` with fewer than two."""
    times = delivery_times(ledger)
    return int(np.diff(times).max()) if times.size > 1 else None


def find_outages(ledger: Ledger, *, interval_ns: int, tolerance_ns: int | None = None) -> tuple[Outage, ...]:
    """The outages longer than `tolerance_ns` (one sending interval unless given), in order of time.

    Give what the null run showed as tolerance. A stream that delivers nothing at all is one outage from its first to
    its last send, as far as a capture saw these.
    """
    tolerance_ns = interval_ns if tolerance_ns is None else tolerance_ns
    times = delivery_times(ledger)
    sent = np.sort(ledger.host_sent_ns[ledger.host_sent_ns != NEVER])
    if not times.size:
        if not sent.size:
            return ()
        first, last = int(sent[0]), int(sent[-1])
        return (Outage(start_ns=first, end_ns=last, duration_ns=max(last - first - interval_ns, 0), recovered=False),)
    starts, ends = times[:-1], times[1:]
    wide = ends - starts - interval_ns > tolerance_ns
    starts, ends = starts[wide], ends[wide]
    if ledger.direction is not Direction.FROM_GUEST:
        missing = _missing_since(ledger, tolerance_ns)
        # A packet missed during the gap was sent after the last delivery, but for its usual delay: the tolerance.
        missed = np.searchsorted(missing, ends) > np.searchsorted(missing, starts - tolerance_ns)
        starts, ends = starts[missed], ends[missed]
    kept = _kept_intervals(ledger, starts, sent, interval_ns=interval_ns)
    outages = [
        Outage(start_ns=int(start), end_ns=int(end), duration_ns=int(end - start - own), recovered=True, interval_ns=int(own))
        for start, end, own in zip(starts, ends, kept, strict=True)
        if end - start - own > tolerance_ns
    ]
    silence = int(sent[-1] - times[-1]) - interval_ns if sent.size else 0
    if silence > tolerance_ns:
        outages.append(Outage(start_ns=int(times[-1]), end_ns=int(sent[-1]), duration_ns=silence, recovered=False))
    return tuple(outages)


def _kept_intervals(
    ledger: Ledger, starts: NDArray[np.int64], sent: NDArray[np.int64], *, interval_ns: int
) -> NDArray[np.int64]:
    """Per outage, how long after the last delivery the next packet was sent; at least the planned interval.

    What the moving guest sends says nothing of that: while it is stopped it sends nothing, which is the outage itself.
    """
    if ledger.direction is Direction.FROM_GUEST or not sent.size:
        return np.full(starts.size, interval_ns, dtype=np.int64)
    through = np.flatnonzero((ledger.delivered_ns != NEVER) & (ledger.host_sent_ns != NEVER))
    through = through[np.argsort(ledger.delivered_ns[through], kind="stable")]
    last = np.searchsorted(ledger.delivered_ns[through], starts, side="right") - 1
    sent_ns = ledger.host_sent_ns[through[np.maximum(last, 0)]]
    following = np.minimum(np.searchsorted(sent, sent_ns, side="right"), sent.size - 1)
    return np.where(last >= 0, np.maximum(sent[following] - starts, interval_ns), interval_ns)


def _missing_since(ledger: Ledger, tolerance_ns: int) -> NDArray[np.int64]:
    """Sorted send times of the packets that were lost, or delivered later than the tolerance allows."""
    known = ledger.host_sent_ns != NEVER
    lost = known & (ledger.fate != Fate.DELIVERED)
    slow = known & (ledger.delivered_ns != NEVER) & (ledger.delivered_ns - ledger.host_sent_ns > tolerance_ns)
    return np.sort(ledger.host_sent_ns[lost | slow])


def network_downtime(outages: Sequence[Outage], *, windows: Sequence[StopWindow]) -> Outage | None:
    """The outage of the switchover: the longest that overlaps a stop window; without windows the longest of all."""
    mine = [
        outage
        for outage in outages
        if not windows or any(outage.start_ns < w.resume_ns and outage.end_ns > w.stop_ns for w in windows)
    ]
    return max(mine, key=lambda outage: outage.duration_ns, default=None)


def delays(ledger: Ledger, *, begin_ns: int | None = None, end_ns: int | None = None) -> Delays | None:
    """Of the packets sent from `begin_ns` on and before `end_ns`. `None` when no delivered packet was captured."""
    known = (ledger.host_sent_ns != NEVER) & (ledger.delivered_ns != NEVER)
    if begin_ns is not None:
        known &= ledger.host_sent_ns >= begin_ns
    if end_ns is not None:
        known &= ledger.host_sent_ns < end_ns
    values = ledger.delivered_ns[known] - ledger.host_sent_ns[known]
    if not values.size:
        return None
    p50, p99, top = np.percentile(values, (50, 99, 100), method="higher")
    return Delays(p50_ns=int(p50), p99_ns=int(p99), max_ns=int(top))
