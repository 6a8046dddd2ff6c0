"""Drive one migration. The driver follows events; the clock is the host's, the times are QEMU's own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from harness.capture.live import Injector, LiveFrame
from harness.errors import MigrationError, ProcessError, SwitchoverError, TestbedError
from harness.host.bridge import PortFlags
from harness.host.deadline import Deadline
from harness.host.network import Network
from harness.host.tap import read_queue
from harness.migrate.account import StopPoint
from harness.migrate.mechanisms.base import Mechanism, Report, Side, SwitchContext
from harness.migrate.watch import Watch
from harness.model.events import Event, Timeline
from harness.model.plan import MigrationPlan
from harness.model.scenario import DestinationPort, MigrationMode
from harness.vm.discovery import Features
from harness.vm.machine import Machine

__all__ = ["MigrationDriver", "MigrationRecord"]

_SOURCES_WORD_S = 5.0
_ENDED = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True)
class MigrationRecord:
    """What a migration came to. Times are host nanoseconds of QEMU's own events; None when there was none.

    `stop_point`: where the source's guest stopped receiving (None when it can't be known; `undelivered_reason` then says why).
    `source_frames`: what was sent to the source's TAP from there on; `stranded`: what was read back from its queue, None when it
    was not read back (the migration did not complete, or the destination reads that queue now).
    """

    status: str
    statuses: tuple[tuple[str, int], ...]
    info: dict[str, Any]
    stop_ns: int | None
    resume_ns: int | None
    completed_ns: int | None
    report: Report
    stop_point: StopPoint | None = None
    undelivered_reason: str = ""
    source_frames: tuple[LiveFrame, ...] = ()
    stranded: tuple[bytes, ...] | None = None
    notes: tuple[str, ...] = field(default=())


class MigrationDriver:
    """Migrates the guest of `source` to `destination`, whose QEMU waits for it (`-incoming defer`)."""

    def __init__(
        self, plan: MigrationPlan, *, source: Side, destination: Side, network: Network, timeline: Timeline, nic: str,
        injector: Callable[[Side], Injector], destination_port: DestinationPort, deadline: Deadline,
        mechanism: Mechanism, source_features: Features,
    ) -> None:
        self._plan = plan
        self._source, self._destination = source, destination
        self._network = network
        self._timeline = timeline
        self._destination_port = destination_port
        self._deadline = deadline
        self._notes: list[str] = []
        self._mechanism = mechanism
        self._context = SwitchContext(
            plan=plan, source=source, destination=destination, network=network, timeline=timeline, nic=nic,
            deadline=deadline, injector=injector, note=self._notes.append, event=self._event, source_features=source_features,
        )
        self._resumed: asyncio.Task[None] | None = None
        self._aborted = False
        self._stop_ns: int | None = None
        self._resume_ns: int | None = None
        self._statuses: list[tuple[str, int]] = []

    def _event(self, name: str, data: dict[str, object]) -> None:
        self._timeline.record(Event(t_ns=time.time_ns(), source="harness", name=name, data=dict(data)))

    async def run(self) -> MigrationRecord:
        """Carry the plan out. `MigrationError` when it ends in a status that the plan did not ask for."""
        source, destination = self._source.machine, self._destination.machine
        unsubscribe = self._timeline.subscribe(self._observe)
        try:
            await self._set_up(source, destination)
            await self._mechanism.prepare(self._context)
            await self._source.account.look()
            with Watch(self._timeline) as watch:
                self._event("migrate", {"mechanism": self._plan.mechanism, "mode": self._plan.mode})
                await source.qmp.command("migrate", uri=self._uri())
                if self._plan.mode is MigrationMode.POSTCOPY:
                    await source.qmp.command("migrate-start-postcopy")
                canceller = asyncio.ensure_future(self._cancel_later())
                try:
                    status = await self._unless_dead(self._follow(watch))
                finally:
                    canceller.cancel()
                    await asyncio.gather(canceller, return_exceptions=True)
            wanted = "cancelled" if self._plan.cancels else "completed"
            info = await self._final_info(status)
            if status != wanted:
                await self._after_failure()
                detail = info.get("error-desc", "no reason was given")
                raise MigrationError(f"the migration ended as {status!r}, not {wanted!r}: {detail}")
            if status == "cancelled":
                await self._after_failure()
            return await self._conclude(status, info)
        except SwitchoverError:
            # Whatever went wrong before it was handed over: the source goes on, and nothing of ours may stay in it.
            if self._resume_ns is None and not self._aborted:
                with contextlib.suppress(SwitchoverError):
                    await self._after_failure()
            raise
        finally:
            unsubscribe()
            if self._resumed is not None:
                self._resumed.cancel()
                await asyncio.gather(self._resumed, return_exceptions=True)

    # -- the steps

    async def _set_up(self, source: Machine, destination: Machine) -> None:
        capabilities = dict.fromkeys((*self._plan.capabilities, *self._mechanism.capabilities), True)
        capabilities["events"] = True
        if self._plan.mode is MigrationMode.POSTCOPY:
            capabilities["postcopy-ram"] = True
        if self._plan.pauses or self._mechanism.needs_pause:
            capabilities["pause-before-switchover"] = True
        wanted = [{"capability": name, "state": state} for name, state in capabilities.items()]
        for machine in (source, destination):
            await machine.qmp.command("migrate-set-capabilities", capabilities=wanted)
            if self._plan.parameters:
                await machine.qmp.command("migrate-set-parameters", **self._plan.parameters)
        if own := self._mechanism.source_parameters(features=self._context.source_features):
            await source.qmp.command("migrate-set-parameters", **own)
        await destination.qmp.command("migrate-incoming", uri=self._uri())

    def _uri(self) -> str:
        if self._plan.transport == "tcp":
            return f"tcp:127.0.0.1:{4444 + self._source.port.ifindex}"
        return f"unix:{self._destination.machine.scratch(f'{self._destination.machine.spec.name}.migrate')}"

    def _observe(self, event: Event) -> None:
        """Called within the event's arrival, since the bridge must follow the guest at once."""
        if event.name == "STOP" and event.source == self._source.machine.role:
            self._stop_ns = self._context.stop_ns = self._stop_ns or event.t_ns
            if self._destination_port is DestinationPort.AT_RESUME and not self._mechanism.steers_bridge:
                # Learning only: the destination's announcement leaves with its RESUME, sooner than we could react to that.
                self._network.set_port(self._destination.port, PortFlags(learning=True, flooding=False))
        elif event.name == "RESUME" and event.source == self._destination.machine.role:
            self._resume_ns = self._context.resume_ns = event.t_ns
            self._resumed = asyncio.ensure_future(self._mechanism.resumed(self._context))
            if not self._mechanism.steers_bridge:
                self._network.set_port(self._destination.port, PortFlags.opened())
                if self._destination_port is DestinationPort.AT_RESUME:
                    self._network.set_port(self._source.port, PortFlags.closed())
        elif event.name == "MIGRATION" and event.source == self._source.machine.role:
            self._statuses.append((str(event.data["status"]), event.t_ns))

    async def _follow(self, watch: Watch) -> str:
        """Follow the migration to its end; handles the pause on the way. Returns the last status."""
        role = self._source.machine.role

        def relevant(event: Event) -> bool:
            return event.name == "MIGRATION" and event.source == role

        while True:
            event = await watch.next(relevant, deadline=self._deadline, awaited="the migration to go on")
            status = str(event.data["status"])
            if status == "pre-switchover":
                await self._paused()
            elif status in _ENDED:
                break
        if status == "completed" and self._resume_ns is None:
            await self._wait_for_resume(watch)
        return status

    async def _wait_for_resume(self, watch: Watch) -> None:
        while self._resume_ns is None:
            await watch.next(
                lambda event: event.name == "RESUME" and event.source == self._destination.machine.role,
                deadline=self._deadline, awaited="the destination to resume",
            )

    async def _paused(self) -> None:
        """The source waits in pre-switchover: hold, let the mechanism work, go on (or cancel)."""
        stop_ns = self._stop_ns or time.time_ns()
        await self._mechanism.stopped(self._context, stop_ns=stop_ns)
        remaining_s = self._plan.hold_ms / 1000 - (time.time_ns() - stop_ns) / 1e9
        if remaining_s > 0:
            await asyncio.sleep(remaining_s)
        qmp = self._source.machine.qmp
        if self._plan.cancel_at_switchover:
            await self._mechanism.before_cancel(self._context, stop_ns=stop_ns)
            self._event("cancel", {})
            await qmp.command("migrate_cancel")
            return
        await self._mechanism.before_continue(self._context, stop_ns=stop_ns)
        self._event("continue", {})
        await qmp.command("migrate-continue", state="pre-switchover")

    async def _cancel_later(self) -> None:
        if self._plan.cancel_after_ms is not None:
            await asyncio.sleep(self._plan.cancel_after_ms / 1000)
            self._event("cancel", {})
            await self._source.machine.qmp.command("migrate_cancel")

    async def _unless_dead(self, work: Coroutine[Any, Any, str]) -> str:
        """Await `work`, unless one of the two machines dies first.

        A destination that ends because the migration did (it was cancelled, or failed) may be seen to before the source says so: the
        source's word, if it comes soon, tells more.
        """
        task = asyncio.ensure_future(work)
        try:
            return str(await self._source.machine.unless_ended(
                self._destination.machine.unless_ended(asyncio.shield(task), what="the destination died in the migration"),
                what="the source died in the migration",
            ))
        except ProcessError:
            if self._source.machine.process.returncode is not None:
                raise
            await asyncio.wait({task}, timeout=_SOURCES_WORD_S)
            if not task.done():
                raise
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _final_info(self, status: str) -> dict[str, Any]:
        """`query-migrate` once its figures are there: they may lag behind the event."""
        info: dict[str, Any] = {}

        async def there() -> bool:
            nonlocal info
            info = await self._source.machine.qmp.command("query-migrate")
            return info.get("status") in _ENDED and (status != "completed" or info.get("total-time", 0) > 0)

        await self._deadline.within(5.0).poll(there, awaited="the figures of query-migrate", seen=lambda: str(info))
        return info

    async def _after_failure(self) -> None:
        """The migration is off: the source has to run again, with all of its frames."""
        source = self._source.machine
        self._aborted = True

        async def running() -> bool:
            return bool((await source.qmp.command("query-status"))["running"])

        await self._deadline.within(10.0).poll(running, awaited="the source to run again")
        if self._stop_ns is not None:
            self._source.account.suspend("its machine was stopped and went on since the account began")
        await self._mechanism.aborted(self._context, stop_ns=self._stop_ns)

    # -- the end

    async def _conclude(self, status: str, info: dict[str, Any]) -> MigrationRecord:
        stop, reason = None, "the source runs on"
        stranded: tuple[bytes, ...] | None = None
        if status == "completed":
            if self._resumed is not None:
                await self._resumed
            stop, reason = await self._evidence_of_the_ring()
            self._context.stop_point = stop
        report = await self._mechanism.finish(self._context)
        if status == "completed":
            stranded = await self._close_source()
        return MigrationRecord(
            status=status, statuses=tuple(self._statuses), info=info, stop_ns=self._stop_ns,
            resume_ns=self._resume_ns if status == "completed" else self._source_resume_ns(),
            completed_ns=next((t for name, t in self._statuses if name in _ENDED), None),
            report=report, stop_point=stop, undelivered_reason=reason,
            source_frames=tuple(self._source.live.frames(first=stop.first_undelivered)) if stop is not None else (),
            stranded=stranded, notes=tuple(self._notes),
        )

    def _source_resume_ns(self) -> int | None:
        resume = self._timeline.find("RESUME", source=self._source.machine.role, after_ns=self._stop_ns or 0)
        return resume.t_ns if resume else None

    async def _evidence_of_the_ring(self) -> tuple[StopPoint | None, str]:
        """Where the source's guest stopped receiving. Asked after the switchover, so that asking costs no downtime."""
        try:
            stop = await self._source.account.at_stop(stop_ns=self._stop_ns or 0)
            if not self._mechanism.injects:
                await self._destination.account.resume_from(stop, source=self._source.account)
            return stop, ""
        except SwitchoverError as error:
            return None, error.message

    async def _close_source(self) -> tuple[bytes, ...] | None:
        """End the source machine and read back what still waits in its TAP's queues, unless the destination does."""
        machine = self._source.machine
        try:
            await machine.qmp.command("quit", deadline=Deadline(2.0))
            await machine.process.wait(Deadline(5.0))
        except TestbedError:
            pass  # it is killed below, which for a machine that is done makes no difference
        await machine.close()
        return None if self._mechanism.keeps_port else tuple(read_queue(self._source.port.fds))


