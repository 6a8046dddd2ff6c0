"""What captures tell of TCP connections: retransmissions and their kind, stalls, recovery, resets.

All is as seen at one capture point; a GSO super-frame counts as one segment. A retransmission is a segment that begins
below the highest sequence number seen, as in Wireshark, which also counts one that fills a hole (lost before the
capture point) unless it comes so soon that it was only overtaken. The kinds follow from what Linux does:

- fast: the receiver had reported a hole, by SACK or duplicate acknowledgements;
- tail loss probe: the newest segment again, once, with nothing reported (RFC 8985);
- timeout (RTO): the oldest unacknowledged segment again, after at least 200 ms in which nothing more was acknowledged and this
  segment was not sent (new data may well go out meanwhile: it does not stop the timer);
- the rest follows a timeout, as acknowledgements come in.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import ACK, FIN, OK, RST, SYN, TCP, Columns
from harness.analysis.sightings import StopWindow

_OVERTAKEN_NS = 3_000_000
# Linux's shortest retransmission timeout is 200 ms; timers may fire a jiffy early as seen at a capture point.
_TIMEOUT_NS = 190_000_000
_RATE_WINDOW_NS = 250_000_000
_BASELINE_NS = 2_000_000_000


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """A connection was broken off. One that answers a late copy after both sides had closed and acknowledged it is none."""

    time_ns: int
    sender: str


class TcpFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a connection, judged by its data and the other side's acknowledgements."""

    sender: str
    receiver: str
    segments: int
    payload_bytes: int
    """Sequence numbers covered: without what was sent again."""
    retransmitted_segments: int
    """All of them, the four kinds below and those that follow a timeout."""
    retransmitted_bytes: int
    """Their payload: what TCP_INFO calls `tcpi_bytes_retrans`, however the kernel cuts it into segments."""
    retransmitted_lengths: tuple[int, ...]
    fast_retransmits: int
    tail_loss_probes: int
    rto_events: int
    spurious_retransmits: int
    """Of data that this point had already seen acknowledged."""
    duplicate_sacks: int
    """The receiver's own reports of data it got twice (RFC 2883)."""
    sack_recoveries: int
    """Periods from the first fast retransmit to the acknowledgement of all that was sent until then."""
    overtaken_segments: int
    keep_alives: int
    longest_stall_ns: int
    """The longest that data waited for an acknowledgement which moved on."""
    longest_gap_ns: int
    """The longest time without new data or an acknowledgement that moved on, between the first and the last of them."""


    def retransmitted_parts(self, *, mss: int) -> int:
        """In segments of at most `mss` bytes, as the kernel counts: it sends a super-frame's parts again one by one, or together."""
        return sum(max(1, -(-length // mss)) for length in self.retransmitted_lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConnection:
    """A connection; `flows` has the direction of the side that spoke first, then the other."""

    name: str
    start_ns: int
    end_ns: int
    flows: tuple[TcpFlow, TcpFlow]
    resets: tuple[Reset, ...]
    finished: bool
    """Both sides sent a FIN."""
    acknowledged: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Per direction an array of two rows: time, and bytes acknowledged up to then."""
    emitted: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Per direction an array of two rows: the time of each segment, and its sender's timestamp (0: it has none)."""

    def longest_stall_ns(self, *, flow: int = 0, interval_ns: int = 0) -> int | None:
        """The longest time in which nothing more of that direction's data was acknowledged, less the interval at which it was
        sent; never below 0. `None` if too little was. Whether the sender or the receiver stood still makes no difference.
        """
        times = self.acknowledged[flow][0]
        if times.size < 2:
            return None
        return max(0, int(np.diff(times).max()) - interval_ns)

    def survived(self, window: StopWindow) -> bool:
        """Whether it was there before the stop, was never reset, and something was acknowledged after the resume."""
        if self.resets or self.start_ns >= window.stop_ns:
            return False
        return any(series.size and series[0, -1] >= window.resume_ns for series in self.acknowledged)

    def recovery_ns(self, window: StopWindow, *, flow: int = 0, share: float = 0.9) -> int | None:
        """From RESUME until the throughput is back: until the first 250 ms of which at least `share` of the rate before
        STOP was acknowledged. That rate is the mean of the 2 s before STOP. `None`: never, or nothing to compare with.
        """
        series = self.acknowledged[flow]
        if series.size < 2:
            return None
        begin = max(window.stop_ns - _BASELINE_NS, int(series[0, 0]))
        if window.stop_ns - begin < _RATE_WINDOW_NS:
            return None
        at = [begin, window.stop_ns]
        before, until_stop = _bytes_at(series, np.array(at))
        wanted = share * (until_stop - before) / (window.stop_ns - begin) * _RATE_WINDOW_NS
        starts = series[0][series[0] >= window.resume_ns]
        starts = np.concatenate(([window.resume_ns], starts))
        starts = starts[starts + _RATE_WINDOW_NS <= series[0, -1]]
        gained = _bytes_at(series, starts + _RATE_WINDOW_NS) - _bytes_at(series, starts)
        good = np.flatnonzero(gained >= wanted)
        if not good.size or wanted <= 0:
            return None
        return int(starts[good[0]] - window.resume_ns)


def _bytes_at(series: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes acknowledged up to each time."""
    at = np.searchsorted(series[0], times, side="right") - 1
    return np.where(at >= 0, series[1][at], 0)


def find_connections(columns: Columns) -> tuple[TcpConnection, ...]:
    """All connections of a capture, in order of their first segment; malformed segments are left out."""
    rows = np.flatnonzero((columns.protocol == TCP) & (columns.status == OK) & (columns.fragment == 0))
    found = [connection for group in _by_endpoints(columns, rows) for connection in _connections(columns, group)]
    return tuple(sorted(found, key=lambda connection: connection.start_ns))


def _by_endpoints(columns: Columns, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of each pair of endpoints, both directions together, in order of capture."""
    if not rows.size:
        return
    names = ("source_hi", "source_lo", "source_port", "destination_hi", "destination_lo", "destination_port")
    ends = np.stack([getattr(columns, name)[rows].astype(np.uint64) for name in names], axis=1)
    backward = np.zeros(rows.size, dtype=np.bool_)
    undecided = np.ones(rows.size, dtype=np.bool_)
    for k in range(3):
        backward |= undecided & (ends[:, k] > ends[:, k + 3])
        undecided &= ends[:, k] == ends[:, k + 3]
    ends[backward] = np.roll(ends[backward], 3, axis=1)
    _, pair = np.unique(ends, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    order = np.argsort(pair, kind="stable")
    yield from np.split(rows[order], np.flatnonzero(np.diff(pair[order])) + 1)


def _endpoint(columns: Columns, row: int, end: str) -> str:
    high, low = int(getattr(columns, f"{end}_hi")[row]), int(getattr(columns, f"{end}_lo")[row])
    port = int(getattr(columns, f"{end}_port")[row])
    if columns.ip_version[row] == 6:
        return f"[{ipaddress.IPv6Address(high << 64 | low)}]:{port}"
    return f"{ipaddress.IPv4Address(low)}:{port}"


def _connections(columns: Columns, rows: NDArray[np.int64]) -> Iterator[TcpConnection]:
    """The connections of one pair of endpoints: a SYN with another initial number begins the next one."""
    flags = columns.tcp_flags[rows]
    opening = np.flatnonzero((flags & SYN != 0) & (flags & ACK == 0))
    fresh = opening[np.flatnonzero(np.diff(columns.tcp_seq[rows[opening]].astype(np.int64))) + 1]
    for part in np.split(rows, fresh):
        if part.size:
            yield _connection(columns, part)


@dataclass(slots=True)
class _Side:
    """State of one direction while its segments go by."""

    segments: int = 0
    retransmitted: int = 0
    retransmitted_lengths: list[int] = field(default_factory=list)
    fast: int = 0
    probes: int = 0
    timeouts: int = 0
    spurious: int = 0
    dsacks: int = 0
    recoveries: int = 0
    overtaken: int = 0
    keep_alives: int = 0
    longest_stall: int = 0
    longest_gap: int = 0
    first: int | None = None
    """The lowest sequence number; all numbers are unwrapped to count on from it."""
    highest: int = 0
    acked: int | None = None
    highest_at: int = 0
    last_sent: int = 0
    last_progress: int = 0
    waiting_since: int | None = None
    reported: bool = False
    """The receiver reported a hole since its acknowledgement last moved on."""
    duplicates: int = 0
    probed: bool = False
    head_at: int = 0
    """When the oldest segment was sent again, since the last acknowledgement that moved on."""
    recovery_end: int | None = None
    loss_end: int | None = None
    holes: list[tuple[int, int]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    bytes_acked: list[int] = field(default_factory=list)

    def send(self, time_ns: int, raw_seq: int, length: int, *, plain: bool) -> None:
        """A segment that takes `length` sequence numbers; `plain`: neither SYN nor FIN is set."""
        if self.first is None:
            self.first = self.highest = raw_seq
            self.acked = raw_seq
        seq = _near(raw_seq, self.highest)
        end = seq + length
        self.segments += 1
        if seq >= self.highest:
            if seq > self.highest:
                self.holes.append((self.highest, seq))
            self._new_data(time_ns, end)
        elif plain and length == 1 and end == self.highest:
            self.keep_alives += 1
        elif self._fills_hole(seq, end) and time_ns - self.highest_at < _OVERTAKEN_NS:
            self.overtaken += 1
        else:
            self._retransmit(time_ns, seq, end)
            self.retransmitted_lengths.append(length if plain else length - 1)
            if end > self.highest:
                self._new_data(time_ns, end)
        self.last_sent = time_ns

    def stand(self, time_ns: int, raw_seq: int) -> None:
        """A segment without data: it tells where its sender stands, so also what was lost before the capture point."""
        if self.first is None:
            return
        seq = _near(raw_seq, self.highest)
        if seq > self.highest:
            self.holes.append((self.highest, seq))
            self._new_data(time_ns, seq)
        elif seq == self.highest - 1:
            self.keep_alives += 1

    def _new_data(self, time_ns: int, end: int) -> None:
        self._progress(time_ns)
        if self.waiting_since is None:
            self.waiting_since = time_ns
        self.highest, self.highest_at = end, time_ns

    def _progress(self, time_ns: int) -> None:
        if self.last_progress:
            self.longest_gap = max(self.longest_gap, time_ns - self.last_progress)
        self.last_progress = time_ns

    def _fills_hole(self, seq: int, end: int) -> bool:
        for number, (low, high) in enumerate(self.holes):
            if low <= seq and end <= high:
                left = [(low, seq)] if low < seq else []
                right = [(end, high)] if end < high else []
                self.holes[number : number + 1] = left + right
                return True
        return False

    def _retransmit(self, time_ns: int, seq: int, end: int) -> None:
        acked = self.acked if self.acked is not None else seq
        head = seq <= acked < end
        told = self.reported or self.duplicates >= 2
        newest = end >= self.highest and not self.probed and not self.reported and self.loss_end is None
        self.retransmitted += 1
        if end <= acked:
            # The acknowledgement was lost on its way to the sender, or crossed with this.
            self.spurious += 1
            if newest:
                self.probes += 1
                self.probed = True
            elif self._was_silent(time_ns, seq):
                self.timeouts += 1
        elif head and self._silent_ns(time_ns) >= _TIMEOUT_NS and (self.head_at or not told) and not newest:
            self.timeouts += 1
            self.loss_end, self.recovery_end = self.highest, None
        elif newest:
            self.probes += 1
            self.probed = True
        elif (told or self.recovery_end is not None) and self.loss_end is None:
            self.fast += 1
            if self.recovery_end is None:
                self.recoveries += 1
                self.recovery_end = self.highest
        if head:
            self.head_at = time_ns

    def _silent_ns(self, time_ns: int) -> int:
        """How long nothing more was acknowledged and the oldest segment was not sent."""
        since = self.waiting_since if self.waiting_since is not None else self.last_sent
        return time_ns - max(since, self.head_at)

    def _was_silent(self, time_ns: int, seq: int) -> bool:
        """Whether `seq`, acknowledged since, was the oldest segment for as long as a timeout takes."""
        assert self.first is not None
        at = bisect_right(self.bytes_acked, seq - self.first)
        if not at or self.bytes_acked[at - 1] != seq - self.first or self.head_at:
            return False
        return time_ns - self.times[at - 1] >= _TIMEOUT_NS

    def acknowledge(self, time_ns: int, raw_ack: int, *, sacks: int, dsack: bool, bare: bool) -> None:
        """An acknowledgement from the other side; `bare`: it carries no data and no SYN, FIN or window change."""
        if self.first is None or self.acked is None:
            return
        ack = _near(raw_ack, self.acked)
        self.dsacks += dsack
        if ack > self.acked:
            if self.waiting_since is not None:
                self.longest_stall = max(self.longest_stall, time_ns - self.waiting_since)
            self._progress(time_ns)
            self.acked, self.duplicates, self.probed, self.head_at = ack, 0, False, 0
            self.reported = sacks > dsack
            self.waiting_since = time_ns if ack < self.highest else None
            if self.recovery_end is not None and ack >= self.recovery_end:
                self.recovery_end = None
            if self.loss_end is not None and ack >= self.loss_end:
                self.loss_end = None
            self.holes = [hole for hole in self.holes if hole[1] > ack]
            self.times.append(time_ns)
            self.bytes_acked.append(ack - self.first)
        elif ack == self.acked and self.acked < self.highest:
            self.duplicates += bare
            self.reported |= sacks > dsack

    def flow(self, sender: str, receiver: str) -> TcpFlow:
        return TcpFlow(
            sender=sender, receiver=receiver, segments=self.segments,
            payload_bytes=self.highest - self.first if self.first is not None else 0,
            retransmitted_segments=self.retransmitted, retransmitted_bytes=sum(self.retransmitted_lengths),
            retransmitted_lengths=tuple(self.retransmitted_lengths), fast_retransmits=self.fast, tail_loss_probes=self.probes,
            rto_events=self.timeouts, spurious_retransmits=self.spurious, duplicate_sacks=self.dsacks,
            sack_recoveries=self.recoveries, overtaken_segments=self.overtaken, keep_alives=self.keep_alives,
            longest_stall_ns=self.longest_stall, longest_gap_ns=self.longest_gap,
        )  # fmt: skip


def _near(raw: int, base: int) -> int:
    """The full number with these low 32 bits that is nearest to `base`."""
    return base + ((raw - base + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _connection(columns: Columns, rows: NDArray[np.int64]) -> TcpConnection:
    first = int(rows[0])
    opener = (columns.source_hi[first], columns.source_lo[first], columns.source_port[first])
    forward = (columns.source_hi[rows] == opener[0]) & (columns.source_lo[rows] == opener[1])
    forward &= columns.source_port[rows] == opener[2]
    names = ("time_ns", "tcp_seq", "tcp_ack", "tcp_flags", "payload_bytes", "tcp_window", "tcp_sacks", "tcp_dsack")
    sides = (_Side(), _Side())
    ends = (_endpoint(columns, first, "source"), _endpoint(columns, first, "destination"))
    resets: list[Reset] = []
    finished = [False, False]
    windows = [-1, -1]
    for mine, time_ns, seq, ack, flags, payload, window, sacks, dsack in zip(
        np.where(forward, 0, 1).tolist(), *(getattr(columns, name)[rows].tolist() for name in names), strict=True
    ):
        length = payload + bool(flags & SYN) + bool(flags & FIN)
        if flags & RST:
            if all(finished) and all(side.acked == side.highest for side in sides):
                continue
            resets.append(Reset(time_ns=time_ns, sender=ends[mine]))
            continue
        finished[mine] |= bool(flags & FIN)
        if flags & ACK:
            bare = length == 0 and window == windows[mine]
            sides[1 - mine].acknowledge(time_ns, ack, sacks=sacks, dsack=bool(dsack), bare=bare)
        windows[mine] = window
        if length:
            sides[mine].send(time_ns, seq, length, plain=not flags & (SYN | FIN))
        else:
            sides[mine].stand(time_ns, seq)
    return TcpConnection(
        name=f"{ends[0]} > {ends[1]}",
        start_ns=int(columns.time_ns[rows].min()),
        end_ns=int(columns.time_ns[rows].max()),
        flows=(sides[0].flow(*ends), sides[1].flow(ends[1], ends[0])),
        resets=tuple(resets),
        finished=all(finished),
        acknowledged=(_series(sides[0]), _series(sides[1])),
        emitted=(_emitted(columns, rows[forward]), _emitted(columns, rows[~forward])),
    )


def _emitted(columns: Columns, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    times_ns = columns.time_ns[rows]
    order = np.argsort(times_ns, kind="stable")
    return np.stack([times_ns[order], columns.tcp_timestamp[rows][order].astype(np.int64)])


def _series(side: _Side) -> NDArray[np.int64]:
    return np.array([side.times, side.bytes_acked], dtype=np.int64)
