"""The account of every probe: exactly one fate each, and none without evidence for it.

Delivered is what the receiver recorded. Of the others, a list of probes (stranded, swallowed) decides first; then a
drop counter, which explains as many probes as it counted among those that the captures saw last before its place.
Captures prove that a probe was *not* somewhere only if they dropped nothing. What is left is `UNEXPLAINED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import ECHO_REPLY, ECHO_REQUEST, PROBE, Capture
from harness.analysis.evidence import Death, DropCounter, Evidence, Fate, Place, ProbeSet, StreamRecords
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.records import RecordFile
from harness.analysis.sightings import (
    NEVER,
    SequenceIndex,
    Sightings,
    StopWindow,
    delivered_to_guest_ns,
    find_sightings,
)
from harness.errors import UsageError
from harness.model.scenario import Direction

# The kernel stamps packets on several processors: steps back by microseconds are usual and mean nothing.
_CLOCK_STEP_NS = 1_000_000
_CORRUPT = 0x10000
_SWALLOWED = "QEMU took it from the TAP and never put it into the ring"
_PARKED = f"parked: {_SWALLOWED}; it left the frames behind it unread, and ended"
_PURGED = f"purged: {_SWALLOWED}, but read on behind it: its stop path freed it"


class LedgerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """`sent` is the sum of the seven fates; the rest is counted beside them."""

    sent: int
    delivered: int
    stranded_at_source: int
    dropped_by_host: int
    lost_in_qemu: int
    dropped_by_guest: int
    lost_on_return: int
    unexplained: int
    passed: int
    """Delivered ones that a mechanism carried over."""
    late: int
    """Delivered ones whose delay is above the threshold; 0 without one."""
    duplicated: int
    """Deliveries beyond the first of each probe."""
    reordered: int
    """RFC 4737, section 3: probes that arrived after one with a higher number; copies do not count."""
    corrupt: int
    """Deliveries with a damaged payload."""
    alien: int
    """Deliveries of numbers that were never sent: always 0 in a sound run."""
    refused: int
    """Sends that the sender's own kernel refused; they are not among `sent`."""

    @property
    def lost(self) -> int:
        return self.sent - self.delivered


class StoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is known of a probe. `clock` is `host`, or the name of the clock that the time is of."""

    time_ns: int | None
    clock: str
    place: str
    text: str


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """One probe's way, in order of time as far as the host's clock knows it."""

    stream: str
    seq: int
    fate: str
    reason: str
    lines: tuple[StoryLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One stream's account. All arrays have one entry a sent probe, in the order of `seq`."""

    name: str
    direction: Direction
    seq: NDArray[np.uint64]
    fate: NDArray[np.uint8]
    deliveries: NDArray[np.uint16]
    passed: NDArray[np.bool_]
    late: NDArray[np.bool_]
    reordered: NDArray[np.bool_]
    sent_ns: NDArray[np.int64]
    """By the sender's clock."""
    host_sent_ns: NDArray[np.int64]
    """At the first capture point on its way, else `NEVER`; the host's clock."""
    delivered_ns: NDArray[np.int64]
    """Host's clock, else `NEVER` (see `sightings` for a stream to the guest)."""
    received_ns: NDArray[np.int64]
    """The first delivery by the receiver's clock, else `NEVER`."""
    points: tuple[tuple[str, Sightings], ...]
    reasons: tuple[str, ...]
    """What decided, by `reason_of`."""
    reason_of: NDArray[np.uint8]
    counts: LedgerCounts
    problems: tuple[str, ...]
    """Why the account may not be trusted; empty in a sound run."""

    def explain(self, seq: int) -> Story:
        """One probe's story; raises `UsageError` if it was never sent."""
        found = np.flatnonzero(self.seq == np.uint64(seq)) if seq >= 0 else np.empty(0, dtype=np.int64)
        if not found.size:
            span = f"{self.seq[0]} to {self.seq[-1]}" if self.seq.size else "nothing"
            raise UsageError(f"stream {self.name}: no packet {seq} was sent", hint=f"it sent {span}")
        at = int(found[0])
        return Story(
            stream=self.name, seq=seq, fate=Fate(self.fate[at]).label, reason=self.reasons[self.reason_of[at]],
            lines=tuple(_story_lines(self, at)),
        )  # fmt: skip


