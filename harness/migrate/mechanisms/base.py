"""What a mechanism is: something that takes care of the frames that arrive while neither machine runs.

The driver calls a mechanism at fixed points of a migration; each mechanism is one file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from harness.capture.live import Injector, LiveFrame, LiveTap
from harness.host.deadline import Deadline
from harness.host.network import Network, Port
from harness.migrate.account import FrameAccount, StopPoint
from harness.model.events import Timeline
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode
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
    stop_point: StopPoint | None = None
    """Where the source's guest stopped receiving; known when `finish` is called, if it can be known at all."""


@dataclass(frozen=True)
class Report:
    """What the mechanism did. `passed`: frames it carried to the other side, as sent to the source's TAP.

    `returned`: frames it gave back to the source.
    """

    passed: tuple[LiveFrame, ...] = ()
    returned: tuple[LiveFrame, ...] = ()
    figures: dict[str, int] = field(default_factory=dict)


class Mechanism(Protocol):
    """Called in this order: `prepare`, `stopped`, `before_continue` or `before_cancel`, `aborted` if the source runs again, `finish`."""

    name: ClassVar[str]
    needs_pause: ClassVar[bool]
    """Whether the source has to wait in pre-switchover for it."""
    opens_port_early: ClassVar[bool]
    """Whether it changes the bridge itself; otherwise the driver opens the destination's port at RESUME."""
    modes: ClassVar[frozenset[MigrationMode]]
    capabilities: ClassVar[tuple[str, ...]]
    """Migration capabilities it needs on both sides."""
    one_queue: ClassVar[bool]
    """Whether it can follow one queue pair only."""

    async def prepare(self, context: SwitchContext) -> None:
        """Before the migration starts."""

    async def stopped(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The source has stopped and waits in pre-switchover; the hold begins."""

    async def before_continue(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The hold is over; the migration goes on when this returns."""

    async def before_cancel(self, context: SwitchContext, *, stop_ns: int) -> None:
        """The hold is over; the migration is cancelled when this returns."""

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        """The migration failed or was cancelled and the source runs again."""

    async def finish(self, context: SwitchContext) -> Report:
        """The migration is over, both machines still exist."""
