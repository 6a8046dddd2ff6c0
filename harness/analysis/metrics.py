"""The figures by which runs are compared, taken from results: a name, a unit, a value and its resolution."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from harness.model.result import Figure, RunResult

__all__ = ["DECISIVE", "MAIN", "Reading", "Unit", "readings"]


class Unit(StrEnum):
    PACKETS = "packets"
    MS = "ms"
    US = "us"


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """`value` is None where the run has none. Of all readings less is better."""

    unit: Unit
    value: float | None
    resolution: float = 0.0

    @property
    def is_count(self) -> bool:
        return self.unit is Unit.PACKETS


MAIN = ("lost", "duplicated", "reordered", "unexplained", "compute_ms", "network_ms", "reported_ms", "tcp_stall_ms")
"""What a table shows; the other readings are those of single streams."""

DECISIVE = ("lost", "network_ms")
"""What a campaign that may stop early has to answer before it does."""

_COUNTS = ("lost", "duplicated", "reordered", "late")


def readings(result: RunResult) -> dict[str, Reading]:
    """Every reading of a run. Counts are summed over all streams; `streams.NAME.*` are those of one stream."""
    found: dict[str, Reading] = {}
    for name in _COUNTS:
        found[name] = _count(sum(getattr(stream, name) for stream in result.streams))
    found["unexplained"] = _count(sum(stream.ledger.unexplained for stream in result.streams))
    downtime = result.downtime
    for name in ("compute_ms", "network_ms", "reported_ms"):
        found[name] = _figure(getattr(downtime, name))
    stalls = [entry.longest_stall_ms for entry in result.tcp]
    found["tcp_stall_ms"] = Reading(
        unit=Unit.MS, value=max((stall.value for stall in stalls if stall.value is not None), default=None),
        resolution=max((stall.resolution_ms for stall in stalls), default=0.0),
    )  # fmt: skip
    total = result.migration.total_ms if result.migration is not None else None
    found["migration_ms"] = Reading(unit=Unit.MS, value=total, resolution=1.0)
    resolution_of_split = max(downtime.compute_ms.resolution_ms, downtime.network_ms.resolution_ms)
    for name, spent_us in result.figures.items():
        if name.endswith("_us"):
            found[f"figures.{name}"] = Reading(unit=Unit.US, value=spent_us, resolution=1.0)
    for stream in result.streams:
        for part, length in stream.network_split.items():
            found[f"streams.{stream.name}.split.{part}_ms"] = Reading(unit=Unit.MS, value=length, resolution=resolution_of_split)
        prefix, resolution = f"streams.{stream.name}.", downtime.network_ms.resolution_ms
        for name in _COUNTS:
            found[prefix + name] = _count(getattr(stream, name))
        found[prefix + "network_ms"] = Reading(unit=Unit.MS, value=stream.network_downtime_ms, resolution=resolution)
        latency = stream.latency_ms
        for name in ("p50", "p99", "max"):
            value = None if latency is None else float(getattr(latency, name))
            found[f"{prefix}latency_{name}_ms"] = Reading(unit=Unit.MS, value=value, resolution=0.1)
    return found


def _count(value: int) -> Reading:
    return Reading(unit=Unit.PACKETS, value=value)


def _figure(figure: Figure) -> Reading:
    return Reading(unit=Unit.MS, value=figure.value, resolution=figure.resolution_ms)
