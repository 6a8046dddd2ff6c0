"""What published downtime formulas make of one and the same series of requests and replies.

Each is a function of the times at which requests were sent and replies came; a `ping -D -O` log gives such a series.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.sightings import NEVER
from harness.errors import UsageError

_LINE = re.compile(r"^\[(\d+)\.(\d{6})\] (.*)$")
_REPLY = re.compile(r"\d+ bytes from .*: icmp_seq=(\d+) .*?time[=<]([\d.]+) ms( \(DUP!\))?")
_NO_ANSWER = re.compile(r"no answer yet for icmp_seq=(\d+)")
_FAILURE = re.compile(r"From .* icmp_seq=(\d+) ")
_WRAP = 1 << 16
_CLOCK_STEP_NS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanges:
    """Requests in the order they were sent; `received_ns` is `NEVER` where no reply came. One clock for both."""

    sent_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]

    @property
    def lost(self) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.received_ns == NEVER
        return mask


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    used_by: str
    formula: str
    downtime_ns: int | None
    """`None`: the formula has no value for this series."""
    resolution_ns: int


class Estimates(msgspec.Struct, frozen=True, kw_only=True):
    sent: int
    lost: int
    interval_ns: int
    """The nominal one, which the formulas use."""
    kept_interval_ns: int | None
    """The median distance of the sends: what the sender really kept."""
    estimates: tuple[Estimate, ...]


def _lost_times_interval(series: Exchanges, interval_ns: int) -> int:
    return int(np.count_nonzero(series.lost)) * interval_ns


def _lost_plus_one(series: Exchanges, interval_ns: int) -> int:
    lost = int(np.count_nonzero(series.lost))
    return (lost + 1) * interval_ns if lost else 0


def _longest_single_gap(series: Exchanges, interval_ns: int) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], series.lost.astype(np.int8), [0]))))
    runs = edges[1::2] - edges[::2]
    return (int(runs.max()) + 1) * interval_ns if runs.size else 0


def _first_loss_to_last_recovery(series: Exchanges, _interval_ns: int) -> int | None:
    lost = np.flatnonzero(series.lost)
    if not lost.size:
        return 0
    before, after = series.received_ns[: lost[0]], series.received_ns[lost[-1] + 1 :]
    if not before.size or not after.size:
        return None
    return int(after.min() - before.max())


def _largest_reply_gap(series: Exchanges, _interval_ns: int) -> int | None:
    times = np.sort(series.received_ns[~series.lost])
    return int(np.diff(times).max()) if times.size > 1 else None


def _ours(series: Exchanges, interval_ns: int) -> int | None:
    gap = _largest_reply_gap(series, interval_ns)
    if gap is None or gap <= 2 * interval_ns:
        return None if gap is None else 0
    return gap - interval_ns


_ESTIMATORS: tuple[tuple[str, str, str, Callable[[Exchanges, int], int | None]], ...] = (
    ("lost-times-interval", "tempest", "lost x interval", _lost_times_interval),
    ("lost-plus-one", "RedHatQE stuntime", "(lost + 1) x interval, 0 if none was lost", _lost_plus_one),
    ("longest-single-gap", "ping -O readers", "(longest run of lost + 1) x interval", _longest_single_gap),
    (
        "first-loss-to-last-recovery",
        "log readers",
        "last reply before the first loss to the first after the last",
        _first_loss_to_last_recovery,
    ),
    ("largest-reply-gap", "mig_mon", "largest distance of two replies", _largest_reply_gap),
    ("switchover", "this program", "largest distance of two replies less one interval; 0 up to two intervals", _ours),
)


def interval_from_s(interval_s: float) -> int:
    """Nanoseconds of an interval in seconds; `UsageError` for what no sender can keep."""
    if not 1e-6 <= interval_s <= 86_400:  # also refuses NaN
        raise UsageError(f"the sending interval must be between a microsecond and a day, not {interval_s:g} s")
    return round(interval_s * 1e9)


def estimate(series: Exchanges, *, interval_ns: int) -> Estimates:
    """All estimators on one series. Raises `UsageError` for an empty series or an interval that is not positive."""
    if interval_ns <= 0:
        raise UsageError(f"the sending interval must be positive, not {interval_ns / 1e9:g} s")
    if not series.sent_ns.size:
        raise UsageError("the series holds no request")
    kept = int(np.median(np.diff(series.sent_ns))) if series.sent_ns.size > 1 else None
    return Estimates(
        sent=series.sent_ns.size,
        lost=int(np.count_nonzero(series.lost)),
        interval_ns=interval_ns,
        kept_interval_ns=kept,
        estimates=tuple(
            Estimate(
                name=name,
                used_by=user,
                formula=formula,
                downtime_ns=function(series, interval_ns),
                resolution_ns=interval_ns,
            )
            for name, user, formula, function in _ESTIMATORS
        ),
    )


def read_ping_log(path: Path, *, interval_ns: int) -> Exchanges:
    """Read what `ping -D -O` printed; raises `UsageError` for a file that is none or contradicts itself.

    A reply's send time is its arrival less the time that ping states. A request without answer was sent one interval
    before ping said so, which it does when it sends the next one; one that left no line at all (a log without -O) is
    placed between its neighbours. The 16 bit sequence number may wrap. Of duplicates the first counts.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    sent: dict[int, int] = {}
    received: dict[int, int] = {}
    newest, last_ns, pings = 0, 0, 0
    for number, line in enumerate(text.splitlines(), start=1):
        reply, silent, failed = _REPLY.search(line), _NO_ANSWER.search(line), _FAILURE.search(line)
        match = reply or silent or failed
        if not match:
            continue
        pings += 1
        stamped = _LINE.match(line)
        if not stamped:
            raise UsageError(f"{path}:{number}: no time stamp", hint="record with `ping -D -O`")
        time_ns = int(stamped[1]) * 1_000_000_000 + int(stamped[2]) * 1000
        if time_ns < last_ns - _CLOCK_STEP_NS:
            raise UsageError(f"{path}:{number}: the clock went back by {(last_ns - time_ns) / 1e6:.3f} ms")
        last_ns = max(last_ns, time_ns)
        seq = _unwrap(int(match[1]), newest)
        newest = max(newest, seq)
        if reply and not reply[3]:
            received.setdefault(seq, time_ns)
            sent[seq] = time_ns - round(float(reply[2]) * 1e6)
        elif not reply:
            sent.setdefault(seq, time_ns - (interval_ns if silent else 0))
    if not pings:
        raise UsageError(f"{path}: not a log of ping", hint="record with `ping -D -O`")
    known = sorted(sent)
    every = np.arange(known[0], known[-1] + 1)
    sent_ns = np.rint(np.interp(every, known, [sent[seq] - sent[known[0]] for seq in known])).astype(np.int64)
    return Exchanges(
        sent_ns=sent_ns + sent[known[0]],
        received_ns=np.array([received.get(int(seq), NEVER) for seq in every], dtype=np.int64),
    )


def _unwrap(seq: int, newest: int) -> int:
    """The full number with these low 16 bits that is nearest to `newest`."""
    full = newest - newest % _WRAP + seq
    return min((full - _WRAP, full, full + _WRAP), key=lambda each: (each < 0, abs(each - newest)))
