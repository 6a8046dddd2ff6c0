"""cpr-transfer: a new QEMU on the same host takes over the memory in place.

The new QEMU reads what it inherits before it opens its monitor, so it can be spoken to only after the source began.
"""

from __future__ import annotations

from typing import Any, ClassVar

from harness.host.warden import SCRATCH
from harness.migrate.modes import Sides
from harness.migrate.ways.addresses import HOST6, PORT, address
from harness.migrate.ways.base import WayContext, configure
from harness.model.scenario import Transport

__all__ = ["CprTransfer", "cpr_channel"]


def cpr_channel(destination: str) -> dict[str, Any]:
    """The channel over which descriptors are handed to the machine of that name."""
    path = str(SCRATCH / f"{destination}.cpr")
    return {"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": path}}


class CprTransfer:
    """Called with a destination that was started, and not connected to."""

    moves: ClassVar[bool] = True

    async def listen(self, context: WayContext) -> None:
        await configure(context, context.source, Sides.SOURCE)

    async def begin(self, context: WayContext) -> None:
        destination = context.destination
        cpr = cpr_channel(destination.spec.name)
        await context.deadline.within(10.0).poll(
            lambda: context.warden.exists(SCRATCH / f"{destination.spec.name}.cpr"), awaited="the new QEMU to listen for CPR"
        )
        main = {"channel-type": "main", "addr": _socket_address(context)}
        await context.source.qmp.command("migrate", channels=[main, cpr])
        await destination.connect(deadline=context.deadline)
        await configure(context, destination, Sides.DESTINATION)
        await destination.qmp.command("migrate-incoming", uri=address(context))

    async def status(self, context: WayContext, status: str) -> None:
        pass

    async def arrive(self, context: WayContext) -> None:
        pass


def _socket_address(context: WayContext) -> dict[str, Any]:
    """`address`, in the form that a list of channels takes."""
    if context.plan.transport is Transport.UNIX:
        return {"transport": "socket", "type": "unix", "path": address(context).removeprefix("unix:")}
    host = context.host or (HOST6 if context.plan.transport is Transport.TCP6 else "127.0.0.1")
    return {"transport": "socket", "type": "inet", "host": host, "port": str(PORT)}
