"""Drive one migration. The driver follows events; the clock is the host's, the times are QEMU's own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from harness.capture.live import Injector, LiveFrame
from harness.errors import ProcessError, SwitchoverError, TestbedError
from harness.host.bridge import PortFlags, port_message
from harness.host.deadline import Deadline
from harness.host.network import Network
from harness.host.tap import read_queue
from harness.migrate.account import StopPoint
from harness.migrate.cancel import cancelled_on_the_way
from harness.migrate.faults import FaultInjector, find_survivor
from harness.migrate.mechanisms.base import Mechanism, Report, Side, SwitchContext
from harness.migrate.memory import differing_pages
from harness.migrate.refusal import LEFT_ALONE, continue_source, last_words, never_ran
from harness.migrate.watch import Watch
from harness.migrate.ways import WayContext, make_way
from harness.model.events import Event, Timeline
from harness.model.fault import FaultPoint
from harness.model.plan import MigrationPlan
from harness.model.scenario import DestinationPort
from harness.vm.discovery import Features
from harness.vm.qmp import CommandRefusedError

__all__ = ["EndedSide", "MigrationDriver", "MigrationRecord"]

_SOURCES_WORD_S = 5.0
_NOTICE_S = 15.0
"""A machine whose other side died must have noticed by then."""
_LOOK_AGAIN_S = 0.1
"""A ring of 256 buffers reaches back so far at 2500 buffers a second."""
_ENDED = frozenset({"completed", "failed", "cancelled"})
SOURCE_DIED = "source-died"
"""The status of a migration whose source could not say how it ended."""


@dataclass(frozen=True)
class EndedSide:
    """A machine in which, after a fault, the guest does not run. Frames may still be sent to its TAP, until the traffic ends.

    `died_ns`: when it died with the guest in it; None when the guest had left it, or had not come yet.
    """

    name: str
    side: Side
    died_ns: int | None


@dataclass(frozen=True)
class MigrationRecord:
    """What a migration came to. Times are host nanoseconds of QEMU's own events; None when there was none.

    `failure`: why it did not end as planned; empty if it did. `survivor`: "source", "destination", or "" when the guest runs nowhere.
    `ended`: only after a fault. `destination_info`: what the destination's own query-migrate said at the end. `stop_point`: where the
    source's guest stopped receiving (None when it can't be known; `undelivered_reason` then says why). `source_frames`: what was sent to
    the source's TAP from there on, for each of its queues; `stranded`: what was read back from each, None when it was not read back (the
    guest did not move, or the destination reads that queue now).
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
    source_frames: tuple[tuple[LiveFrame, ...], ...] = ()
    stranded: tuple[tuple[bytes, ...], ...] | None = None
    destination_info: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    failure: str = ""
    survivor: str = "destination"
    ended: tuple[EndedSide, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """Whether the guest runs at the destination now."""
        return self.survivor == "destination"


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
        self._figures: dict[str, float] = {}
        self._mechanism = mechanism
        self._context = SwitchContext(
            plan=plan, source=source, destination=destination, network=network, timeline=timeline, nic=nic,
            deadline=deadline, injector=injector, note=self._notes.append, event=self._event, source_features=source_features,
        )
        self._resumed: asyncio.Task[None] | None = None
        self._aborted = False
        self._faults = FaultInjector(plan.fault, source=source.machine, destination=destination.machine, event=self._event)
        self._way = make_way(plan)
        self._passage = WayContext(
            plan=plan, source=source.machine, destination=destination.machine, warden=network.warden, deadline=deadline,
            capabilities=tuple(dict.fromkeys((*plan.capabilities, *self._mechanism.capabilities, *self._needed_pause()))),
            note=self._notes.append, event=self._event, host=network.migration_address(destination.machine.spec.name),
        )  # fmt: skip
        self._early_stop: StopPoint | None = None
        self._early_reason = ""
        self._stop_ns: int | None = None
        self._resume_ns: int | None = None
        self._statuses: list[tuple[str, int]] = []

    def _event(self, name: str, data: dict[str, object]) -> None:
        self._timeline.record(Event(t_ns=time.time_ns(), source="harness", name=name, data=dict(data)))

    async def run(self) -> MigrationRecord:
        """Carry the plan out; the record says whether it ended as planned. `TestbedError` when nobody can say how it ended."""
        unsubscribe = self._timeline.subscribe(self._observe)
        try:
            await self._way.listen(self._passage)
            if own := self._mechanism.source_parameters(features=self._context.source_features):
                await self._source.machine.qmp.command("migrate-set-parameters", **own)
            await self._mechanism.prepare(self._context)
            await self._source.account.look()
            if self._destination_port is DestinationPort.AT_RESUME and self._way.moves and not self._mechanism.steers_bridge:
                # Learning only: the destination's first frame is its announcement, which leaves with its RESUME, sooner than we could react.
                # Nor is its STOP soon enough: a source that waits for an ACK sends 10,000 events a second, and we are behind.
                self._network.set_port(self._destination.port, PortFlags(learning=True, flooding=False))
            with Watch(self._timeline) as watch:
                self._event("migrate", {"mechanism": self._plan.mechanism, "mode": self._plan.mode})
                await self._way.begin(self._passage)
                follow = self._follow(watch)
                async with self._account_kept(), cancelled_on_the_way(self._plan, self._source.machine, event=self._event):
                    status = await (self._outlive(follow) if self._faults.planned else self._unless_dead(follow))
            await self._faults.finish()
            wanted = "cancelled" if self._plan.cancels else "completed"
            info = await self._final_info(status)
            refused = not self._faults.planned and await self._refused(status)
            if refused and status == "completed":
                await continue_source(self._source.machine, event=self._event, note=self._notes.append)
                status = "failed"
            if status in ("failed", "cancelled") and self._source.machine.process.returncode is None:
                await self._after_failure()
            failure = ""
            if status != wanted and not self._faults.planned:
                words = filter(None, (await last_words(self._destination.machine), info.get("error-desc")))
                failure = f"the migration ended as {status!r}, not {wanted!r}: {'; '.join(words) or 'no reason was given'}"
            if self._faults.kills or (refused and status != "failed"):
                return await self._conclude_fault(status, info, failure)
            return await self._conclude(status, info, failure)
        except SwitchoverError:
            # Whatever went wrong before it was handed over: the source goes on, and nothing of ours may stay in it.
            if self._resume_ns is None and not self._aborted:
                with contextlib.suppress(SwitchoverError):
                    await self._after_failure()
            raise
        finally:
            await self._faults.close()
            unsubscribe()
            if self._resumed is not None:
                self._resumed.cancel()
                await asyncio.gather(self._resumed, return_exceptions=True)

    # -- the steps

    @contextlib.asynccontextmanager
    async def _account_kept(self) -> AsyncIterator[None]:
        """Until the source stops its account is told from time to time to look, where it says that it needs that."""

        async def look() -> None:
            account = self._source.account
            with contextlib.suppress(SwitchoverError):  # the source has ended, or can't be asked: its account says so when it is asked
                while self._stop_ns is None and account.wants_marks:
                    await account.look()
                    await asyncio.sleep(_LOOK_AGAIN_S)

        task = asyncio.ensure_future(look())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _needed_pause(self) -> tuple[str, ...]:
        return ("pause-before-switchover",) if self._mechanism.needs_pause else ()

    def _observe(self, event: Event) -> None:
        """Called within the event's arrival, since the bridge must follow the guest at once."""
        if event.name == "STOP" and event.source == self._source.machine.role:
            self._stop_ns = self._context.stop_ns = self._stop_ns or event.t_ns
        elif event.name == "RESUME" and event.source == self._destination.machine.role:
            self._resume_ns = self._context.resume_ns = event.t_ns
            self._faults.at(FaultPoint.STARTED)
            self._resumed = asyncio.ensure_future(self._mechanism.resumed(self._context))
            if not self._mechanism.steers_bridge:
                moves = [port_message(self._destination.port.ifindex, PortFlags.opened())]
                if self._destination_port is DestinationPort.AT_RESUME:
                    # In one message: a broadcast between the two would go to both.
                    moves.append(port_message(self._source.port.ifindex, PortFlags.closed()))
                self._network.control.apply(moves)
        elif event.name == "MIGRATION" and event.source == self._source.machine.role:
            self._statuses.append((str(event.data["status"]), event.t_ns))
            if event.data["status"] == "active":
                self._faults.at(FaultPoint.ACTIVE)

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
            elif status in _ENDED or (status == "postcopy-paused" and self._faults.planned):
                break
            else:
                await self._way.status(self._passage, status)
        if status == "completed":
            await self._way.arrive(self._passage)
            if self._plan.starts_paused:
                if self._plan.compare_memory:
                    await self._compare_memory()
                await asyncio.sleep((self._plan.start_after_ms or 0) / 1000)
                await self._destination.machine.qmp.command("cont")
            if self._way.moves and self._resume_ns is None and self._destination.machine.process.returncode is None:
                await self._wait_for_resume(watch)
        return status

    async def _compare_memory(self) -> None:
        """While neither side runs."""
        pages = await differing_pages(self._source.machine, self._destination.machine, deadline=self._deadline)
        self._figures["pages_differ"] = float(len(pages))
        if pages:
            shown = ", ".join(f"{page:#x}" for page in pages[:4]) + (", ..." if len(pages) > 4 else "")
            self._notes.append(f"{len(pages)} pages of the guest's memory are not the same at the destination: {shown}")

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
        if self._faults.planned or self._plan.source_memory_ends:
            # A source that is going to die, or whose memory becomes another's, can't be asked then.
            self._early_stop, self._early_reason = await self._stop_point()
        remaining_s = self._plan.hold_ms / 1000 - (time.time_ns() - stop_ns) / 1e9
        if remaining_s > 0:
            await asyncio.sleep(remaining_s)
        qmp = self._source.machine.qmp
        if self._plan.cancel_at_switchover:
            await self._mechanism.before_cancel(self._context, stop_ns=stop_ns)
            self._event("cancel", {})
            await qmp.command("migrate_cancel")
            return
        await self._faults.reached(FaultPoint.STOPPED)
        if self._source.machine.process.returncode is not None:
            return
        await self._mechanism.before_continue(self._context, stop_ns=stop_ns)
        self._event("continue", {})
        try:
            await qmp.command("migrate-continue", state="pre-switchover")
        except CommandRefusedError:
            if not self._faults.planned:  # else the migration may have failed already
                raise
        await self._faults.reached(FaultPoint.SWITCHOVER)

    async def _unless_dead(self, work: Coroutine[Any, Any, str]) -> str:
        """Await `work`, unless one of the two machines dies first.

        A destination that ends because the migration did (it was cancelled, or failed) may be seen to before the source says so: the
        source's word, if it comes soon, tells more. One that refused what it was sent leaves the source with the status that is returned.
        """
        task = asyncio.ensure_future(work)
        heard = self._while_heard(task)
        try:
            return str(await self._source.machine.unless_ended(
                self._destination.machine.unless_ended(heard, what="the destination died in the migration"),
                what="the source died in the migration",
            ))
        except ProcessError:
            if self._source.machine.process.returncode is not None:
                raise
            soon = Deadline(_SOURCES_WORD_S)
            while not (task.done() or soon.expired or self._status in LEFT_ALONE):
                await asyncio.wait({task}, timeout=0.01)
            if await self._refused(self._status):
                return self._status
            await asyncio.wait({task}, timeout=soon.remaining_s)
            if not task.done():
                raise
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def _status(self) -> str:
        """The source's last word."""
        return self._statuses[-1][0] if self._statuses else "none"

    async def _refused(self, status: str) -> bool:
        """Whether the guest is nowhere: the source is done with it, and the destination ended without having run it."""
        if status not in LEFT_ALONE or not self._way.moves:
            return False
        return await never_ran(self._destination.machine, resumed=lambda: self._resume_ns is not None)

    async def _while_heard(self, task: asyncio.Task[str]) -> str:
        """The task's result; `TestbedError` when the source's monitor is lost, and so its events, while the source lives on."""
        source = self._source.machine
        lost = asyncio.ensure_future(source.qmp.lost())
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                either: set[asyncio.Future[Any]] = {task, asyncio.shield(source.process.ended)}
                await asyncio.wait(either, timeout=_SOURCES_WORD_S, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and source.process.returncode is None:
                raise TestbedError(f"the source's monitor was lost in the migration: how it ended can't be known; status seen last: {self._status}")
            return await asyncio.shield(task)
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    async def _outlive(self, work: Coroutine[Any, Any, str]) -> str:
        """Await `work` through the planned death of a machine. Returns the last status, or `SOURCE_DIED`.

        `DeadlineError` when the machine that is left does not notice.
        """
        task = asyncio.ensure_future(work)
        try:
            source, destination = self._source.machine.process, self._destination.machine.process
            gone = asyncio.shield(source.ended)
            either: set[asyncio.Future[Any]] = {task, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if source.returncode is None:
                return await task
            if self._resume_ns is None:
                # Without a running guest, a destination that can't be loaded any more has nothing to live for.
                await Deadline(_NOTICE_S).wait(
                    asyncio.shield(destination.ended), awaited="the destination to give up, since its source died before it could start"
                )
            return SOURCE_DIED
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _final_info(self, status: str) -> dict[str, Any]:
        """`query-migrate` once its figures are there: they may lag behind the event."""
        info: dict[str, Any] = {}
        if status not in _ENDED or self._source.machine.process.returncode is not None:
            return info

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
        if self._resume_ns is not None:
            # The destination had started, and the bridge had followed it.
            self._network.set_port(self._source.port, PortFlags.opened())
            self._network.set_port(self._destination.port, PortFlags.closed())
        if self._stop_ns is not None:
            self._source.account.suspend("its machine was stopped and went on since the account began")
        await self._mechanism.aborted(self._context, stop_ns=self._stop_ns)

    # -- the end

    async def _conclude(self, status: str, info: dict[str, Any], failure: str) -> MigrationRecord:
        stop, reason = None, "the source runs on"
        stranded: tuple[tuple[bytes, ...], ...] | None = None
        moved = status == "completed" and self._way.moves
        destination_info: dict[str, Any] = {}
        if moved:
            if self._resumed is not None:
                await self._resumed
            stop, reason = await self._evidence_of_the_ring()
            await self._follow_the_account(stop)
            self._context.stop_point = stop if stop is not None and not stop.queues else None
            destination_info = await self._destination.machine.qmp.command("query-migrate")
        report = await self._mechanism.finish(self._context)
        if moved:
            await self._close_source()
            if not self._mechanism.keeps_port:  # else the destination goes on reading it
                stop = await self._source.account.ended(stop) if stop is not None else None
                stranded = tuple(tuple(read_queue([fd])) for fd in self._source.port.fds)
        elif self._stop_ns is not None and not self._aborted:  # else it was said already, and the mechanism may know better since
            self._source.account.suspend("its machine was stopped and went on since the account began")
        return MigrationRecord(
            status=status, statuses=tuple(self._statuses), info=info, stop_ns=self._stop_ns,
            resume_ns=self._resume_ns if moved else self._source_resume_ns(),
            completed_ns=next((t for name, t in self._statuses if name in _ENDED), None),
            report=report, stop_point=stop, undelivered_reason=reason,
            source_frames=tuple(map(tuple, await self._source.account.left(stop))) if stop is not None else (),
            stranded=stranded, destination_info=destination_info, notes=tuple(self._notes), failure=failure, figures=self._figures,
            survivor="destination" if moved else "source",
        )

    async def _conclude_fault(self, status: str, info: dict[str, Any], failure: str = "") -> MigrationRecord:
        """After a death: who goes on, and what is left at the TAPs of those who don't."""
        source, destination = self._source.machine, self._destination.machine
        stop, reason = None, "the source runs on"
        survivor = await find_survivor(source=source, destination=destination)
        if source.process.returncode is not None:
            stop = self._early_stop
            reason = "" if stop is not None else "the source died, and was not asked before"
        elif survivor is not source:
            stop, reason = await self._evidence_of_the_ring()
        self._context.stop_point = stop if stop is not None and not stop.queues else None
        if self._resumed is not None:
            with contextlib.suppress(SwitchoverError):  # it may have spoken to the dead
                await self._resumed
        try:
            report = await self._mechanism.finish(self._context)
        except SwitchoverError as error:
            report = Report()
            self._notes.append(f"what the mechanism did is not known: {error.message}")
        ended = []
        source_died_ns = None
        if survivor is not source:
            if survivor is None and self._resume_ns is None:
                # Where it lives on it holds a stopped guest that nobody can start any more, and that ends with it.
                source_died_ns = self._faults.done_ns if source.process.returncode is not None else time.time_ns()
            await self._close_source()
        if survivor is not source and (survivor is None or not self._mechanism.keeps_port):
            ended.append(EndedSide("source", self._source, source_died_ns))
        if survivor is not destination:
            died_ns = self._faults.done_ns if destination.process.returncode is not None and self._resume_ns is not None else None
            if survivor is None and destination.process.returncode is None and self._resume_ns is not None:
                # Its guest waits for pages that nobody has any more: whatever it has taken, it ends with it.
                await destination.close()
                died_ns = time.time_ns()
            ended.append(EndedSide("destination", self._destination, died_ns))
        else:
            await self._follow_the_account(stop)
        return MigrationRecord(
            status=status, statuses=tuple(self._statuses), info=info, stop_ns=self._stop_ns,
            resume_ns=self._source_resume_ns() if survivor is source else self._resume_ns,
            completed_ns=next((t for name, t in self._statuses if name in _ENDED), None),
            report=report, stop_point=stop, undelivered_reason=reason, notes=tuple(self._notes), failure=failure,
            survivor="source" if survivor is source else "destination" if survivor is destination else "", ended=tuple(ended),
        )

    async def _follow_the_account(self, stop: StopPoint | None) -> None:
        """The destination's account goes on where the source's ended; where it can't, it says so when it is asked."""
        if stop is None or self._mechanism.injects:
            return
        try:
            await self._destination.account.resume_from(stop, source=self._source.account)
        except SwitchoverError as error:
            self._destination.account.reason = error.message

    def _source_resume_ns(self) -> int | None:
        resume = self._timeline.find("RESUME", source=self._source.machine.role, after_ns=self._stop_ns or 0)
        return resume.t_ns if resume else None

    async def _evidence_of_the_ring(self) -> tuple[StopPoint | None, str]:
        """Where the source's guest stopped receiving. Asked after the switchover, so that asking costs no downtime."""
        if self._plan.source_memory_ends:
            return self._early_stop, self._early_reason
        return await self._stop_point()

    async def _stop_point(self) -> tuple[StopPoint | None, str]:
        try:
            return await self._source.account.at_stop(stop_ns=self._stop_ns or 0), ""
        except SwitchoverError as error:
            return None, error.message

    async def _close_source(self) -> None:
        """End the source machine."""
        machine = self._source.machine
        try:
            await machine.qmp.command("quit", deadline=Deadline(2.0))
            await machine.process.wait(Deadline(5.0))
        except TestbedError:
            pass  # it is killed below, which for a machine that is done makes no difference
        await machine.close()
