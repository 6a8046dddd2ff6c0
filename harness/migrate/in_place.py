"""What happens to a guest that stays in its process: a known outage, and a successor that QEMU executes in its own place (cpr-exec)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from harness.builds import QemuInstall
from harness.errors import MigrationError, TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import SCRATCH, Warden
from harness.migrate.driver import MigrationRecord
from harness.migrate.mechanisms.base import Report, Side
from harness.migrate.modes import Sides
from harness.migrate.watch import Watch
from harness.migrate.ways.base import WayContext, configure, forget_settings
from harness.model.events import Event, Timeline
from harness.model.plan import MigrationPlan
from harness.vm.argv import DEFERRED, machine_argv
from harness.vm.machine import Machine

__all__ = ["execute_successor", "stop_and_continue"]

_STAYED = "the guest went on in the same machine"
_STOPPED = "its machine was stopped and went on since the account began"
_EXEC_S = 20.0


async def stop_and_continue(plan: MigrationPlan, side: Side, *, timeline: Timeline) -> MigrationRecord:
    """A known outage: stop the guest, wait, let it go on. Nothing may be lost in it."""
    machine = side.machine
    began_ns = time.time_ns()
    await machine.qmp.command("stop")
    await asyncio.sleep(plan.outage_ms / 1000)
    await machine.qmp.command("cont")
    side.account.suspend(_STOPPED)
    return _record(machine, timeline, began_ns=began_ns)


async def execute_successor(
    plan: MigrationPlan, side: Side, *, successor: QemuInstall, warden: Warden, timeline: Timeline, deadline: Deadline,
    event: Callable[[str, dict[str, object]], None], notes: list[str],
) -> MigrationRecord:
    """Let the machine's QEMU execute `successor` in its own process, which finds the guest's memory where it was and the rest in a file.

    TAPs, monitor, console and agent are descriptors, which outlive it; the monitor greets anew. `MigrationError` when QEMU says that it
    failed (the guest goes on then), `ProcessError` when the successor did not come up.
    """
    machine = side.machine
    spec = msgspec.structs.replace(
        machine.spec, argv_prefix=successor.argv_prefix, data_dirs=successor.data_dirs, incoming=DEFERRED, paused=False
    )
    context = WayContext(
        plan=plan, source=machine, destination=machine, warden=warden, capabilities=plan.capabilities, deadline=deadline,
        note=notes.append, event=event,
    )  # fmt: skip
    path = SCRATCH / f"{spec.name}.cpr-state"
    began_ns = time.time_ns()
    await configure(context, machine, Sides.SOURCE)
    await machine.qmp.call("migrate-set-parameters", {"cpr-exec-command": machine_argv(spec)})
    with Watch(timeline) as watch:
        event("migrate", {"mechanism": plan.mechanism, "mode": plan.mode})
        greeted = machine.qmp.next_greeting()
        await machine.qmp.command("migrate", uri=f"file:{path}")
        try:
            await machine.unless_ended(_greeting(machine, greeted, watch, deadline=deadline.within(_EXEC_S)), what="died as it executed its successor")
        except MigrationError:
            side.account.suspend(_STOPPED)
            raise
        machine.spec = spec
        forget_settings(machine)
        await machine.qmp.call("qmp_capabilities", {"enable": ["oob"]})
        await configure(context, machine, Sides.DESTINATION)
        await machine.qmp.command("migrate-incoming", uri=f"file:{path}")
        await machine.unless_ended(
            watch.next(lambda e: (e.name, e.source) == ("RESUME", machine.role), deadline=deadline, awaited="the successor to resume"),
            what="died as it took its guest over",
        )
    await warden.unlink(path)
    side.account.suspend(_STOPPED)
    await machine.agent.sync(deadline=deadline.within(10.0))
    return _record(machine, timeline, began_ns=began_ns)


async def _greeting(machine: Machine, greeted: asyncio.Future[None], watch: Watch, *, deadline: Deadline) -> None:
    """Returns when the successor greets; `MigrationError` when there will be none."""

    def failed(event: Event) -> bool:
        return event.name == "MIGRATION" and event.source == machine.role and event.data["status"] in ("failed", "cancelled")

    failure = asyncio.ensure_future(watch.next(failed, deadline=deadline, awaited="the successor's greeting"))
    try:
        either: set[asyncio.Future[Any]] = {greeted, failure}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not greeted.done():
            await failure  # which raises when time was up
            info = await machine.qmp.command("query-migrate")
            raise MigrationError(f"the migration ended as {info.get('status')!r}: {info.get('error-desc') or 'no reason was given'}")
    finally:
        failure.cancel()
        await asyncio.gather(failure, return_exceptions=True)


def _record(machine: Machine, timeline: Timeline, *, began_ns: int) -> MigrationRecord:
    after_ns = began_ns - 1_000_000
    stop = timeline.find("STOP", source=machine.role, after_ns=after_ns)
    resume = timeline.find("RESUME", source=machine.role, after_ns=after_ns)
    if stop is None or resume is None:
        raise TestbedError(f"{machine.spec.name} was stopped and went on, and did not say when")
    statuses = [e for e in timeline if e.name == "MIGRATION" and e.source == machine.role and e.t_ns >= after_ns]
    return MigrationRecord(
        status="completed", statuses=tuple((str(e.data["status"]), e.t_ns) for e in statuses), info={}, stop_ns=stop.t_ns, resume_ns=resume.t_ns,
        completed_ns=None, report=Report(), undelivered_reason=_STAYED, survivor="source",
    )  # fmt: skip
