"""A fault on purpose: what is done to a machine, and when. Part of a scenario's `[migration]`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["FaultAction", "FaultPoint", "FaultSection"]


class FaultAction(StrEnum):
    """A killed machine gets SIGKILL, a frozen one SIGSTOP."""

    KILL_SOURCE = "kill-source"
    KILL_DESTINATION = "kill-destination"
    FREEZE_DESTINATION = "freeze-destination"

    @property
    def at_source(self) -> bool:
        return self is FaultAction.KILL_SOURCE


class FaultPoint(StrEnum):
    """Where the migration is when the fault comes."""

    ACTIVE = "active"
    """The source migrates and its guest runs."""
    STOPPED = "stopped"
    """The source waits in pre-switchover; at the end of the hold, before it is told to go on."""
    SWITCHOVER = "switchover"
    """The source was told to go on (`migrate-continue`), and the destination has not started."""
    STARTED = "started"
    """The destination said RESUME."""


class FaultSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`after_ms`: so long after the point. `for_ms`: how long a freeze lasts."""

    action: FaultAction
    at: FaultPoint
    after_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    for_ms: Annotated[float, Meta(ge=1, le=60_000)] = 500.0

    @property
    def kills(self) -> bool:
        return self.action is not FaultAction.FREEZE_DESTINATION

    @property
    def needs_pause(self) -> bool:
        """Whether the point lies in, or is reached through, the pause before the switchover; or a source that will be dead has to be asked there."""
        return self.at in (FaultPoint.STOPPED, FaultPoint.SWITCHOVER) or (self.action.at_source and self.at is FaultPoint.STARTED)
