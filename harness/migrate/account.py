"""Which of the frames sent to a TAP did the guest get? Captured frames against used buffers.

Nothing in QEMU says it directly. But the receive ring's used index counts the buffers that were handed to the guest, and the
capture counts the frames that were handed to the TAP: while frames of one buffer each pass, their difference is constant.
`FrameAccount.sync` finds it in a quiet moment; after a stop, `at_stop` says where the guest's knowledge ends. Frames that take
several buffers (mergeable buffers, GSO) are told apart by the lengths in the used ring. And what QEMU took from the TAP's
queue, delivered or not, is told by the TAP's own counter: tun counts a packet as transmitted when it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from harness.capture.live import LiveFrame, LiveTap
from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.host.network import Network, Port
from harness.vm.machine import Machine
from harness.vm.virtqueue import ReceiveFilter, ReceiveRing, read_receive_filter, read_receive_ring

__all__ = ["FrameAccount", "StopPoint", "missing_by_lengths"]

ONE_BUFFER_BYTES = 1514
"""A frame up to this size fits any receive buffer that a Linux guest posts."""
VNET_HEADER_BYTES = 12
_INDEX_MODULUS = 1 << 16
_MOST_SWALLOWED = 64
_MOST_RECENT = 20_000
_CALM_READINGS = 3
"""Readings in a row that must agree. Each is answered by the loop that reads the TAP, so what had arrived was dealt with."""


@dataclass(frozen=True)
class StopPoint:
    """Where a stopped guest's knowledge ends; numbers are those of the live tap.

    Frames before `first_undelivered` reached the guest (or were refused by its device's filter). Those from there up to `first_unread`
    were taken by QEMU and not delivered: parked, or freed by the stop path. The rest waits in the TAP's queue.
    """

    first_undelivered: int
    first_unread: int
    used_index: int

    @property
    def swallowed(self) -> int:
        return max(0, self.first_unread - self.first_undelivered)


def missing_by_lengths(
    frame_bytes: Sequence[int], ring_bytes: Sequence[int], *, header_bytes: int = VNET_HEADER_BYTES, most: int = _MOST_SWALLOWED
) -> list[int]:
    """How many of the newest frames may be missing from the ring: every number that the lengths allow.

    `frame_bytes`: lengths of the frames sent, oldest first; `ring_bytes`: bytes written to each of the last buffers, oldest
    first. A frame with its header fills one or more whole buffers; the ring's oldest frame may be cut off.
    """
    allowed = []
    for missing in range(min(most, len(frame_bytes)) + 1):
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


class FrameAccount:
    """The account of one machine's TAP (one queue). `tap` has seen every frame to it."""

    def __init__(self, machine: Machine, tap: LiveTap, *, network: Network, port: Port, nic: str) -> None:
        self._machine = machine
        self._tap = tap
        self._network = network
        self._port = port
        self._nic = nic
        self._filter: ReceiveFilter | None = None
        self._since = 0  # frames from this number on are counted
        self._offset: int | None = None  # (frames that passed since then - buffers used) mod 65536, nothing missing
        self._suspended: int | None = None
        self._read_before = 0  # the TAP's counter less the number of frames sent to it, in a quiet moment
        self.reason = "its account was never begun"

    @property
    def synchronised(self) -> bool:
        """Whether the account holds; `reason` says why not."""
        return self._offset is not None

    async def sync(self, *, deadline: Deadline) -> None:
        """Begin the account in a quiet moment: nothing arrives for some readings, and all that did was dealt with."""
        if len(self._port.fds) > 1:
            raise TestbedError(f"{self._port.name} has {len(self._port.fds)} queues, and the account follows one")
        self._offset, self.reason = None, "no quiet moment was found"
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        while True:
            before = self._tap.drain()
            rings = [await read_receive_ring(self._machine, nic=self._nic) for _ in range(_CALM_READINGS)]
            counters = await self._network.counters(self._port)
            if self._tap.drain() == before and len({ring.used_index for ring in rings}) == 1:
                self._since = before
                self._offset = -rings[-1].used_index % _INDEX_MODULUS
                self._read_before = counters.tx_packets - before
                return
            if deadline.expired:
                raise deadline.error("a quiet moment at the guest's TAP", seen=f"{self._tap.count - before} frames in a reading")
            await asyncio.sleep(0.005)

    def suspend(self, reason: str) -> None:
        """The machine was stopped and goes on: its stop path may have freed a frame, so the account no longer holds."""
        self._suspended, self._offset, self.reason = self._offset, None, reason

    def continue_without(self, freed: int) -> None:
        """The suspended account holds after all: so many frames were sent to the TAP and never came to the ring."""
        if self._suspended is not None:
            self._offset = (self._suspended + freed) % _INDEX_MODULUS

    async def resume_from(self, stop: StopPoint, *, source: FrameAccount) -> None:
        """Begin the account of a destination: its guest comes with the source's ring, and its TAP is fresh, or the source's."""
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        same_tap = self._tap is source._tap
        self._since = stop.first_undelivered if same_tap else 0
        self._offset = -stop.used_index % _INDEX_MODULUS
        self._read_before = source._read_before if same_tap else 0

    async def missing(self) -> int:
        """How many frames of one buffer each were sent since the account began and never came to the ring, all being quiet.

        `TestbedError` when it can't be told.
        """
        if self._offset is None:
            raise TestbedError(f"what the guest of {self._machine.spec.name} received can't be told: {self.reason}")
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        before = self._tap.drain()
        rings = [await read_receive_ring(self._machine, nic=self._nic) for _ in range(_CALM_READINGS)]
        recent, passed = self._passing(end=before)
        if self._tap.drain() != before or len({ring.used_index for ring in rings}) != 1:
            raise TestbedError("frames still arrive")
        if not all(len(frame.frame) <= ONE_BUFFER_BYTES for frame in recent):
            raise TestbedError("frames of several buffers passed")
        return (passed - rings[-1].used_index - self._offset) % _INDEX_MODULUS

    def _passing(self, *, end: int) -> tuple[list[LiveFrame], int]:
        """The newest frames before number `end` that pass the device's filter, and how many did since the account began."""
        assert self._filter is not None
        if self._tap.oldest > self._since:
            raise TestbedError(f"more frames were sent to {self._tap.interface} than the live capture keeps")
        passing = [f for f in self._tap.frames(first=self._since) if f.number < end and self._filter.passes(f.frame)]
        return passing[-_MOST_RECENT:], len(passing)

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
        ring = await read_receive_ring(self._machine, nic=self._nic, lengths=True)
        end = self._tap.drain()  # frames that arrive from here on are missing too, but belong to no figure below
        recent, passed = self._passing(end=end)
        if all(len(frame.frame) <= ONE_BUFFER_BYTES for frame in recent):
            missing = (passed - ring.used_index - self._offset) % _INDEX_MODULUS
        else:
            missing = _missing_from_ring(ring, recent, stop_ns=stop_ns)
        if missing > len(recent):
            raise TestbedError(f"{missing} frames are missing, more than the {len(recent)} that were kept")
        counters = await self._network.counters(self._port)
        return StopPoint(
            first_undelivered=recent[-missing].number if missing else end,
            first_unread=counters.tx_packets - self._read_before, used_index=ring.used_index,
        )  # fmt: skip


def _missing_from_ring(ring: ReceiveRing, recent: Sequence[LiveFrame], *, stop_ns: int) -> int:
    # All that was sent since the stop is missing, and perhaps a little of what was sent just before it.
    after_stop = sum(frame.time_ns > stop_ns for frame in recent)
    allowed = missing_by_lengths([len(f.frame) for f in recent], ring.lengths, most=after_stop + _MOST_SWALLOWED)
    if len(allowed) != 1:
        raise TestbedError(
            "the receive ring does not tell which frames the guest got"
            f" ({len(allowed)} numbers fit): frames of several buffers and all of like length"
        )
    return allowed[0]