def account(streams: Sequence[StreamRecords], *, evidence: Evidence, late_ns: int | None = None) -> dict[str, Ledger]:
    """The ledgers of all streams of a run, by name.

    All at once, since a drop counter counts the packets of all streams. `late_ns` is the delay beyond which a delivery
    is late. Raises `UsageError` for records that contradict each other.
    """
    drafts = [_Draft(stream, evidence) for stream in streams]
    for counter in evidence.counters:
        _spend(counter, drafts)
    return {draft.stream.name: draft.finish(evidence, late_ns=late_ns) for draft in drafts}


def _spend(counter: DropCounter, drafts: Sequence[_Draft]) -> None:
    """Give a counter's drops to the probes that it can explain, in order of time."""
    found = [(draft, *draft.candidates(counter)) for draft in drafts]
    times = np.concatenate([time_ns for _, _, time_ns in found]) if found else np.empty(0)
    if not times.size or counter.count <= 0:
        return
    mine = np.zeros(times.size, dtype=np.bool_)
    mine[np.argsort(times, kind="stable")[: counter.count]] = True
    start = 0
    for draft, rows, _ in found:
        chosen = rows[mine[start : start + rows.size]]
        draft.decide(chosen, counter.verdict, f"{counter.name} counted {counter.count} drops")
        start += rows.size
        if times.size > counter.count and rows.size:
            draft.problems.append(
                f"{counter.name} counted {counter.count} drops, {times.size} packets vanished there: "
                "which of them were dropped is not known"
            )


