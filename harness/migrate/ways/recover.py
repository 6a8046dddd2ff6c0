"""Postcopy whose link is cut after the guest moved, and which is taken up again.

While it is paused the destination's main loop may itself wait for a page, so the monitor is spoken to out of band.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from harness.migrate.ways.addresses import address
from harness.migrate.ways.base import WayContext
from harness.migrate.ways.live import Live
from harness.vm.qmp import CommandRefusedError

__all__ = ["CutAndRecovered"]

_ENDED_BEFORE_THE_CUT = "postcopy had ended before its link was to be cut: nothing was recovered"


class CutAndRecovered(Live):
    """Cuts the link `cut_after_ms` after the guest began to run at the destination, and recovers over a new one."""

    moves: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._done = False

    async def status(self, context: WayContext, status: str) -> None:
        if status == "postcopy-active" and not self._done:
            self._done = True

            async def runs() -> bool:
                return bool((await context.destination.qmp.command("query-status"))["running"])

            # A destination that loses its source before it runs fails, and can't be recovered.
            await context.deadline.poll(runs, awaited="the guest to run at the destination")
            await asyncio.sleep((context.plan.cut_after_ms or 0.0) / 1000)
            state = (await context.source.qmp.command("query-migrate"))["status"]
            if state != "postcopy-active":
                context.note(_ENDED_BEFORE_THE_CUT)
                return
            context.event("link-cut", {})
            await context.source.qmp.command("migrate-pause", oob=True)
        elif status == "postcopy-paused":
            await self._take_up(context)

    async def _take_up(self, context: WayContext) -> None:
        destination, source = context.destination, context.source
        uri = address(context, attempt=1)
        refusal = ""

        async def listens() -> bool:
            nonlocal refusal
            # The destination notices a little later; until it did it refuses.
            try:
                await destination.qmp.command("migrate-recover", oob=True, uri=uri)
            except CommandRefusedError as error:
                refusal = error.message
                return False
            return True

        await context.deadline.within(20.0).poll(listens, awaited="the destination to be ready for a recovery", interval_s=0.02, seen=lambda: refusal)
        context.event("recover", {})
        await source.qmp.command("migrate", uri=uri, resume=True)
