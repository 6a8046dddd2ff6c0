"""How the guest's state gets from one machine to the other: one module per way, chosen from the plan."""

from __future__ import annotations

from harness.migrate.ways.base import Way, WayContext
from harness.migrate.ways.cpr_transfer import CprTransfer
from harness.migrate.ways.live import Live
from harness.migrate.ways.recover import CutAndRecovered
from harness.migrate.ways.stored import Snapshot, Stored
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode, Transport

__all__ = ["Way", "WayContext", "make_way"]


def make_way(plan: MigrationPlan) -> Way:
    """The way of a plan that `check_plan` let pass."""
    if plan.mode is MigrationMode.BACKGROUND_SNAPSHOT:
        return Snapshot()
    if plan.mode is MigrationMode.CPR_TRANSFER:
        return CprTransfer()
    if plan.transport is Transport.FILE:
        return Stored()
    if plan.cut_after_ms is not None:
        return CutAndRecovered()
    return Live()
