"""Faults on purpose: a machine is killed or frozen when its migration reaches a point, and who can go on afterwards.

The driver says where the migration is (`at` from within an event's arrival, `reached` where it can wait). What follows from the
fault is not decided here: the driver goes on as an operator would, who doesn't know of it yet.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.model.fault import FaultPoint, FaultSection
from harness.vm.machine import Machine

__all__ = ["FaultInjector", "find_survivor"]

_ANSWER_S = 5.0


class FaultInjector:
    """Carries out one plan's fault, once. Without a fault it does nothing."""

    def __init__(
        self, fault: FaultSection | None, *, source: Machine, destination: Machine, event: Callable[[str, dict[str, object]], None]
    ) -> None:
        self._fault = fault
        self._victim = source if fault is not None and fault.action.at_source else destination
        self._event = event
        self._work: asyncio.Task[None] | None = None
        self._struck = asyncio.Event()
        self.done_ns: int | None = None
        """When the victim was struck; of a kill, when its end was seen."""

    @property
    def planned(self) -> bool:
        return self._fault is not None

    @property
    def kills(self) -> bool:
        return self._fault is not None and self._fault.kills

    def at(self, point: FaultPoint) -> None:
        """The migration is at `point`: begin, without waiting."""
        if self._fault is not None and self._fault.at is point and self._work is None:
            self._work = asyncio.ensure_future(self._strike(self._fault))

    async def reached(self, point: FaultPoint) -> None:
        """As `at`, but wait until the victim was struck (not until a frozen one goes on)."""
        self.at(point)
        if self._work is not None and self._fault is not None and self._fault.at is point:
            struck = asyncio.ensure_future(self._struck.wait())
            await asyncio.wait({self._work, struck}, return_when=asyncio.FIRST_COMPLETED)
            struck.cancel()
            await asyncio.gather(struck, return_exceptions=True)

    async def finish(self) -> None:
        """Wait for what was begun (a frozen machine goes on); `TestbedError` when the point was never reached."""
        if self._fault is None:
            return
        if self._work is None:
            raise TestbedError(f"the fault {self._fault.action} never came: the migration did not reach {self._fault.at!s}")
        await self._work

    async def close(self) -> None:
        """End what was begun. A frozen machine stays so: it is killed with its lab."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _strike(self, fault: FaultSection) -> None:
        if fault.after_ms:
            await asyncio.sleep(fault.after_ms / 1000)
        process = self._victim.process
        if fault.kills:
            await process.kill()
        else:
            await process.signal(signal.SIGSTOP)
        self.done_ns = time.time_ns()
        self._event("fault", {"action": str(fault.action), "machine": self._victim.spec.name})
        self._struck.set()
        if fault.kills:
            return
        await asyncio.sleep(fault.for_ms / 1000)
        await process.signal(signal.SIGCONT)
        self._event("thaw", {"machine": self._victim.spec.name})


async def find_survivor(*, source: Machine, destination: Machine) -> Machine | None:
    """The machine in which the guest runs and answers; None when it runs nowhere."""
    for machine in (destination, source):
        if machine.process.returncode is not None:
            continue
        try:
            status = await machine.qmp.command("query-status", deadline=Deadline(_ANSWER_S))
            if status["running"]:
                await machine.agent.sync(deadline=Deadline(_ANSWER_S))
                return machine
        except TestbedError:
            continue  # it may have ended while it was asked, or its guest waits for pages that nobody has
    return None