class _Draft:
    """A ledger in the making: what is delivered, what is decided, and what the captures saw."""

    def __init__(self, stream: StreamRecords, evidence: Evidence) -> None:
        if stream.direction is Direction.BOTH:
            raise ValueError("a stream has one direction")
        self.stream = stream
        self.problems: list[str] = []
        self.reasons = ["no evidence"]
        sent = stream.sent.records
        accepted = sent["errno"] == 0
        self.refused = int(sent.size - np.count_nonzero(accepted))
        sent = sent[accepted] if self.refused else sent
        self.index = SequenceIndex(np.ascontiguousarray(sent["seq"]), name=stream.name)
        order = self.index.find(np.ascontiguousarray(sent["seq"]))
        self.sent_ns = np.empty(len(self.index), dtype=np.int64)
        self.sent_ns[order] = sent["sent_ns"]
        self.fate = np.zeros(len(self.index), dtype=np.uint8)
        self.reason_of = np.zeros(len(self.index), dtype=np.uint8)
        self._check(evidence)
        self._sight(evidence)
        self._take_deliveries()
        self._take_lists(evidence)

    def _check(self, evidence: Evidence) -> None:
        if self.stream.sent.overflowed:
            self.problems.append(f"{self.stream.sent.overflowed} sends are not on record")
        for what, file in (("received", self.stream.received), ("responder", self.stream.responder)):
            if file is None:
                continue
            if (file.stream, file.nonce) != (self.stream.sent.stream, self.stream.sent.nonce):
                raise UsageError(f"stream {self.stream.name}: sent and {what} records are of different streams or runs")
            if file.overflowed:
                self.problems.append(f"{file.overflowed} packets are missing in the {what} records")
        if self.stream.received is None:
            self.problems.append("the receiver's records are missing")
        for point, capture in _points(evidence):
            if capture is not None and capture.dropped != 0:
                state = "does not say what it dropped" if capture.dropped is None else f"dropped {capture.dropped}"
                self.problems.append(f"the capture at the {point} {state}")
            if capture is not None and capture.backward_ns > _CLOCK_STEP_NS:
                step_ms = capture.backward_ns / 1e6
                self.problems.append(f"the host's clock went back by {step_ms:.3f} ms (capture at the {point})")

    def _sight(self, evidence: Evidence) -> None:
        captures = evidence.captures
        to_guest = self.stream.direction is not Direction.FROM_GUEST
        kind = ECHO_REQUEST if self.stream.direction is Direction.ECHO else PROBE

        def at(capture: Capture | None, kind: int, direction: int) -> Sightings:
            sent = self.stream.sent
            return find_sightings(
                None if capture is None else capture.columns, self.index,
                stream=sent.stream, nonce=sent.nonce, probe=kind, direction=direction,
            )  # fmt: skip

        self.peer = at(captures.peer, kind, INBOUND if to_guest else OUTBOUND)
        self.source = at(captures.source, kind, OUTBOUND if to_guest else INBOUND)
        self.destination = at(captures.destination, kind, OUTBOUND if to_guest else INBOUND)
        self.points: list[tuple[str, Sightings]] = [
            ("peer's port", self.peer), ("source's TAP", self.source), ("destination's TAP", self.destination)
        ]  # fmt: skip
        if not to_guest:
            self.points = [*self.points[1:], self.points[0]]
        self.reply_on_tap = np.zeros(len(self.index), dtype=np.bool_)
        if kind == ECHO_REQUEST:
            replies = [(name, at(capture, ECHO_REPLY, INBOUND)) for name, capture in _points(evidence)[1:]]
            self.reply_on_tap = replies[0][1].seen | replies[1][1].seen
            self.reply_at_peer = at(captures.peer, ECHO_REPLY, OUTBOUND)
            self.points += [(f"{name} (reply)", seen) for name, seen in (*replies, ("peer's port", self.reply_at_peer))]
        # Where a capture saw nothing of a probe, it was not there: only if the capture is there and whole.
        self.peer_proves = _whole(captures.peer)
        self.taps_prove = _whole(captures.source) and (captures.destination is None or _whole(captures.destination))

    def _take_deliveries(self) -> None:
        count = len(self.index)
        self.deliveries = np.zeros(count, dtype=np.uint16)
        self.received_ns = np.full(count, NEVER, dtype=np.int64)
        self.reordered = np.zeros(count, dtype=np.bool_)
        self.duplicated = self.corrupt = self.alien = 0
        received = self.stream.received
        if received is None:
            return
        at, arrived = _arrivals(received, self.index)
        self.alien = int(received.records.size - at.size)
        if self.alien:
            self.problems.append(f"{self.alien} deliveries carry numbers that were never sent")
        self.corrupt = int(np.count_nonzero(arrived["flags"] & _CORRUPT))
        copies = np.bincount(at, minlength=count)
        self.deliveries[:] = np.minimum(copies, 0xFFFF)
        self.duplicated = int(at.size - np.count_nonzero(copies))
        self.received_ns[at[::-1]] = arrived["received_ns"][::-1]
        firsts = _first_of_each(at, count)
        highest = np.maximum.accumulate(firsts) if firsts.size else firsts
        self.reordered[firsts[firsts < highest]] = True
        self.decide(np.flatnonzero(copies), Fate.DELIVERED, "the receiver recorded it")

    def _take_lists(self, evidence: Evidence) -> None:
        self.passed = self._members(evidence.passed)
        received, responder = self.stream.received, self.stream.responder
        self.closed = received is None or received.overflowed > 0
        """Nothing can be held to be lost: a missing record proves nothing."""
        if self.closed:
            return
        if self.stream.direction is Direction.ECHO:
            answered = self.reply_on_tap.copy()
            if responder is not None:
                answered[_arrivals(responder, self.index)[0]] = True
            self.decide(np.flatnonzero(answered), Fate.LOST_ON_RETURN, "the guest had it, no reply came back")
        stranded, swallowed = self._members(evidence.stranded), self._members(evidence.swallowed)
        self.decide(np.flatnonzero(stranded), Fate.STRANDED_AT_SOURCE, "read back from a TAP whose machine had ended")
        for named, what in ((evidence.parked, _PARKED), (evidence.purged, _PURGED)):
            self.decide(np.flatnonzero(self._members(named) & swallowed), Fate.LOST_IN_QEMU, what)
        self.decide(np.flatnonzero(swallowed), Fate.LOST_IN_QEMU, _SWALLOWED)
        if self.stream.direction is not Direction.FROM_GUEST and self.taps_prove:
            for death in evidence.deaths:
                self._take_death(death, evidence.windows)

    def _take_death(self, death: Death, windows: tuple[StopWindow, ...]) -> None:
        """What a machine had taken when it died with its guest: sent to its TAP before that, not waiting there any more, and behind the last
        packet that came through (a machine works in order: what was lost in front of that one was lost to something else).

        With the guest, a destination has what the source had taken before the stop and the guest had not answered yet.
        """
        tap = self.source if death.place is Place.SOURCE_TAP else self.destination
        there, arrived_ns = tap.seen & (tap.first_ns <= death.time_ns), tap.first_ns
        moves = [window for window in windows if window.resume_ns <= death.time_ns]
        if death.place is Place.DESTINATION_TAP and moves:
            before = self.source.seen & (self.source.first_ns <= moves[-1].stop_ns)
            there, arrived_ns = there | before, np.where(before, self.source.first_ns, arrived_ns)
        through = there & ((self.fate == Fate.DELIVERED) | (self.fate == Fate.LOST_ON_RETURN))
        last_ns = int(arrived_ns[through].max()) if through.any() else NEVER
        self.decide(
            np.flatnonzero(there & (arrived_ns > last_ns)), Fate.LOST_IN_QEMU, "its machine had taken it and died with the guest in it"
        )

    def _members(self, probes: ProbeSet) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.index), dtype=np.bool_)
        wanted = [seq for stream, seq in probes if stream == self.stream.sent.stream]
        at = self.index.find(np.array(wanted, dtype=np.uint64))
        mask[at[at >= 0]] = True
        return mask

    def decide(self, rows: NDArray[np.int64], fate: Fate, reason: str) -> None:
        """Give `fate` to those of `rows` that have none yet."""
        rows = rows[self.fate[rows] == Fate.UNEXPLAINED]
        if rows.size:
            self.fate[rows] = fate
            self.reason_of[rows] = len(self.reasons)
            self.reasons.append(reason)

    def candidates(self, counter: DropCounter) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Undecided probes that this counter can explain, and when they were last seen."""
        forward = Direction.FROM_GUEST if self.stream.direction is Direction.FROM_GUEST else Direction.TO_GUEST
        nothing = np.empty(0, dtype=np.int64)
        if counter.direction is not forward or self.closed:
            return nothing, nothing
        on_tap = self.source.seen | self.destination.seen
        time_ns = self.sent_ns
        if forward is Direction.TO_GUEST:
            open_, time_ns = self._to_guest(counter.place, on_tap)
        else:
            open_, time_ns = self._from_guest(counter.place, on_tap)
        rows = np.flatnonzero(open_ & (self.fate == Fate.UNEXPLAINED))
        times = time_ns[rows]
        inside = np.ones(rows.size, dtype=np.bool_)
        if counter.start_ns is not None:
            inside &= times >= counter.start_ns
        if counter.end_ns is not None:
            inside &= times <= counter.end_ns
        return rows[inside], times[inside]

    def _to_guest(self, place: Place, on_tap: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        nobody = np.zeros(len(self.index), dtype=np.bool_)
        if place is Place.PEER:
            gone = ~self.peer.seen & ~on_tap if self.peer_proves else nobody
            return gone, self.sent_ns
        if place is Place.BRIDGE:
            return (self.peer.seen & ~on_tap if self.taps_prove else nobody), self.peer.last_ns
        if place is Place.SOURCE_TAP:
            return self.source.seen, self.source.last_ns
        if place is Place.DESTINATION_TAP:
            return self.destination.seen, self.destination.last_ns
        return on_tap, np.maximum(self.source.last_ns, self.destination.last_ns)

    def _from_guest(self, place: Place, on_tap: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        nobody = np.zeros(len(self.index), dtype=np.bool_)
        if place is Place.PEER:
            return self.peer.seen, self.peer.last_ns
        if place is Place.BRIDGE:
            gone = on_tap & ~self.peer.seen if self.peer_proves else nobody
            return gone, np.maximum(self.source.last_ns, self.destination.last_ns)
        return (~on_tap & ~self.peer.seen if self.taps_prove else nobody), self.sent_ns

    def finish(self, evidence: Evidence, *, late_ns: int | None) -> Ledger:
        delivered = self.fate == Fate.DELIVERED
        if self.stream.direction is Direction.TO_GUEST:
            time_ns = delivered_to_guest_ns(
                source=self.source, destination=self.destination, carried=self.passed, windows=evidence.windows
            )
        else:
            time_ns = (self.reply_at_peer if self.stream.direction is Direction.ECHO else self.peer).first_ns
        time_ns = np.where(delivered, time_ns, NEVER)
        if self.stream.direction is Direction.FROM_GUEST:
            both = np.where(self.source.seen, self.source.first_ns, self.destination.first_ns)
            host_sent_ns = both
        else:
            host_sent_ns = self.peer.first_ns
        late = np.zeros(len(self.index), dtype=np.bool_)
        if late_ns is not None:
            late = (time_ns != NEVER) & (host_sent_ns != NEVER) & (time_ns - host_sent_ns > late_ns)
        passed = self.passed & delivered
        totals = np.bincount(self.fate, minlength=len(Fate))
        counts = LedgerCounts(
            sent=len(self.index),
            **{fate.label: int(totals[fate]) for fate in Fate},
            passed=int(np.count_nonzero(passed)),
            late=int(np.count_nonzero(late)),
            duplicated=self.duplicated,
            reordered=int(np.count_nonzero(self.reordered)),
            corrupt=self.corrupt,
            alien=self.alien,
            refused=self.refused,
        )
        return Ledger(
            name=self.stream.name, direction=self.stream.direction, seq=self.index.seq, fate=self.fate,
            deliveries=self.deliveries, passed=passed, late=late, reordered=self.reordered, sent_ns=self.sent_ns,
            host_sent_ns=host_sent_ns, delivered_ns=time_ns, received_ns=self.received_ns, points=tuple(self.points),
            reasons=tuple(self.reasons), reason_of=self.reason_of, counts=counts,
            problems=tuple(dict.fromkeys(self.problems)),
        )  # fmt: skip


def _points(evidence: Evidence) -> list[tuple[str, Capture | None]]:
    captures = evidence.captures
    return [
        ("peer's port", captures.peer),
        ("source's TAP", captures.source),
        ("destination's TAP", captures.destination),
    ]


def _whole(capture: Capture | None) -> bool:
    return capture is not None and capture.dropped == 0


def _arrivals(file: RecordFile, index: SequenceIndex) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Places of a file's packets in order of arrival, and their records; those never sent are left out."""
    at = index.find(np.ascontiguousarray(file.records["seq"]))
    known = at >= 0
    return (at, file.records) if known.all() else (at[known], file.records[known])


