"""A migration that waits for a slow device at its destination (`prepare_ms=-1`) until the test says that it is ready."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from harness.analysis.switchover_ack import acknowledgement
from harness.host.bridge import PortFlags
from harness.host.deadline import Deadline
from harness.migrate.mechanisms.base import Side
from harness.model.costs import AckResult
from harness.vm.machine import Machine
from harness.vm.migration_devices import SLOW
from harness.vm.trace import trace_events

ACK = ("return-path", "switchover-ack")


@dataclass
class Held:
    """The destination has what is sent at the setup. It stays stopped when it has the guest, until `let_it_run`."""

    pair: Any
    source: Machine
    side: Side
    deadline: Deadline
    begin_ns: int = field(default_factory=time.time_ns)

    @property
    def destination(self) -> Machine:
        return self.side.machine

    async def status(self) -> str:
        return str((await self.source.qmp.command("query-migrate"))["status"])

    async def passes(self) -> int:
        """How often the source has walked its memory."""
        return int((await self.source.qmp.command("query-migrate")).get("ram", {}).get("dirty-sync-count", 0))

    async def runs(self) -> bool:
        """Whether the guest runs at the source."""
        return bool((await self.source.qmp.command("query-status"))["running"])

    def stopped(self) -> bool:
        """Whether the source's guest was stopped since the migration began, by its event."""
        return self.pair.lab.timeline.find("STOP", source=self.source.role, after_ns=self.begin_ns) is not None

    async def make_ready(self) -> None:
        await self.destination.qmp.command("qom-set", path=f"/machine/peripheral/{SLOW}", property="ready", value=True)

    async def completed(self) -> None:
        for machine in (self.source, self.destination):

            async def there(machine: Machine = machine) -> bool:
                return (await machine.qmp.command("query-migrate")).get("status") == "completed"

            await self.deadline.poll(there, awaited=f"the migration to complete at {machine.spec.name}")

    def acknowledgement(self) -> AckResult:
        """By the trace points of both machines since the migration began."""
        return acknowledgement(
            trace_events(self.source), trace_events(self.destination), begin_ns=self.begin_ns, end_ns=time.time_ns(), stop_ns=None
        )

    async def let_it_run(self) -> None:
        """The guest goes on at the destination; the source ends."""
        lab = self.pair.lab
        lab.network.set_port(lab.mobile_side.port, PortFlags.closed())
        lab.network.set_port(self.side.port, PortFlags.opened())
        await self.destination.qmp.command("cont")
        await lab.moved_to(self.side, deadline=Deadline(20))
        await self.source.close()


@contextlib.asynccontextmanager
async def held_migration(pair: Any, capabilities: tuple[str, ...]) -> AsyncIterator[Held]:
    """Begin a migration and hold it where the slow device has begun to prepare. What becomes of it is the block's affair."""
    lab, deadline = pair.lab, Deadline(60)
    side = await lab.add_destination(deadline=deadline)
    held = Held(pair, lab.mobile, side, deadline)
    wanted = [{"capability": name, "state": True} for name in capabilities]
    for machine in (held.source, held.destination):
        await machine.qmp.command("migrate-set-capabilities", capabilities=wanted)
        # Later rounds would announce the guest from a source that has stopped, and change its state.
        await machine.qmp.command("migrate-set-parameters", **{"announce-rounds": 1})
    uri = f"unix:{held.destination.scratch(f'{held.destination.spec.name}.migrate')}"
    await held.destination.qmp.command("migrate-incoming", uri=uri)
    await held.source.qmp.command("migrate", uri=uri)

    async def prepares() -> bool:
        return any(event.name == "trace:slow_migration_prepare" for event in trace_events(held.destination))

    await deadline.poll(prepares, awaited="the destination to load what is sent at the setup")
    yield held
