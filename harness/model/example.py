"""A result as a value, for tests and benchmarks that need many."""

from __future__ import annotations

from typing import Any

from harness.model.result import (
    Downtimes,
    Figure,
    GuestIdentity,
    LedgerClasses,
    Outcome,
    QemuIdentity,
    QemuPair,
    RunResult,
    StreamResult,
    Verdict,
)
from harness.model.scenario import Scenario

__all__ = ["make_result", "make_stream"]


def make_stream(name: str = "udp-to-guest", *, sent: int = 1000, lost: int = 0, unexplained: int = 0, gap_ms: float | None = 5.5, **more: Any) -> StreamResult:
    """A UDP stream to the guest; what it lost was stranded at the source, but for the unexplained; `more` replaces fields."""
    ledger = LedgerClasses(
        delivered=sent - lost, stranded_at_source=lost - unexplained, dropped_by_host=0, lost_in_qemu=0, dropped_by_guest=0, lost_on_return=0,
        unexplained=unexplained,
    )  # fmt: skip
    values: dict[str, Any] = {
        "name": name, "kind": "udp", "direction": "to-guest", "sent": sent, "delivered": sent - lost, "lost": lost, "passed": 0, "late": 0,
        "duplicated": 0, "reordered": 0, "longest_gap_ms": gap_ms, "network_downtime_ms": gap_ms, "sent_late_max_ms": 0.0, "outages": (),
        "latency_ms": None, "ledger": ledger, "lost_by_phase": {"stopped": lost} if lost else {},
    }  # fmt: skip
    return StreamResult(**(values | more))


def make_result(
    scenario: str | Scenario = "udp-none", *, lost: int = 0, compute_ms: float | None = 150.0, accelerator: str = "tcg", build: str = "b1", **more: Any
) -> RunResult:
    """A completed run with one stream; `more` replaces fields."""
    qemu = QemuIdentity(name="system", version="7.2.22", build=build)
    values: dict[str, Any] = {
        "run_id": "20260101T000000Z-run-000000", "scenario": scenario if isinstance(scenario, Scenario) else Scenario(name=scenario), "outcome": Outcome.COMPLETED,
        "verdict": Verdict.NO_BASELINE, "accelerator": accelerator, "host": {"cpu_model": "x", "cores_usable": 2, "kernel": "6.1"},
        "qemu": QemuPair(source=qemu, destination=qemu), "guest": GuestIdentity(kernel="6.1.0", image="abcdef0123456789"),
        "mechanism": "none", "phases": (), "streams": (make_stream(lost=lost, gap_ms=compute_ms),),
        "downtime": Downtimes(
            compute_ms=Figure(value=compute_ms, resolution_ms=0.25), network_ms=Figure(value=compute_ms, resolution_ms=1.0),
            reported_ms=Figure(value=None, resolution_ms=1.0),
        ),
    }  # fmt: skip
    return RunResult(**(values | more))
