"""What a calibration showed, as it stands in results: each trial with its truth, and the resolution that follows."""

from __future__ import annotations

import msgspec

__all__ = ["CalibrationResult", "DropCheck", "NullCheck", "OutageCheck"]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class NullCheck(_Record, frozen=True, kw_only=True):
    """A stream of a run in which nothing was done."""

    run: str
    stream: str
    lost: int
    duplicated: int
    reordered: int
    unexplained: int
    max_delay_ms: float | None
    longest_gap_ms: float | None


class OutageCheck(_Record, frozen=True, kw_only=True):
    """One injected outage. `truth_ms`: STOP to RESUME; `measured_ms` by stream, None where none was found.

    `clock_step_ms`: what the guest's clock lost; `estimates`: what the published formulas made of the first stream.
    """

    run: str
    injected_ms: float
    truth_ms: float
    measured_ms: dict[str, float | None]
    lost: int
    clock_step_ms: float | None = None
    estimates: dict[str, float | None] = {}


class DropCheck(_Record, frozen=True, kw_only=True):
    """Packets dropped on purpose, and where the ledger has the lost ones."""

    run: str
    injected: int
    dropped_by_host: int
    lost: int
    unexplained: int


class CalibrationResult(_Record, frozen=True, kw_only=True):
    """`network_resolution_ms` is the worst error of the first stream's injected outages, at least one sending interval;
    `stream_resolution_ms` the same for each stream. Smaller differences are never claimed.

    `sound` is False where a null run lost, doubled or reordered something, an outage lost something, or a drop on purpose was not
    counted exactly; `problems` says which.
    """

    scenario: str
    accelerator: str
    interval_ms: float
    null: tuple[NullCheck, ...]
    outages: tuple[OutageCheck, ...] = ()
    drops: tuple[DropCheck, ...] = ()
    network_bias_ms: float | None = None
    network_worst_ms: float | None = None
    network_resolution_ms: float
    stream_resolution_ms: dict[str, float] = {}
    estimators_worst_ms: dict[str, float | None] = {}
    late_ms: float | None = None
    tolerance_ms: float
    sound: bool
    problems: tuple[str, ...] = ()

    def resolutions(self) -> dict[str, float]:
        """By the names that `analysis.metrics` gives to readings."""
        known = {f"streams.{name}.network_ms": value for name, value in self.stream_resolution_ms.items()}
        return known | {"network_ms": self.network_resolution_ms}
