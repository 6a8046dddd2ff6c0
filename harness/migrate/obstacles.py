"""Obstacles on purpose: what is put in a migration's way so that it fails, and the guest goes on at the source."""

from __future__ import annotations

import msgspec

from harness.model.scenario import Obstacle
from harness.vm.argv import MachineSpec

__all__ = ["SMALL_DISK_BYTES", "with_obstacle"]

SMALL_DISK_BYTES = 1 << 20
"""Of the file system that a migration's file is too large for (not /dev/full: newer QEMUs truncate their file first)."""


def with_obstacle(spec: MachineSpec, obstacle: Obstacle | None) -> MachineSpec:
    """The destination, changed so that it refuses what the source sends (or as it is)."""
    match obstacle:
        case Obstacle.OTHER_MEMORY:
            return msgspec.structs.replace(spec, memory_mib=spec.memory_mib + 64)
        case Obstacle.MISSING_DEVICE:
            return msgspec.structs.replace(spec, nics=spec.nics[:1])
        case Obstacle.MISSING_FEATURE:
            first, *others = spec.nics
            poor = msgspec.structs.replace(first, properties=(*first.properties, "mrg_rxbuf=off"))
            return msgspec.structs.replace(spec, nics=(poor, *others))
    return spec
