"""The plan of one migration, checked before anything boots."""

from __future__ import annotations

from typing import Any

import msgspec

from harness.model.fault import FaultSection
from harness.model.scenario import MigrationMode, MigrationSection

__all__ = ["MigrationPlan"]


class MigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver is to do. Capabilities and parameters are set on both sides unless they belong to one only."""

    mode: MigrationMode = MigrationMode.PRECOPY
    mechanism: str = "none"
    transport: str = "unix"
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    hold_ms: float = 0.0
    outage_ms: float = 100.0
    cancel_at_switchover: bool = False
    cancel_after_ms: float | None = None
    only_at_source: tuple[str, ...] = ()
    start_after_ms: float | None = None
    fault: FaultSection | None = None

    @classmethod
    def from_section(cls, section: MigrationSection, *, mechanism: str) -> MigrationPlan:
        return cls(
            mode=section.mode,
            mechanism=mechanism,
            transport=section.transport,
            capabilities=section.capabilities,
            parameters=section.parameters,
            hold_ms=section.hold_ms,
            outage_ms=section.outage_ms,
            cancel_at_switchover=section.cancel_at_switchover,
            cancel_after_ms=section.cancel_after_ms,
            only_at_source=section.only_at_source,
            start_after_ms=section.start_after_ms,
            fault=section.fault,
        )

    @property
    def cancels(self) -> bool:
        """Whether the migration is meant to end cancelled."""
        return self.cancel_at_switchover or self.cancel_after_ms is not None

    @property
    def pauses(self) -> bool:
        """Whether the source waits in pre-switchover."""
        faulty = self.fault is not None and self.fault.needs_pause
        return self.hold_ms > 0 or self.cancel_at_switchover or faulty or "pause-before-switchover" in self.capabilities
