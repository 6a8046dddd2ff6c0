"""Run a bug report again: what would run here, what differs, and whether the finding shows itself; and make a report smaller."""

from __future__ import annotations

from harness.replay.execute import Replay, execute
from harness.replay.plan import ReplayPlan, Side, plan_replay, provide
from harness.replay.shrink import Shrunk, shrink

__all__ = ["Replay", "ReplayPlan", "Shrunk", "Side", "execute", "plan_replay", "provide", "shrink"]
