"""The account of a TAP with several queues: one for each queue, with a live view and a receive ring of its own.

The kernel chooses a frame's queue before any socket sees it, and the TAP goes by that choice; so a packet socket that lets in the frames
of one queue sees all that its reader can get. QEMU reads a queue for the receive ring of the same number (the enabled ones are always the first).
The TAP counts what was read from all queues together: how many of the frames in question QEMU took is known when the rest was read back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from harness.capture.live import LiveFrame, LiveTap
from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.host.network import Network, Port
from harness.migrate.account import FrameAccount, StopPoint
from harness.vm.machine import Machine
from harness.vm.virtqueue import works_by_vhost

__all__ = ["QueuesAccount", "make_account"]


class QueuesAccount(FrameAccount):
    """As `FrameAccount`; `views` are of the queues, in their order. Holds while the TAP drops nothing, and frames fit one buffer each."""

    def __init__(self, machine: Machine, tap: LiveTap, *, views: tuple[LiveTap, ...], network: Network, port: Port, nic: str) -> None:
        super().__init__(machine, tap, network=network, port=port, nic=nic)
        self._views = views
        self._parts = [FrameAccount(machine, view, network=network, port=port, nic=nic, pair=pair) for pair, view in enumerate(views)]
        self._dropped = 0

    @property
    def taps(self) -> tuple[LiveTap, ...]:
        return self._views

    @property
    def synchronised(self) -> bool:
        return all(part.synchronised for part in self._parts)

    async def sync(self, *, deadline: Deadline) -> None:
        if works_by_vhost(self._machine, nic=self._nic):
            raise TestbedError(f"with vhost the account follows one receive queue, and {self._port.name} has {len(self._parts)}")
        self.reason = "no quiet moment was found"
        for part in self._parts:
            await part.sync(deadline=deadline)
        self._dropped = (await self._network.counters(self._port)).tx_dropped

    def suspend(self, reason: str) -> None:
        self.reason = reason
        for part in self._parts:
            part.suspend(reason)

    def continue_without(self, freed: int) -> None:
        """Nothing: nobody can say of which queue."""

    async def resume_from(self, stop: StopPoint, *, source: FrameAccount) -> None:
        if not isinstance(source, QueuesAccount) or len(stop.queues) != len(self._parts):
            raise TestbedError("the source's queues were not followed")
        self._dropped = 0
        for part, its_stop, its_source in zip(self._parts, stop.queues, source._parts, strict=True):
            await part.resume_from(its_stop, source=its_source)

    async def missing(self, *, deadline: Deadline) -> int:
        return sum([await part.missing(deadline=deadline) for part in self._parts])

    async def look(self) -> None:
        for part in self._parts:
            await part.look()

    async def at_stop(self, *, stop_ns: int) -> StopPoint:
        if not self.synchronised:
            raise TestbedError(f"what the guest of {self._machine.spec.name} received can't be told: {self.reason}")
        points = tuple([await part.at_stop(stop_ns=stop_ns) for part in self._parts])
        dropped = (await self._network.counters(self._port)).tx_dropped - self._dropped
        if dropped:
            raise TestbedError(f"{self._port.name} dropped {dropped} frames, of which of its {len(points)} queues is not known")
        return StopPoint(first_undelivered=0, first_unread=0, used_index=0, queues=points)

    async def left(self, stop: StopPoint) -> list[list[LiveFrame]]:
        return [view.frames(first=point.first_undelivered) for view, point in zip(self._views, stop.queues, strict=True)]


async def make_account(
    machine: Machine, tap: LiveTap, *, network: Network, port: Port, nic: str, watch: Callable[[int], Awaitable[LiveTap]]
) -> FrameAccount:
    """The account of a machine's TAP; `watch` makes the view of one of its queues, where there are several."""
    if len(port.fds) < 2:
        return FrameAccount(machine, tap, network=network, port=port, nic=nic)
    views = tuple([await watch(queue) for queue in range(len(port.fds))])
    return QueuesAccount(machine, tap, views=views, network=network, port=port, nic=nic)
