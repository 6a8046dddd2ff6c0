"""Which of the frames sent to a TAP did the guest get? Captured frames against used buffers.

Nothing in QEMU says it directly. But the receive ring's used index counts the buffers that were handed to the guest, and the
capture counts the frames that were handed to the TAP: while frames of one buffer each pass, their difference is constant.
`FrameAccount.sync` finds it on a running machine; after a stop, `first_undelivered` says where the guest's knowledge ends.
Frames that take several buffers (mergeable buffers, GSO) are told apart by the lengths in the used ring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from harness.capture.live import LiveFrame, LiveTap
from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.vm.machine import Machine
from harness.vm.virtqueue import ReceiveFilter, ReceiveRing, read_receive_filter, read_receive_ring

__all__ = ["FrameAccount", "missing_by_lengths"]

ONE_BUFFER_BYTES = 1514
"""A frame up to this size fits any receive buffer that a Linux guest posts."""
VNET_HEADER_BYTES = 12
_INDEX_MODULUS = 1 << 16
_MOST_SWALLOWED = 64
_MOST_RECENT = 20_000


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
    """The account of one machine's TAP (one queue). `tap` has seen every frame since before the last `sync`."""

    def __init__(self, machine: Machine, tap: LiveTap, *, nic: str) -> None:
        self._machine = machine
        self._tap = tap
        self._nic = nic
        self._filter: ReceiveFilter | None = None
        self._next_number = 0  # frames below it are counted in _passed
        self._passed = 0
        self._offset: int | None = None  # (frames that passed the filter - buffers used) mod 65536, nothing missing

    @property
    def tap(self) -> LiveTap:
        return self._tap

    @property
    def synchronised(self) -> bool:
        return self._offset is not None

    def _count_passing(self) -> int:
        """Frames sent so far that pass the device's filter."""
        assert self._filter is not None
        for frame in self._tap.frames(first=self._next_number):
            self._passed += self._filter.passes(frame.frame)
            self._next_number = frame.number + 1
        return self._passed

    async def sync(self, *, deadline: Deadline) -> None:
        """Find the constant difference while the machine runs and loses nothing.

        The truth lies between (count before the query - index) and (count after it - index); samples are taken
        until both bounds meet, which any pause in the traffic of about a millisecond allows.
        """
        self._offset = None
        self._filter = await read_receive_filter(self._machine, nic=self._nic)
        lower, upper = -1, -1
        reference: int | None = None
        while True:
            before = self._count_passing()
            ring = await read_receive_ring(self._machine, nic=self._nic)
            after = self._count_passing()
            if reference is None:
                reference = (before - ring.used_index) % _INDEX_MODULUS
                lower, upper = -_INDEX_MODULUS, _INDEX_MODULUS
            # Differences are taken around the first sample, which keeps the wrap-around out of the comparison.
            lower = max(lower, _signed(before - ring.used_index - reference))
            upper = min(upper, _signed(after - ring.used_index - reference))
            if lower == upper:
                self._offset = (reference + lower) % _INDEX_MODULUS
                return
            if lower > upper:
                raise TestbedError(
                    f"frames to {self._machine.spec.name} and its receive ring don't go together"
                    f" ({lower} > {upper}): frames took several buffers, or the capture missed some"
                )
            if deadline.expired:
                raise deadline.error("the capture and the receive ring to agree", seen=f"between {lower} and {upper}")
            await asyncio.sleep(0.002)

    async def settled_loss(self, *, deadline: Deadline) -> int:
        """Frames missing for good on a machine that runs again: sent to it since `sync`, never handed to the guest."""
        assert self._offset is not None
        known = self._offset
        lower, upper = -_INDEX_MODULUS, _INDEX_MODULUS
        while lower != upper:
            before = self._count_passing()
            ring = await read_receive_ring(self._machine, nic=self._nic)
            after = self._count_passing()
            lower = max(lower, _signed(before - ring.used_index - known))
            upper = min(upper, _signed(after - ring.used_index - known))
            if deadline.expired:
                raise deadline.error("the guest to take in all frames", seen=f"{lower} to {upper} frames are missing")
            if lower != upper:
                await asyncio.sleep(0.002)
        return lower

    async def first_undelivered(self, *, stop_ns: int) -> int:
        """Number (of the live tap) of the first frame that the guest did not get. The machine stopped at `stop_ns`.

        `TestbedError` when the evidence does not allow a definite answer; nothing is guessed.
        """
        if self._offset is None or self._filter is None:
            raise TestbedError("the account was never synchronised")
        if self._tap.dropped:
            raise TestbedError(f"the live capture of {self._tap.interface} dropped {self._tap.dropped} frames")
        ring = await read_receive_ring(self._machine, nic=self._nic, lengths=True)
        since_sync = self._next_number
        passed = self._count_passing()
        end = self._next_number  # frames that arrive from here on are missing too, but belong to no figure below
        recent = [
            frame for frame in self._tap.frames(first=max(self._tap.oldest, end - _MOST_RECENT))
            if frame.number < end and self._filter.passes(frame.frame)
        ]
        if all(len(frame.frame) <= ONE_BUFFER_BYTES for frame in recent if frame.number >= since_sync):
            missing = (passed - ring.used_index - self._offset) % _INDEX_MODULUS
        else:
            missing = _missing_from_ring(ring, recent, stop_ns=stop_ns)
        if missing > len(recent):
            raise TestbedError(f"{missing} frames are missing, more than the {len(recent)} that were kept")
        return recent[-missing].number if missing else end


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


def _signed(difference: int) -> int:
    """A difference modulo 65536 as the number nearest to zero."""
    return (difference + _INDEX_MODULUS // 2) % _INDEX_MODULUS - _INDEX_MODULUS // 2
