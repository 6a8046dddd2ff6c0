"""The witnesses of a run: their own figures beside the capture's."""

from __future__ import annotations

from pathlib import Path

from harness.analysis import witness as reports
from harness.analysis.columns import Capture
from harness.analysis.tcp import TcpConnection
from harness.analysis.witness import Report
from harness.errors import UsageError
from harness.model.addresses import MOBILE
from harness.model.facts import RunFacts
from harness.model.result import WitnessResult
from harness.model.scenario import TrafficKind
from harness.model.streams import Witness
from harness.store.rundir import RunDirectory

__all__ = ["find_witnesses"]

# Headers of IPv4 or IPv6, and of TCP with time stamps, take 52 or 72 bytes of the MTU.
_HANDSHAKE_BYTES = 64
"""iperf3's data connection begins with a cookie of 37 bytes, and ends with a FIN, which takes a sequence number."""


def find_witnesses(
    run: RunDirectory, facts: RunFacts, peer: Capture | None, connections: tuple[TcpConnection, ...]
) -> tuple[WitnessResult, ...]:
    """What each witness says. One that left no usable report stands there with the reason."""
    return tuple(_result(run, facts, witness, peer, connections) for witness in facts.witnesses)


def _result(
    run: RunDirectory, facts: RunFacts, witness: Witness, peer: Capture | None, connections: tuple[TcpConnection, ...]
) -> WitnessResult:
    capture = _capture(witness, peer, connections, mtu=facts.scenario.network.mtu)
    try:
        report = _report(run.path / "traffic", witness)
    except UsageError as error:
        return WitnessResult(name=witness.name, kind=witness.kind, program="", capture=capture, error=error.message)
    interval_ms = 1000 / witness.rate_pps if witness.rate_pps else 0.0
    # A request may be on its way when the client is interrupted; what iperf3 counts as sent may still wait in its socket.
    allowed = {"sent": 1.0, "received": 1.0, "lost": 1.0, "longest_gap_ms": interval_ms}
    if witness.kind is TrafficKind.IPERF3:
        allowed = {"bytes": _HANDSHAKE_BYTES + witness.size}
    return WitnessResult(
        name=witness.name, kind=witness.kind, program=report.program, figures=report.figures, capture=capture,
        disagreements=reports.differences(report.figures, capture, allowed=allowed),
    )


def _report(folder: Path, witness: Witness) -> Report:
    match witness.kind:
        case TrafficKind.ICMP:
            return reports.read_ping(folder / f"{witness.id}.ping.log", interval_ns=round(1e9 / (witness.rate_pps or 1)))
        case TrafficKind.IRTT:
            return reports.read_irtt(folder / f"{witness.id}.irtt.json")
    return reports.read_iperf3(folder / f"{witness.id}.iperf3.json")


def _capture(
    witness: Witness, peer: Capture | None, connections: tuple[TcpConnection, ...], *, mtu: int
) -> dict[str, float]:
    if peer is None:
        return {}
    match witness.kind:
        case TrafficKind.ICMP:
            return reports.capture_of_icmp(peer.columns, ip=witness.ip)
        case TrafficKind.IRTT:
            return reports.capture_of_irtt(peer.columns, port=witness.port, size=witness.size)
    address = MOBILE.ip(witness.ip)
    server = f"[{address}]:{witness.port}" if witness.ip == 6 else f"{address}:{witness.port}"
    return reports.capture_of_iperf3(connections, server=server, mss=mtu - (72 if witness.ip == 6 else 52))
