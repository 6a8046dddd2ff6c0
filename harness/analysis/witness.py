"""What other people's clients wrote down: ping's log, the reports of iperf3 and irtt. Their figures, unchanged but for the units.

Names of figures: `sent`, `received`, `lost`, `duplicated`, `longest_gap_ms` (between two replies, or without anything received),
`rtt_p50_ms`, `rtt_max_ms`, `bytes`, `retransmitted_segments`. Nothing of a damaged report is used: `UsageError` says what is wrong.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iperf3
import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import ICMP, ICMPV6, UDP, Columns
from harness.analysis.estimators import estimate, read_ping_log
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.sightings import NEVER
from harness.analysis.tcp import TcpConnection
from harness.errors import UsageError

__all__ = [
    "Report", "capture_of_icmp", "capture_of_iperf3", "capture_of_irtt", "differences", "read_iperf3", "read_irtt", "read_ping",
]  # fmt: skip

_INTERRUPTED = "interrupt - the client has terminated"
_PING_SUMMARY = re.compile(r"^(\d+) packets transmitted, (\d+) received", re.MULTILINE)
_ECHO = {4: (8, 0), 6: (128, 129)}
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Report:
    """One client's own words: which program, and its figures."""

    program: str
    figures: dict[str, float]


def _longest_gap_ms(times_ns: NDArray[np.int64]) -> dict[str, float]:
    return {"longest_gap_ms": float(np.diff(np.sort(times_ns)).max() / _NS_PER_MS)} if times_ns.size > 1 else {}


# -- ping


def read_ping(path: Path, *, interval_ns: int) -> Report:
    """A log of `ping -D -O`, with what each published estimator makes of it (`estimate.NAME_ms`)."""
    series = read_ping_log(path, interval_ns=interval_ns)
    figures: dict[str, float] = {}
    if summary := _PING_SUMMARY.search(path.read_text(encoding="utf-8", errors="replace")):
        sent, received = int(summary[1]), int(summary[2])
        figures |= {"sent": sent, "received": received, "lost": sent - received}
    answered = ~series.lost
    if answered.any():
        rtt_ms = (series.received_ns[answered] - series.sent_ns[answered]) / _NS_PER_MS
        figures |= {"rtt_p50_ms": float(np.median(rtt_ms)), "rtt_max_ms": float(rtt_ms.max())}
    figures |= _longest_gap_ms(series.received_ns[series.received_ns != NEVER])
    for each in estimate(series, interval_ns=interval_ns).estimates:
        if each.downtime_ns is not None:
            figures[f"estimate.{each.name}_ms"] = each.downtime_ns / _NS_PER_MS
    return Report("ping", figures)


def capture_of_icmp(columns: Columns, *, ip: int) -> dict[str, float]:
    """Echo requests that left the peer, and replies that reached it."""
    request, reply = _ECHO[ip]
    mine = (columns.ip_version == ip) & (columns.protocol == (ICMP if ip == 4 else ICMPV6))
    asked = mine & (columns.source_port == request) & (columns.direction == INBOUND)
    answered = mine & (columns.source_port == reply) & (columns.direction == OUTBOUND)
    sent, received = int(np.count_nonzero(asked)), int(np.count_nonzero(answered))
    return {"sent": sent, "received": received, "lost": max(0, sent - received)} | _longest_gap_ms(columns.time_ns[answered])


# -- irtt


def _load(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: no report of {what}: {error}" if text.strip() else f"{path}: {what} left no report") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no report of {what}")
    return found


def read_irtt(path: Path) -> Report:
    """The report that `irtt client -o` writes."""
    found = _load(path, "irtt")
    try:
        stats = found["stats"]
        figures: dict[str, float] = {
            "sent": stats["packets_sent"], "received": stats["packets_received"],
            "lost": stats["packets_sent"] - stats["packets_received"], "duplicated": stats["duplicates"],
            "late": stats["late_packets"], "server_received": stats["server_packets_received"],
        }  # fmt: skip
        if stats["packets_received"]:
            figures |= {"rtt_p50_ms": stats["rtt"]["median"] / _NS_PER_MS, "rtt_max_ms": stats["rtt"]["max"] / _NS_PER_MS}
        replies = [trip["timestamps"]["client"]["receive"]["wall"] for trip in found["round_trips"] if trip["lost"] == "false"]
        figures |= _longest_gap_ms(np.array(replies, dtype=np.int64))
        program = f"irtt {found['version']['irtt']}"
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: a report of irtt without {error}") from error
    return Report(program, figures)


def capture_of_irtt(columns: Columns, *, port: int, size: int) -> dict[str, float]:
    """Its packets by the server's port, without those that open and close the session (of another size, or outside of the run)."""
    mine = (columns.protocol == UDP) & (columns.payload_bytes == size)
    asked = mine & (columns.destination_port == port) & (columns.direction == INBOUND)
    answered = mine & (columns.source_port == port) & (columns.direction == OUTBOUND)
    sent, received = int(np.count_nonzero(asked)), int(np.count_nonzero(answered))
    return {"sent": sent, "received": received, "lost": max(0, sent - received)} | _longest_gap_ms(columns.time_ns[answered])


# -- iperf3


def read_iperf3(path: Path) -> Report:
    """The client's report (`iperf3 -J`), read by iperf3's own binding."""
    found = _load(path, "iperf3")
    if found.get("error") == _INTERRUPTED and "end" in found:
        # That is how a run ends; the binding takes any `error` for a report without figures.
        del found["error"]
    try:
        result = iperf3.TestResult(json.dumps(found))
        if result.error:
            raise UsageError(f"{path}: iperf3 ended with: {result.error}")
        figures: dict[str, float] = {"bytes": result.sent_bytes, "received_bytes": result.received_bytes}
        if result.retransmits is not None:
            figures["retransmitted_segments"] = result.retransmits
        version = str(result.version)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: a report of iperf3 without {error}") from error
    return Report(version, {name: value for name, value in figures.items() if value is not None})


def capture_of_iperf3(connections: tuple[TcpConnection, ...], *, server: str, mss: int) -> dict[str, float]:
    """Its data connection: of those to its port the one with the most bytes (the other one is for control).

    `retransmitted_segments` are counted in segments of `mss` bytes, as the kernel does, which is whom iperf3 asks.
    """
    mine = [c for c in connections if server in (c.flows[0].receiver, c.flows[0].sender)]
    if not mine:
        return {}
    flows = [(flow, c, way) for c in mine for way, flow in enumerate(c.flows)]
    flow, connection, way = max(flows, key=lambda each: each[0].payload_bytes)
    found: dict[str, float] = {
        "bytes": flow.payload_bytes, "retransmitted_segments": flow.retransmitted_parts(mss=mss),
        "retransmitted_bytes": flow.retransmitted_bytes, "rto_events": flow.rto_events,
        "tail_loss_probes": flow.tail_loss_probes,
    }  # fmt: skip
    stall_ns = connection.longest_stall_ns(flow=way)
    if stall_ns is not None:
        found["longest_gap_ms"] = stall_ns / _NS_PER_MS
    return found


# -- side by side


def differences(figures: dict[str, float], capture: dict[str, float], *, allowed: dict[str, float]) -> tuple[str, ...]:
    """Where a client and the capture disagree by more than is `allowed` (0 where nothing is said)."""
    return tuple(
        f"{name}: it says {figures[name]:g}, the capture {capture[name]:g}"
        for name in figures
        if name in capture and abs(figures[name] - capture[name]) > allowed.get(name, 0)
    )
