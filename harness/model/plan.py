"""The plan of one migration, checked before anything boots."""

from __future__ import annotations

from typing import Any

import msgspec

from harness.model.fault import FaultSection
from harness.model.scenario import MigrationMode, MigrationSection, Obstacle, Transport

__all__ = ["MigrationPlan"]


class MigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver is to do. Capabilities and parameters are set on both sides unless they belong to one only."""

    mode: MigrationMode = MigrationMode.PRECOPY
    mechanism: str = "none"
    transport: Transport = Transport.UNIX
    tls: bool = False
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    hold_ms: float = 0.0
    outage_ms: float = 100.0
    cancel_at_switchover: bool = False
    cancel_after_ms: float | None = None
    cancel_at_percent: float | None = None
    cut_after_ms: float | None = None
    only_at_source: tuple[str, ...] = ()
    start_after_ms: float | None = None
    compare_memory: bool = False
    fault: FaultSection | None = None
    obstacle: Obstacle | None = None

    @classmethod
    def from_section(cls, section: MigrationSection, *, mechanism: str) -> MigrationPlan:
        return cls(
            mode=section.mode,
            mechanism=mechanism,
            transport=section.transport,
            tls=section.tls,
            capabilities=section.capabilities,
            parameters=section.parameters,
            hold_ms=section.hold_ms,
            outage_ms=section.outage_ms,
            cancel_at_switchover=section.cancel_at_switchover,
            cancel_after_ms=section.cancel_after_ms,
            cancel_at_percent=section.cancel_at_percent,
            cut_after_ms=section.cut_after_ms,
            only_at_source=section.only_at_source,
            start_after_ms=section.start_after_ms,
            compare_memory=section.compare_memory,
            fault=section.fault,
            obstacle=section.obstacle,
        )

    @property
    def cancels(self) -> bool:
        """Whether the migration is meant to end cancelled."""
        return self.cancel_at_switchover or self.cancel_after_ms is not None or self.cancel_at_percent is not None

    @property
    def starts_paused(self) -> bool:
        """Whether the destination waits to be told to go on."""
        return self.start_after_ms is not None or self.compare_memory

    @property
    def shares_memory(self) -> bool:
        """Whether the destination maps the source's memory instead of a copy."""
        return self.mode is MigrationMode.CPR_TRANSFER or "x-ignore-shared" in self.capabilities

    @property
    def source_memory_ends(self) -> bool:
        """Whether the source's memory can't be asked after the switchover: the destination writes to it, or it was given back."""
        return self.shares_memory or "release-ram" in self.capabilities

    @property
    def pauses(self) -> bool:
        """Whether the source waits in pre-switchover: to be held, or to be asked what can't be asked later."""
        asked = self.source_memory_ends or (self.fault is not None and self.fault.needs_pause)
        return self.hold_ms > 0 or asked or self.cancel_at_switchover or "pause-before-switchover" in self.capabilities
