"""Nothing is done for the frames: what stock QEMU does to them."""

from __future__ import annotations

from typing import ClassVar

from harness.migrate.mechanisms.base import Report, SwitchContext
from harness.model.scenario import MigrationMode

__all__ = ["NoMechanism"]


class NoMechanism:
    """The control."""

    name: ClassVar[str] = "none"
    needs_pause: ClassVar[bool] = False
    opens_port_early: ClassVar[bool] = False
    modes: ClassVar[frozenset[MigrationMode]] = frozenset({MigrationMode.PRECOPY, MigrationMode.POSTCOPY})
    capabilities: ClassVar[tuple[str, ...]] = ()
    one_queue: ClassVar[bool] = False

    async def prepare(self, context: SwitchContext) -> None:
        pass

    async def stopped(self, context: SwitchContext, *, stop_ns: int) -> None:
        pass

    async def before_continue(self, context: SwitchContext, *, stop_ns: int) -> None:
        pass

    async def before_cancel(self, context: SwitchContext, *, stop_ns: int) -> None:
        pass

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        pass

    async def finish(self, context: SwitchContext) -> Report:
        return Report()
