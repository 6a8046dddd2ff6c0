"""Cancel a migration on its way: after a time, or when a share of the memory was sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from harness.errors import TestbedError
from harness.model.plan import MigrationPlan
from harness.vm.machine import Machine

__all__ = ["cancelled_on_the_way"]

_INTERVAL_S = 0.005
_OVER = frozenset({"completed", "failed", "cancelled"})


@asynccontextmanager
async def cancelled_on_the_way(
    plan: MigrationPlan, source: Machine, *, event: Callable[[str, dict[str, object]], None]
) -> AsyncIterator[None]:
    """For the length of the block, cancel the source's migration when the plan says so; the event `cancel` says when it was.

    A migration that has ended by then is left alone.
    """
    task = asyncio.ensure_future(_cancel(plan, source, event))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TestbedError):  # whatever befell the source, the block saw it too
            await task


async def _cancel(plan: MigrationPlan, source: Machine, event: Callable[[str, dict[str, object]], None]) -> None:
    if plan.cancel_after_ms is not None:
        await asyncio.sleep(plan.cancel_after_ms / 1000)
        event("cancel", {})
        await source.qmp.command("migrate_cancel")
    if plan.cancel_at_percent is None:
        return
    while (info := await source.qmp.command("query-migrate")).get("status") not in _OVER:
        ram = info.get("ram")
        if ram and ram["total"]:
            done = 100 * (1 - ram["remaining"] / ram["total"])
            if done >= plan.cancel_at_percent:
                event("cancel", {"percent": round(done, 1)})
                await source.qmp.command("migrate_cancel")
                return
        await asyncio.sleep(_INTERVAL_S)
