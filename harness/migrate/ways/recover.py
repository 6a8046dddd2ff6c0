"""Postcopy whose link is cut after the guest moved, and which is taken up again.

While it is paused the destination's main loop may itself wait for a page, so the monitor is spoken to out of band.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

from harness.host.deadline import Deadline
from harness.migrate.ways.addresses import address
from harness.migrate.ways.base import WayContext
from harness.migrate.ways.live import Live
from harness.vm.qmp import CommandRefusedError

__all__ = ["CutAndRecovered"]

_NOTICES_S = 3.0
_TOLD = f"the destination had not noticed after {_NOTICES_S:g} s that its link was cut, and was told so (migrate-pause)"
_ENDED_BEFORE_THE_CUT = "postcopy had ended before its link was to be cut: nothing was recovered"


class CutAndRecovered(Live):
    """Cuts the link `cut_after_ms` after postcopy began, and recovers over a new one."""

    moves: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._done = False

    async def status(self, context: WayContext, status: str) -> None:
        if status == "postcopy-active" and not self._done:
            self._done = True
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
        patience: Deadline | None = context.deadline.within(_NOTICES_S)

        async def listens() -> bool:
            nonlocal refusal, patience
            # The destination notices a little later; until it did it refuses.
            try:
                await destination.qmp.command("migrate-recover", oob=True, uri=uri)
            except CommandRefusedError as error:
                refusal = error.message
            else:
                return True
            if patience is not None and patience.expired:
                patience = None
                context.note(_TOLD)
                with contextlib.suppress(CommandRefusedError):
                    await destination.qmp.command("migrate-pause", oob=True)
            return False

        await context.deadline.within(20.0).poll(listens, awaited="the destination to be ready for a recovery", interval_s=0.02, seen=lambda: refusal)
        context.event("recover", {})
        await source.qmp.command("migrate", uri=uri, resume=True)
