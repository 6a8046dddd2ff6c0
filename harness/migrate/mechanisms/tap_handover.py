"""Zero loss with an unmodified QEMU: the frames that wait at the source's TAP are handed to the destination's.

While the source waits in pre-switchover, its guest's receive ring tells exactly which frame was the last one it got
(`harness.migrate.account`); everything after it is copied, in order, into the destination's TAP queue, which nobody reads before
RESUME and which so holds back whatever comes later. Then the bridge moves over. The one frame that QEMU
parks at its stop and the one it now and then frees are among the copies: they are frames that the guest did not get.

Newer frames must not overtake, and the bridge can't be changed in the same instant in which the last copy is written. So the move is
optimistic: copy until nothing is left, change the bridge (one batch, some 30 us), look whether a frame still went
to the source in between. If one did, change back, read the destination's queue out, put all of it in
the order of the kernel's timestamps, write it back, and try again. Nothing reads meanwhile, so nobody sees the attempt.

With vhost it is the same: vhost stops with the guest, gives back what it had taken and not delivered, and begins at RESUME. Between the two it is
QEMU that reads the TAP, on both sides, parks one frame, and frees that when vhost begins again. At the destination that is the frame of
zeros; at a source that goes on it is one that the guest has to be given.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence
from typing import ClassVar

from harness.capture.live import Injector, LiveFrame
from harness.errors import DeadlineError, TestbedError
from harness.host.bridge import PortFlags, forward_to, port_message
from harness.host.deadline import Deadline
from harness.host.tap import allow_super_frames, queue_is_empty, read_queue
from harness.migrate.account import StopPoint
from harness.migrate.mechanisms.base import Mechanism, Report, Side, SwitchContext
from harness.vm.virtqueue import works_by_vhost

__all__ = ["TapHandover"]

_MOST_ATTEMPTS = 200
_FENCE_S = 0.0003
"""A frame that was on its way through the bridge when it changed has arrived somewhere by then."""
_STRAGGLERS_NS = 200_000_000
"""How long to wait for such a frame when it is known that one is missing."""
_LEAST_ATTEMPTS = 20
"""How often to look for it, on a host so busy that the wait is over at once."""
_QUIET_NS = 2_000_000
"""How long to wait for one more frame before the bridge is changed: twice the interval of common probe streams."""
_TAKEN_S = 0.02
"""A QEMU that polls a TAP has read what was sent to it by then."""
_NEEDS_CHECKSUM = 1
_FILLER = bytes(60)
"""A frame for no address."""
_PARKED_S = 5.0
_SAME_FLOOD_NS = 200_000
"""Copies of one flooded frame leave the bridge within this time."""


class TapHandover(Mechanism):
    """The mechanism `tap-handover`."""

    name: ClassVar[str] = "tap-handover"
    needs_pause: ClassVar[bool] = True
    steers_bridge: ClassVar[bool] = True
    one_queue: ClassVar[bool] = True

    def __init__(self) -> None:
        self._to_destination: Injector | None = None
        self._passed: list[LiveFrame] = []
        self._returned: list[LiveFrame] = []
        self._stop: StopPoint | None = None  # where the guest's knowledge ends at the source
        self._cut = 0  # frames of the source's TAP below this number were copied, or need not be
        self._attempts = 0
        self._moved = False
        self._freed: list[LiveFrame] = []
        self._macs: list[str] = []
        self._gso_types: set[int] = {0}
        self._first_direct = 0  # frames of the destination's TAP from this number on came through the bridge
        self._came_early: list[LiveFrame] = []  # those that did in an attempt that failed

    async def prepare(self, context: SwitchContext) -> None:
        if not context.source.account.synchronised:
            reason = context.source.account.reason
            raise TestbedError(f"tap-handover must know what the guest received, and that can't be told: {reason}")
        self._to_destination = context.injector(context.destination)
        await self._fill_parking_place(context)

    async def stopped(self, context: SwitchContext, *, stop_ns: int) -> None:
        self._stop = await context.source.account.at_stop(stop_ns=stop_ns)
        self._cut = self._stop.first_undelivered
        if self._stop.doubtful:
            context.note(
                f"{self._stop.doubtful} TCP segments may have reached the guest before the stop, and are sent again: TCP drops what it has"
            )

    async def before_continue(self, context: SwitchContext, *, stop_ns: int) -> None:
        await self._find_freed(context, stop_ns=stop_ns)
        self._macs = await context.network.forwarding_entries(context.source.port)
        began_ns = time.time_ns()
        self._move(context)
        context.event(
            "handover",
            {"frames": len(self._passed), "attempts": self._attempts, "took_us": (time.time_ns() - began_ns) // 1000},
        )

    async def before_cancel(self, context: SwitchContext, *, stop_ns: int) -> None:
        await self._find_freed(context, stop_ns=stop_ns)

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        """Give the source's guest what QEMU's stop path freed, and what already went to the other side."""
        if stop_ns is None:
            return
        source = context.source
        source.account.continue_without(len(self._freed))
        to_source = context.injector(source)
        if self._moved:
            self._move_back(context, to_source)
        freed = [frame for frame in self._freed if frame.frame != _FILLER]
        to_source.send_all(freed, deadline_ns=_soon_ns())
        self._returned += freed
        if freed:
            context.note(f"{len(freed)} frame that the stop path freed was given back, behind newer ones")

    async def _find_freed(self, context: SwitchContext, *, stop_ns: int) -> None:
        """What the stop path freed: the frames that QEMU took and did not deliver, but for the parked one.

        That one waits in QEMU until the source resumes, and while it does QEMU takes no more. So if frames wait in the TAP there is a
        parked one; if none do, a frame of zeros (which the device's filter refuses) shows whether QEMU still takes them.
        """
        source = context.source
        if works_by_vhost(source.machine, nic=context.nic):
            await self._find_freed_by_vhost(context, stop_ns=stop_ns)
            return
        stop = await source.account.at_stop(stop_ns=stop_ns)
        taken = source.live.frames(first=stop.first_undelivered)[: stop.swallowed]
        if not taken:
            return
        parked = stop.first_unread < source.live.drain()
        if not parked:
            (fd,) = source.port.fds
            context.injector(source).send(bytes(12), _FILLER, deadline_ns=_soon_ns())
            await asyncio.sleep(_TAKEN_S)
            parked = not queue_is_empty(fd)
        self._freed = taken[:-1] if parked else taken

    async def _find_freed_by_vhost(self, context: SwitchContext, *, stop_ns: int) -> None:
        """What QEMU frees when vhost begins again: all that it took since the stop, the parked frame. If there is none, one of zeros takes its place."""
        source = context.source
        deadline = context.deadline.within(_PARKED_S)
        filled = False
        while True:
            stop = await source.account.at_stop(stop_ns=stop_ns)
            self._freed = source.live.frames(first=stop.first_undelivered)[: stop.swallowed]
            if self._freed:
                return
            if not filled:
                context.injector(source).send(bytes(12), _FILLER, deadline_ns=_soon_ns())
                filled = True
            if deadline.expired:
                raise deadline.error("the stopped source to read its TAP")
            await asyncio.sleep(0.002)

    async def finish(self, context: SwitchContext) -> Report:
        if self._moved and self._to_destination is not None:
            late = context.source.live.frames(first=self._cut)
            if late:
                # The fence was too short for them; delivered late is better than lost, and it is said.
                self._to_destination.send_all(late, deadline_ns=_soon_ns())
                self._passed += late
                context.note(f"{len(late)} frames reached the source's TAP after the handover and were passed late")
        held = self._held_back(context) if self._moved else []
        figures = {"handover_attempts": self._attempts, "copied": len(self._passed), "held_back": len(held)}
        return Report(passed=(*self._passed, *held), returned=tuple(self._returned), figures=figures)

    def _held_back(self, context: SwitchContext) -> list[LiveFrame]:
        """Frames that the bridge already sent to the destination's TAP, where they waited for RESUME."""
        role = context.destination.machine.role
        resumes = [event for event in context.timeline if (event.name, event.source) == ("RESUME", role)]
        if not resumes:
            return []
        resume = resumes[-1]
        direct = context.destination.live.frames(first=self._first_direct)
        return [frame for frame in direct if frame.time_ns <= resume.t_ns]

    async def _fill_parking_place(self, context: SwitchContext) -> None:
        """Let the destination's QEMU park a frame that nobody misses.

        It reads one frame from its TAP before the incoming state has told it the length of the virtio-net header (10 bytes
        then, 12 later), and hands it to the guest two bytes off when it resumes. A frame of zeros for no
        address is refused by the device's filter either way.
        """
        assert self._to_destination is not None
        (fd,) = context.destination.port.fds
        if works_by_vhost(context.destination.machine, nic=context.nic):
            context.destination.account.never(context.destination.live.drain())
        self._to_destination.send(bytes(12), _FILLER, deadline_ns=_soon_ns())

        async def taken() -> bool:
            return queue_is_empty(fd)

        try:
            await Deadline(1.0).poll(taken, awaited="the destination to read its TAP")
        except DeadlineError:
            read_queue([fd])  # it had parked something before, or does not read at all: then the place is taken

    # -- the move; synchronous, since nothing may come in between

    def _move(self, context: SwitchContext) -> None:
        source, destination, control = context.source, context.destination, context.network.control
        over = [
            port_message(destination.port.ifindex, PortFlags.opened()),
            *(forward_to(mac, destination.port.ifindex) for mac in self._macs),
            port_message(source.port.ifindex, PortFlags.closed()),
        ]
        back = [
            port_message(source.port.ifindex, PortFlags.opened()),
            *(forward_to(mac, source.port.ifindex) for mac in self._macs),
            port_message(destination.port.ifindex, PortFlags.closed()),
        ]
        for self._attempts in range(1, _MOST_ATTEMPTS + 1):
            self._copy_until_quiet(source, destination)
            injected = destination.live.drain()
            control.apply(over)
            time.sleep(_FENCE_S)
            late = source.live.frames(first=self._cut)
            if not late:
                self._moved, self._first_direct = True, injected
                return
            control.apply(back)
            time.sleep(_FENCE_S)
            self._repair(source, destination, injected=injected)
        raise TestbedError(
            f"the bridge could not be moved over in {_MOST_ATTEMPTS} attempts: frames arrive faster than they can be copied"
        )

    def _copy_until_quiet(self, source: Side, destination: Side) -> None:
        """Copy all there is, then wait for one more frame: just behind it is the best moment to change the bridge."""
        while self._copy(source, destination):
            pass
        # What was sent, above all again after an attempt that failed, is seen here: seeing it behind the last frame would take too long.
        destination.live.drain()
        patience_ns = time.monotonic_ns() + _QUIET_NS
        while time.monotonic_ns() < patience_ns:
            if self._copy(source, destination):
                return

    def _copy(self, source: Side, destination: Side) -> bool:
        """Copy what reached the source's TAP since; whether there was anything."""
        fresh = source.live.frames(first=self._cut)
        self._send(destination, fresh)
        if fresh:
            self._cut = fresh[-1].number + 1
            self._passed += fresh
        return bool(fresh)

    def _send(self, destination: Side, frames: Sequence[LiveFrame]) -> None:
        """Into the destination's queue, as they are: super-frames too."""
        assert self._to_destination is not None
        gso_types = {frame.vnet_header[1] for frame in frames}
        if not gso_types <= self._gso_types:
            self._gso_types |= gso_types
            allow_super_frames(destination.port.fds, gso_types=self._gso_types)
        self._to_destination.send_all(frames, deadline_ns=_soon_ns())

    def _repair(self, source: Side, destination: Side, *, injected: int) -> None:
        """Put the destination's queue in order.

        `injected`: how many had been before the bridge changed.
        """
        waiting: list[bytes] = []
        patience_ns, attempts = time.monotonic_ns() + _STRAGGLERS_NS, 0
        while True:
            # What the bridge decided before it changed may still be on its way, on a busy host for longer than the fence: a frame is
            # captured before it is queued, so the queue has caught up when it holds the newest that were captured.
            waiting += read_queue(destination.port.fds)
            everything = destination.live.frames()
            mine = _as_queued(waiting, everything[len(everything) - len(waiting) :])
            if mine is not None:
                break
            attempts += 1
            if time.monotonic_ns() > patience_ns and attempts > _LEAST_ATTEMPTS:
                unseen = destination.live.dropped
                more = f": {unseen} frames were not seen on their way, for want of buffer" if unseen else ""
                raise TestbedError(f"the destination's queue does not hold what was sent to it{more}", hint="docs/rootless.md has the mend" if unseen else None)
            time.sleep(_FENCE_S)
        late = source.live.frames(first=self._cut)
        direct = [frame for frame in everything if frame.number >= injected]
        kept = [frame for frame in mine if frame.number < injected]
        self._came_early += direct
        unique = [frame for frame in late if not _has_flood_copy(frame, direct)]
        self._send(destination, kept)
        self._send(destination, sorted([*direct, *unique], key=_time))
        if late:
            self._cut = late[-1].number + 1
        self._passed += unique

    def _move_back(self, context: SwitchContext, to_source: Injector) -> None:
        """The destination is lost after the move: its queue's own frames go to the source, which runs already."""
        source, destination = context.source, context.destination
        back = [port_message(source.port.ifindex, PortFlags.opened())]
        back += [forward_to(mac, source.port.ifindex) for mac in self._macs]
        back += [port_message(destination.port.ifindex, PortFlags.closed())]
        context.network.control.apply(back)
        time.sleep(_FENCE_S)
        # By their numbers, not by their bytes: without a guest's driver a TAP's frames have their checksums filled in.
        direct = [*self._came_early, *destination.live.frames(first=self._first_direct)]
        at_source = source.live.frames(first=self._stop.first_undelivered if self._stop is not None else 0)
        only_there = [frame for frame in direct if not _has_flood_copy(frame, at_source)]
        to_source.send_all(only_there, deadline_ns=_soon_ns())
        self._returned += only_there
        self._passed.clear()
        self._moved = False


def _as_queued(waiting: Sequence[bytes], captured: Sequence[LiveFrame]) -> list[LiveFrame] | None:
    """The captured frames in the order of the queue; None where it holds others.

    Two processors that send to one TAP may queue their frames in another order than the capture saw them in.
    """
    of: dict[bytes, list[LiveFrame]] = {}
    for frame in reversed(captured):
        of.setdefault(frame.frame, []).append(frame)
    if len(waiting) != len(captured) or any(frame not in of for frame in waiting):
        return None
    try:
        return [of[frame].pop() for frame in waiting]
    except IndexError:
        return None


def _time(frame: LiveFrame) -> int:
    return frame.time_ns


def _soon_ns() -> int:
    return time.monotonic_ns() + 2_000_000_000


def _has_flood_copy(frame: LiveFrame, others: list[LiveFrame]) -> bool:
    return any(abs(other.time_ns - frame.time_ns) < _SAME_FLOOD_NS and _same_content(frame, other) for other in others)


def _same_content(one: LiveFrame, other: LiveFrame) -> bool:
    """Whether they are copies of one frame; a TAP whose guest can't check sums gets them filled in, another gets them open."""
    open_at = {at for at in (_open_checksum(one), _open_checksum(other)) if at is not None}
    blank = [_without(frame.frame, open_at) for frame in (one, other)]
    return blank[0] == blank[1]


def _open_checksum(frame: LiveFrame) -> int | None:
    """Where its checksum is still to be filled in, by its virtio-net header."""
    flags, _, _, _, start, offset = struct.unpack_from("=BBHHHH", frame.vnet_header)
    return start + offset if flags & _NEEDS_CHECKSUM else None


def _without(frame: bytes, places: set[int]) -> bytes:
    for at in places:
        frame = frame[:at] + bytes(2) + frame[at + 2 :]
    return frame
