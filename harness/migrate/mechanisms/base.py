"""What a mechanism is: something that takes care of the frames that arrive while neither machine runs.

The driver calls a mechanism at fixed points of a migration; each mechanism is one file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from harness.capture.live import Injector, LiveFrame, LiveTap
from harness.host.deadline import Deadline
from harness.host.network import Network, Port
from harness.migrate.account import FrameAccount, StopPoint
from harness.model.events import Timeline
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode, Scenario
from harness.vm.argv import MachineSpec
from harness.vm.discovery import Features
from harness.vm.machine import Machine

__all__ = ["Mechanism", "Report", "Side", "SwitchContext"]


@dataclass(eq=False)
class Side:
    """One machine of the migration with its port, the live view of what is sent to it, and its account."""

    machine: Machine
    port: Port
    live: LiveTap
    account: FrameAccount


@dataclass(eq=False)
class SwitchContext:
    """What a mechanism may touch. `injector` makes a sender of frames into a side's TAP."""

    plan: MigrationPlan
    source: Side
    destination: Side
    network: Network
    timeline: Timeline
    nic: str
    deadline: Deadline
    injector: Callable[[Side], Injector]
    note: Callable[[str], None]
    event: Callable[[str, dict[str, object]], None]
    source_features: Features
    stop_ns: int | None = None
    """When the source stopped, once it has."""
    resume_ns: int | None = None
    """When the destination began to run, once it has."""
    stop_point: StopPoint | None = None
    """Where the source's guest stopped receiving; known when `finish` is called, if it can be known at all and the NIC has one queue."""


@dataclass(frozen=True)
class Report:
    """What the mechanism did. `passed`: frames it carried to the other side, as sent to the source's TAP.

    `returned`: frames it gave back to the source.
    """

    passed: tuple[LiveFrame, ...] = ()
    returned: tuple[LiveFrame, ...] = ()
    figures: dict[str, int] = field(default_factory=dict)


class Mechanism(Protocol):
    """Derive from it: what a mechanism does not need stays as it is here.

    Called in this order: `prepare`, `stopped`, `before_continue` or `before_cancel`, `resumed` if the destination comes to run,
    `aborted` if the source runs again, `finish`.
    """

    name: ClassVar[str]
    needs_pause: ClassVar[bool] = False
    """Whether the source has to wait in pre-switchover for it."""
    steers_bridge: ClassVar[bool] = False
    """Whether the bridge is its own affair; otherwise the driver opens the destination's port at RESUME."""
    keeps_port: ClassVar[bool] = False
    """Whether the destination takes over the source's TAP and gets none of its own."""
    injects: ClassVar[bool] = False
    """Whether frames reach the destination's guest otherwise than through its TAP: its account has to begin anew then."""
    sends_to_tap: ClassVar[bool] = False
    """Whether the destination's QEMU needs a packet socket that leads to its own TAP (`Descriptor.PACKET`)."""
    modes: ClassVar[frozenset[MigrationMode]] = frozenset({MigrationMode.PRECOPY})
    capabilities: ClassVar[tuple[str, ...]] = ()
    """Migration capabilities it needs on both sides."""
    features: ClassVar[tuple[str, ...]] = ()
    """Features (as in `harness.vm.discovery`) that it needs on both sides."""
    one_queue: ClassVar[bool] = False
    """Whether it can follow one queue pair only."""

    def refuse(self, plan: MigrationPlan, scenario: Scenario) -> None:
        """Before anything boots: `UsageError` for what does not go together with it, and why."""

    def destination_spec(self, spec: MachineSpec, *, features: Features) -> MachineSpec:
        """The destination's machine, from that of a plain one; `features` are those of its QEMU."""
        return spec

    def source_parameters(self, *, features: Features) -> dict[str, Any]:
        """Migration parameters for the source alone; `features` are those of its QEMU."""
        return {}

    async def prepare(self, context: SwitchContext) -> None:
        """Before the migration starts; the destination waits for it."""

    async def stopped(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The source has stopped and waits in pre-switchover; the hold begins."""

    async def before_continue(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The hold is over; the migration goes on when this returns."""

    async def before_cancel(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The hold is over; the migration is cancelled when this returns."""

    async def resumed(self, context: SwitchContext) -> None:
        """The destination runs. Begun with its RESUME event, beside the end of the migration; ended before `finish`."""

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        """The migration failed or was cancelled and the source runs again."""

    async def finish(self, context: SwitchContext) -> Report:
        """The migration is over, both machines still exist."""
        return Report()