def _first_of_each(at: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`at` without repetitions, in order."""
    position = np.empty(count, dtype=np.int64)
    position[at[::-1]] = np.arange(at.size)[::-1]
    firsts: NDArray[np.int64] = at[position[at] == np.arange(at.size)]
    return firsts


def _story_lines(ledger: Ledger, at: int) -> list[StoryLine]:
    lines = []
    for place, seen in ledger.points:
        copies = int(seen.copies[at])
        if copies:
            lines.append(StoryLine(time_ns=int(seen.first_ns[at]), clock="host", place=place, text="seen"))
        if copies > 1:
            text = f"last of {copies} copies"
            lines.append(StoryLine(time_ns=int(seen.last_ns[at]), clock="host", place=place, text=text))
    if ledger.delivered_ns[at] != NEVER:
        text = "delivered (by captures and stop times)"
        lines.append(StoryLine(time_ns=int(ledger.delivered_ns[at]), clock="host", place="receiver", text=text))
    lines.sort(key=lambda line: line.time_ns or 0)
    first = StoryLine(time_ns=int(ledger.sent_ns[at]), clock="sender", place="sender", text="sent")
    lines.insert(0, first)
    if ledger.deliveries[at]:
        times = "" if ledger.deliveries[at] == 1 else f", {ledger.deliveries[at]} times"
        lines.append(
            StoryLine(time_ns=int(ledger.received_ns[at]), clock="receiver", place="receiver", text=f"recorded{times}")
        )
    for mask, text in (
        (ledger.passed, "carried over by the mechanism"),
        (ledger.late, "late"),
        (ledger.reordered, "arrived behind a later packet"),
    ):
        if mask[at]:
            lines.append(StoryLine(time_ns=None, clock="host", place="ledger", text=text))
    return lines
