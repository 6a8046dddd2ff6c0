"""Both machines are there, joined by a socket or a pipe: precopy and postcopy."""

from __future__ import annotations

from typing import ClassVar

from harness.migrate.modes import Sides
from harness.migrate.ways.addresses import address, exec_addresses, hand_over_sockets
from harness.migrate.ways.base import WayContext, configure
from harness.model.scenario import MigrationMode, Transport

__all__ = ["Live"]


class Live:
    """The stream goes straight from machine to machine."""

    moves: ClassVar[bool] = True

    def __init__(self) -> None:
        self._to = ""

    async def listen(self, context: WayContext) -> None:
        await configure(context, context.source, Sides.SOURCE)
        await configure(context, context.destination, Sides.DESTINATION)
        if context.plan.transport is Transport.EXEC:
            self._to, listens_at = exec_addresses(context)
        else:
            self._to = listens_at = address(context)
        if context.plan.transport is Transport.FD:
            await hand_over_sockets(context)
        await context.destination.qmp.command("migrate-incoming", uri=listens_at)

    async def begin(self, context: WayContext) -> None:
        await context.source.qmp.command("migrate", uri=self._to)
        if context.plan.mode is MigrationMode.POSTCOPY:
            await context.source.qmp.command("migrate-start-postcopy")

    async def status(self, context: WayContext, status: str) -> None:
        pass

    async def arrive(self, context: WayContext) -> None:
        pass
