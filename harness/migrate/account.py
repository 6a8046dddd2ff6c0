"""Which of the frames sent to a TAP did the guest get? Captured frames against used buffers.

Nothing in QEMU says it directly. But the receive ring's used index counts the buffers that were handed to the guest, and the
capture counts the frames that were handed to the TAP: while frames of one buffer each pass, their difference is constant.
`FrameAccount.sync` finds it in a quiet moment; after a stop, `at_stop` says where the guest's knowledge ends. What QEMU took from the
TAP's queue, delivered or not, is told by the TAP's own counter: tun counts a packet as transmitted when it is read.

Frames that take several buffers (mergeable buffers, GSO: TCP in bulk) can't be counted against buffers. Then the lengths in the used
ring tell them apart. From a quiet moment before the stop that the ring still reaches back to, they are counted off one by one. Where there was none,
all that QEMU did not read is missing, and of the few that it read last the guest got those whose lengths the
ring ends with. Where more than one number of them fits and all in question are TCP segments, they are called missing: a mechanism that
sends them again does no harm, since TCP drops what it has. A TAP with several queues: `harness.migrate.queues`.

With vhost the host's kernel takes the frames from the TAP and writes the index, whenever its worker gets to it: then the account begins, and is read,
when the TAP's counter says that every frame sent was taken and the worker sleeps, which it does when all is written. Once the machine is stopped
vhost has given back what it had taken and not delivered, and QEMU reads the TAP, as without vhost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from harness.capture.live import LiveFrame, LiveTap
from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.host.network import Network, Port
from harness.host.tap import queue_is_empty, read_queue
from harness.host.vhost import vhost_workers
from harness.vm.machine import Machine
from harness.vm.virtqueue import ReceiveFilter, ReceiveRing, read_receive_filter, read_receive_ring, works_by_vhost

__all__ = ["FrameAccount", "StopPoint", "missing_by_lengths", "missing_from_ring"]

ONE_BUFFER_BYTES = 1514
"""A frame up to this size fits any receive buffer that a Linux guest posts."""
VNET_HEADER_BYTES = 12
_INDEX_MODULUS = 1 << 16
_MOST_SWALLOWED = 64
_MOST_TAKEN_BEFORE = 4
"""Frames that a stock QEMU read before its stop and did not deliver: at most one purged and one parked, and a margin."""
_MOST_RECENT = 20_000
_MARKS, _TRIES = 8, 10
_CALM_READINGS = 3
"""Readings in a row that must agree. Each is answered by the loop that reads the TAP, so what had arrived was dealt with."""


@dataclass(frozen=True)
class _Mark:
    """A quiet moment, over at `time_ns`: all frames before `number` had come to the ring, whose index was `used_index`."""

    number: int
    used_index: int
    time_ns: int


@dataclass(frozen=True)
class StopPoint:
    """Where a stopped guest's knowledge ends; numbers are those of the live tap.

    Frames before `first_undelivered` reached the guest (or were refused by its device's filter). Those from there up to `first_unread`
    were taken by QEMU and not delivered: parked, or freed by the stop path. The rest waits in the TAP's queue.
    """

    first_undelivered: int
    first_unread: int
    used_index: int
    doubtful: int = 0
    """Of the frames called undelivered, so many (TCP segments, the oldest ones) may have reached the guest."""
    queues: tuple[StopPoint, ...] = ()
    """Of a TAP with several queues: one for each, numbered in its own live view. The fields above say nothing then, and in those of a
    queue `first_unread` doesn't: the TAP counts what was read from all of them together."""

    @property
    def swallowed(self) -> int:
        return max(0, self.first_unread - self.first_undelivered)


def missing_by_lengths(
    frame_bytes: Sequence[int], ring_bytes: Sequence[int], *, header_bytes: int = VNET_HEADER_BYTES, least: int = 0,
    most: int = _MOST_SWALLOWED,
) -> list[int]:
    """How many of the newest frames may be missing from the ring: every number from `least` to `most` that the lengths allow.

    `frame_bytes`: lengths of the frames sent, oldest first; `ring_bytes`: bytes written to each of the last buffers, oldest
    first. A frame with its header fills one or more whole buffers; the ring's oldest frame may be cut off.
    """
    allowed = []
    for missing in range(least, min(most, len(frame_bytes)) + 1):
        position, matched, fits = len(ring_bytes), 0, True
        for length in reversed(frame_bytes[: len(frame_bytes) - missing]):
            needed = length + header_bytes
            while needed > 0 and position > 0:
                position -= 1
                needed -= ring_bytes[position]
            if needed < 0:
                fits = False
                break
            if needed > 0:  # the ring doesn't reach back further
                break
            matched += 1
        if fits and matched:
            allowed.append(missing)
    return allowed


def frames_in_buffers(frame_bytes: Sequence[int], ring_bytes: Sequence[int], *, header_bytes: int = VNET_HEADER_BYTES) -> int | None:
    """How many frames, from the first on, fill exactly these buffers (bytes written to each, oldest first). None if no number of them does."""
    position, total = 0, 0
    for count, length in enumerate([0, *frame_bytes]):
        total += length + header_bytes if count else 0
        while total > 0 and position < len(ring_bytes):
            total -= ring_bytes[position]
            position += 1
        if total != 0:
            return None
        if position == len(ring_bytes):
            return count
    return None


class FrameAccount:
    """The account of one machine's TAP, or with `pair` of that queue of it. `tap` has seen every frame to it."""

    def __init__(self, machine: Machine, tap: LiveTap, *, network: Network, port: Port, nic: str, pair: int | None = None) -> None:
        self._machine = machine
        self._tap = tap
        self._network = network
        self._port = port
        self._nic = nic
        self._pair = pair
        self._filter: ReceiveFilter | None = None
        self._offset: int | None = None  # (frames that passed since then - buffers used) mod 65536, nothing missing
        self._suspended: int | None = None
        self._scanned = 0  # frames below this number were looked at
        self._passed = 0  # of those since the account began, how many pass the device's filter
        self._recent: deque[LiveFrame] = deque(maxlen=_MOST_RECENT)  # the newest of them
        self._countable = True  # each of them took one buffer
        self._read_before: int | None = None  # the TAP's counter less the number of frames sent to it, when all of those were read
        self._never: set[int] = set()  # frames that the guest can't get
        self._marks: deque[_Mark] = deque(maxlen=_MARKS)
        self.wants_marks = False
        """Frames of several buffers passed that nobody may send again: then `look` from time to time, so that the stop finds a mark near it."""
        self.reason = "its account was never begun"

    @property
    def synchronised(self) -> bool:
        """Whether the account holds; `reason` says why not."""
        return self._offset is not None

    async def empty_queue(self, *, deadline: Deadline) -> None:
        """Before anybody reads the TAP: throw away what waits there, and remember what its counter says when all was read."""
        last: int | None = None  # twice the same: a frame is captured a moment before it is queued
        while True:
            before = self._tap.drain()
            read_queue(self._port.fds)
            counters = await self._network.counters(self._port)
            found = counters.tx_packets - before
            if found == last and self._tap.drain() == before and all(queue_is_empty(fd) for fd in self._port.fds):
                self._read_before = found
                return
            if deadline.expired:
                raise deadline.error("a quiet moment at a TAP that nobody reads")
            last = found
            await asyncio.sleep(0.002)

    def never(self, number: int) -> None:
        """The frame of that number does not reach the guest, whatever its filter says: QEMU drops it, or it was taken back."""
        self._never.add(number)

    async def _dealt_with(self, sent: int) -> bool:
        """Whether all is written of the first `sent` frames; without vhost the readings themselves tell (they are answered by the loop that reads)."""
        if not works_by_vhost(self._machine, nic=self._nic):
            return True
        counters = await self._network.counters(self._port)
        # In this order: it took the last frame, and only then fell asleep.
        if self._read_before is None or counters.tx_packets - sent != self._read_before:
            return False
        return all(worker.idle for worker in vhost_workers())

    async def _calm(self) -> _Mark | None:
        """Where the ring stands, if nothing arrives for some readings, and all that did was dealt with."""
        before = self._tap.drain()
        dealt_with = await self._dealt_with(before)
        indices = {(await self._ring()).used_index for _ in range(_CALM_READINGS)}
        if not dealt_with or self._tap.drain() != before or len(indices) != 1:
            return None
        return _Mark(before, indices.pop(), time.time_ns())

    async def sync(self, *, deadline: Deadline) -> None:
        """Begin the account in a quiet moment: nothing arrives for some readings, and all that did was dealt with."""
        if len(self._port.fds) > 1 and self._pair is None:
            raise TestbedError(f"{self._port.name} has {len(self._port.fds)} queues, and the account follows one")
        if works_by_vhost(self._machine, nic=self._nic) and self._read_before is None:
            raise TestbedError(f"what was sent to {self._port.name} before the guest came is not known, and with vhost has to be")
        self._offset, self.reason = None, "no quiet moment was found"
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        while True:
            before = self._tap.drain()
            mark, counters = await self._calm(), await self._network.counters(self._port)
            if mark is not None and self._tap.drain() == mark.number:
                self._begin(mark)
                self._offset = -mark.used_index % _INDEX_MODULUS
                self._read_before = counters.tx_packets - mark.number
                return
            if deadline.expired:
                raise deadline.error("a quiet moment at the guest's TAP", seen=f"{self._tap.count - before} frames in a reading")
            await asyncio.sleep(0.005)

    def suspend(self, reason: str) -> None:
        """The machine was stopped and goes on: its stop path may have freed a frame, so the account no longer holds.

        What it stood at is kept, however often that is said.
        """
        if self._offset is not None:
            self._suspended = self._offset
        self._offset, self.reason = None, reason

    def continue_without(self, freed: int) -> None:
        """The suspended account holds after all: so many frames were sent to the TAP and never came to the ring."""
        if self._suspended is not None:
            self._offset = (self._suspended + freed) % _INDEX_MODULUS

    async def resume_from(self, stop: StopPoint, *, source: FrameAccount) -> None:
        """Begin the account of a destination: its guest comes with the source's ring, and its TAP is fresh, or the source's."""
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        same_tap = self._tap is source._tap
        self._begin(_Mark(stop.first_undelivered if same_tap else 0, stop.used_index, time.time_ns()))
        self._offset = -stop.used_index % _INDEX_MODULUS
        self._read_before = source._read_before if same_tap else 0

    async def ended(self, stop: StopPoint) -> StopPoint:
        """`stop`, when its machine has ended: the TAP's counter now says all that QEMU read, as the frame that it parked after it was asked.

        Nobody else may have read the TAP meanwhile. With several queues it is `stop` itself.
        """
        if stop.queues or self._read_before is None:
            return stop
        counters = await self._network.counters(self._port)
        return dataclasses.replace(stop, first_unread=counters.tx_packets - self._read_before)

    async def left(self, stop: StopPoint) -> list[list[LiveFrame]]:
        """What was sent to each queue and not delivered, from a machine's stop until now."""
        return [self._tap.frames(first=stop.first_undelivered)]

    @property
    def taps(self) -> tuple[LiveTap, ...]:
        """Live views of its own, to be closed with it."""
        return ()

    async def _ring(self, *, lengths: bool = False) -> ReceiveRing:
        return await read_receive_ring(self._machine, nic=self._nic, pair=self._pair or 0, lengths=lengths)

    async def missing(self, *, deadline: Deadline) -> int:
        """How many frames of one buffer each were sent since the account began and never came to the ring; waits for a quiet moment.

        Holds for a suspended account too: what the stop path freed is among them. `TestbedError` when it can't be told.
        """
        offset = self._suspended if self._offset is None else self._offset
        if offset is None:
            raise TestbedError(f"what the guest of {self._machine.spec.name} received can't be told: {self.reason}")
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        while True:
            before = self._tap.drain()
            mark = await self._calm()
            if mark is not None:
                break
            if deadline.expired:
                raise deadline.error("a quiet moment at the guest's TAP", seen=f"{self._tap.count - before} frames in a reading")
            await asyncio.sleep(0.005)
        self._scan(end=mark.number)
        if self._tap.dropped:
            raise TestbedError(f"the live capture of {self._tap.interface} dropped {self._tap.dropped} frames")
        if not self._countable:
            raise TestbedError("frames of several buffers passed, or more than the live capture keeps")
        found = (self._passed - mark.used_index - offset) % _INDEX_MODULUS
        if found > self._passed:
            raise TestbedError(f"the guest has {_INDEX_MODULUS - found} frames more than were sent to it since the account began")
        return found

    def _begin(self, mark: _Mark) -> None:
        self._scanned = mark.number
        self._passed, self._countable, self.wants_marks = 0, True, False
        self._recent.clear()
        self._marks.clear()
        self._marks.append(mark)

    async def look(self) -> None:
        """Take in what was sent until now, so that there is less to look at when the machine has stopped.

        Where `wants_marks`, it is taken down where the ring stands, if the moment is quiet.
        """
        if self._offset is None:
            return
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        self._scan(end=self._tap.drain())
        for _ in range(_TRIES if self.wants_marks else 0):
            if (mark := await self._mark()) is not None:
                self._marks.append(mark)
                break
            await asyncio.sleep(0.002)

    async def _mark(self) -> _Mark | None:
        """Where the ring stands, if the TAP's counter says that all was read, and nothing arrives during one reading."""
        before = self._tap.drain()
        counters = await self._network.counters(self._port)
        if self._read_before is None or counters.tx_packets - before != self._read_before or not await self._dealt_with(before):
            return None
        ring = await self._ring()
        return _Mark(before, ring.used_index, time.time_ns()) if self._tap.drain() == before else None

    def _scan(self, *, end: int) -> None:
        """Look at the frames up to number `end` that were not looked at yet."""
        assert self._filter is not None
        if self._tap.oldest > self._scanned:  # forgotten unseen: only the lengths can tell then
            self._countable = False
            self._recent.clear()
            self._marks.clear()
        for frame in self._tap.frames(first=self._scanned):
            if frame.number >= end:
                break
            if frame.number not in self._never and self._filter.passes(frame.frame):
                self._passed += 1
                if len(frame.frame) > ONE_BUFFER_BYTES:
                    self._countable = False
                    self.wants_marks |= self._pair is None and not _is_tcp(frame.frame)
                self._recent.append(frame)
        self._scanned = max(self._scanned, end)

    async def at_stop(self, *, stop_ns: int) -> StopPoint:
        """Where the guest's knowledge ends. The machine must be stopped (at `stop_ns`) and has been so ever since.

        `TestbedError` when the evidence does not allow a definite answer; nothing is guessed.
        """
        if self._offset is None:
            raise TestbedError(f"what the guest of {self._machine.spec.name} received can't be told: {self.reason}")
        if self._tap.dropped:
            raise TestbedError(f"the live capture of {self._tap.interface} dropped {self._tap.dropped} frames")
        # A guest that changed its filter since (it joined a group, say) did so before frames came for it.
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        ring = await self._ring()
        end = self._tap.drain()  # frames that arrive from here on are missing too, but belong to no figure below
        counters = await self._network.counters(self._port)
        assert self._read_before is not None
        first_unread = counters.tx_packets - self._read_before
        self._scan(end=end)
        recent = list(self._recent)
        doubtful = 0
        if self._countable:
            missing = (self._passed - ring.used_index - self._offset) % _INDEX_MODULUS
        elif self._pair is not None:
            raise TestbedError("frames of several buffers passed, and several queues: what was read from which of them is not known")
        else:
            # From the guest's memory, which is live where a destination shares it: not read unless it is needed.
            ring = await self._ring(lengths=True)
            counted = self._since_a_mark(ring, recent, stop_ns=stop_ns)
            missing, doubtful = missing_from_ring(ring, recent, stop_ns=stop_ns, first_unread=first_unread, counted=counted)
        if missing > len(recent):
            raise TestbedError(f"{missing} frames are missing, more than the {len(recent)} that were kept")
        first_undelivered = recent[-missing].number if missing else end
        return StopPoint(
            first_undelivered=first_undelivered, first_unread=first_unread if self._pair is None else first_undelivered,
            used_index=ring.used_index, doubtful=doubtful,
        )  # fmt: skip

    def _since_a_mark(self, ring: ReceiveRing, recent: Sequence[LiveFrame], *, stop_ns: int) -> int | None:
        """How many frames are missing, counted off in the ring from the newest quiet moment before the stop. None where there was none near enough.

        The index wraps: an answer far from what is possible comes from a mark too old.
        """
        mark = next((mark for mark in reversed(self._marks) if mark.time_ns < stop_ns), None)
        if mark is None:
            return None
        buffers = (ring.used_index - mark.used_index) % _INDEX_MODULUS
        if buffers > len(ring.lengths):
            return None
        since = [frame for frame in recent if frame.number >= mark.number]
        got = frames_in_buffers([len(frame.frame) for frame in since], ring.lengths[len(ring.lengths) - buffers :])
        return None if got is None else len(since) - got


def missing_from_ring(
    ring: ReceiveRing, recent: Sequence[LiveFrame], *, stop_ns: int, first_unread: int, counted: int | None = None
) -> tuple[int, int]:
    """How many of the newest frames are missing from the ring, by their lengths; and how many of those may be there all the same.

    `first_unread`: number of the first frame that QEMU did not read; `counted`: what another count says, which decides if the lengths allow
    it. `TestbedError` where several numbers fit and it would matter.
    """
    unread = sum(frame.number >= first_unread for frame in recent)
    taken_since = sum(frame.number < first_unread and frame.time_ns > stop_ns for frame in recent)
    allowed = missing_by_lengths(
        [len(f.frame) for f in recent], ring.lengths, least=unread, most=unread + taken_since + _MOST_TAKEN_BEFORE
    )
    if not allowed:
        raise TestbedError("the receive ring does not tell which frames the guest got: its lengths fit no number of missing frames")
    if counted in allowed:
        return counted, 0
    fewest, most = allowed[0], allowed[-1]
    if fewest == most:
        return most, 0
    if all(_is_tcp(frame.frame) for frame in recent[len(recent) - most : len(recent) - fewest]):
        return most, most - fewest
    raise TestbedError(
        "the receive ring does not tell which frames the guest got"
        f" ({len(allowed)} numbers fit): frames of several buffers and all of like length"
    )


def _is_tcp(frame: bytes) -> bool:
    """Whether it is a TCP segment over IPv4 or plain IPv6."""
    kind = frame[12:14]
    return (kind == b"\x08\x00" and frame[23:24] == b"\x06") or (kind == b"\x86\xdd" and frame[20:21] == b"\x06")
