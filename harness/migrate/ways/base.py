"""What a way is: how the guest's state gets from one machine to the other. The driver follows events; a way acts at fixed points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from harness.host.deadline import Deadline
from harness.host.warden import Warden
from harness.migrate.modes import Sides, effective_capabilities, effective_parameters, settings_for
from harness.migrate.tls import MigrationKeys, add_credentials
from harness.model.plan import MigrationPlan
from harness.vm.machine import Machine

__all__ = ["Way", "WayContext", "as_before", "configure", "forget_settings"]


@dataclass(eq=False)
class WayContext:
    """What a way may touch. `capabilities`: those asked for, the mode's and the mechanism's."""

    plan: MigrationPlan
    source: Machine
    destination: Machine
    warden: Warden
    capabilities: tuple[str, ...]
    deadline: Deadline
    note: Callable[[str], None]
    event: Callable[[str, dict[str, object]], None]
    host: str | None = None
    """Where the destination listens for TCP; None for the loopback."""


class Way(Protocol):
    """Called in this order: `listen`, `begin`, `status` for each that the source comes to, `arrive` when the source is done."""

    moves: ClassVar[bool]
    """Whether the guest is at the destination afterwards."""

    async def listen(self, context: WayContext) -> None:
        """Configure both machines; the destination listens, if it does before the source begins."""

    async def begin(self, context: WayContext) -> None:
        """The source begins to migrate."""

    async def status(self, context: WayContext, status: str) -> None:
        """The source has come to this status (an end is `arrive`'s)."""

    async def arrive(self, context: WayContext) -> None:
        """The source has completed; afterwards the destination runs or is about to."""


_before: WeakKeyDictionary[Machine, dict[str, Any]] = WeakKeyDictionary()
"""For each machine the parameters that were changed, as they were."""


def as_before(machine: Machine, parameters: dict[str, Any]) -> dict[str, Any]:
    """A machine's parameters as they are but for what its migrations changed, which the next one takes back."""
    return {name: _before.get(machine, {}).get(name, value) for name, value in parameters.items()}


def forget_settings(machine: Machine) -> None:
    """Its QEMU is another one now, whose settings are its own."""
    _before.pop(machine, None)


async def configure(context: WayContext, machine: Machine, side: Sides) -> None:
    """Set on one machine what belongs to its side, after what belongs to the lab (keys), and nothing else.

    What an earlier migration of the machine set is taken back. Parameters come after the capability that they need.
    """
    plan = context.plan
    wanted = effective_parameters(plan.mode, plan.parameters, tls=plan.tls)
    if plan.tls:
        wanted.setdefault("tls-hostname", MigrationKeys.HOSTNAME)
        await add_credentials(machine, context.warden, server=side is Sides.DESTINATION, authorise="tls-authz" in wanted)
    names = effective_capabilities(plan.mode, (*context.capabilities, *plan.only_at_source), pauses=plan.pauses)
    if side is Sides.DESTINATION:
        names = tuple(name for name in names if name not in plan.only_at_source)
    capabilities, parameters = settings_for(side, names, wanted)
    before = _before.setdefault(machine, {})
    now = await machine.qmp.command("query-migrate-parameters")
    if back := {name: value for name, value in before.items() if name not in parameters and now.get(name) != value}:
        await machine.qmp.command("migrate-set-parameters", **back)
    listed = await machine.qmp.command("query-migrate-capabilities")
    off = [entry["capability"] for entry in listed if entry["state"] and entry["capability"] not in capabilities]
    states = [(name, False) for name in off] + [(name, True) for name in capabilities]
    await machine.qmp.command("migrate-set-capabilities", capabilities=[{"capability": n, "state": s} for n, s in states])
    if parameters:
        for name in parameters:
            if name in now:
                before.setdefault(name, now[name])
        await machine.qmp.command("migrate-set-parameters", **parameters)
