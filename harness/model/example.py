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

__all__ = ["make_result"]


def make_result(
    scenario: str | Scenario = "udp-none", *, lost: int = 0, compute_ms: float | None = 150.0, accelerator: str = "tcg", build: str = "b1", **more: Any
) -> RunResult:
    """A completed run with one stream; `more` replaces fields."""
    qemu = QemuIdentity(name="system", version="7.2.22", build=build)
    ledger = LedgerClasses(
        delivered=1000 - lost, stranded_at_source=lost, dropped_by_host=0, lost_in_qemu=0, dropped_by_guest=0, lost_on_return=0, unexplained=0
    )
    stream = StreamResult(
        name="udp-to-guest", kind="udp", direction="to-guest", sent=1000, delivered=1000 - lost, lost=lost, passed=0, late=0, duplicated=0,
        reordered=0, longest_gap_ms=compute_ms, network_downtime_ms=compute_ms, sent_late_max_ms=0.0, outages=(), latency_ms=None,
        ledger=ledger, lost_by_phase={"stopped": lost} if lost else {},
    )  # fmt: skip
    values: dict[str, Any] = {
        "run_id": "20260101T000000Z-run-000000", "scenario": scenario if isinstance(scenario, Scenario) else Scenario(name=scenario), "outcome": Outcome.COMPLETED,
        "verdict": Verdict.NO_BASELINE, "accelerator": accelerator, "host": {"cpu_model": "x", "cores_usable": 2, "kernel": "6.1"},
        "qemu": QemuPair(source=qemu, destination=qemu), "guest": GuestIdentity(kernel="6.1.0", image="abcdef0123456789"),
        "mechanism": "none", "phases": (), "streams": (stream,),
        "downtime": Downtimes(
            compute_ms=Figure(value=compute_ms, resolution_ms=0.25), network_ms=Figure(value=compute_ms, resolution_ms=1.0),
            reported_ms=Figure(value=None, resolution_ms=1.0),
        ),
    }  # fmt: skip
    return RunResult(**(values | more))
