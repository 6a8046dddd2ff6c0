"""The connections of a run: what the capture at the peer's port shows, beside what both ends and their kernels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from harness.analysis.columns import Capture
from harness.analysis.records import RecordKind, read_records
from harness.analysis.sightings import StopWindow
from harness.analysis.silence import TICK_NS, find_silence
from harness.analysis.tcp import TcpConnection, find_connections
from harness.errors import UsageError
from harness.model.addresses import MOBILE, PEER
from harness.model.facts import RunFacts
from harness.model.result import Figure, Latency, TcpEnd, TcpResult
from harness.model.streams import TcpRole, TcpStream
from harness.model.units import ms
from harness.store.rundir import RunDirectory

__all__ = ["TcpFindings", "find_tcp"]

_COUNTED = {"TCPTimeouts": "rto_events", "TCPLossProbes": "tail_loss_probes"}
"""The kernel's counter, and our figure for the same thing."""
_ACK_RESOLUTION_MS = 1.0
"""Where TCP sets the pace, acknowledgements come about this often."""


@dataclass(frozen=True)
class TcpFindings:
    """`counters`: what grew in the TCP counters of each end's kernel. `notes`: where kernel and capture disagree."""

    results: tuple[TcpResult, ...]
    counters: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    connections: tuple[TcpConnection, ...]


def find_tcp(run: RunDirectory, facts: RunFacts, peer: Capture | None, windows: tuple[StopWindow, ...]) -> TcpFindings:
    """All of a run's connections. `UsageError` for records that are damaged or missing."""
    if not facts.tcp and not facts.witnesses:
        return TcpFindings((), {}, (), ())
    connections = find_connections(peer.columns) if peer is not None else ()
    summaries = _summaries(run)
    notes: list[str] = []
    results = []
    for stream in facts.tcp:
        mine = [c for c in connections if stream.server in (c.flows[0].receiver, c.flows[0].sender)]
        if len(mine) > 1:
            notes.append(f"{stream.name}: {len(mine)} connections to {stream.server} were seen; the first is reported")
        result = _result(run, stream, mine[0] if mine else None, _entries(summaries, stream), windows)
        notes += _retransmission_notes(result)
        results.append(result)
    counters = _counters(summaries)
    notes += _counter_notes(counters, connections)
    return TcpFindings(tuple(results), counters, tuple(notes), connections)


def _summaries(run: RunDirectory) -> list[dict[str, Any]]:
    path = run.path / "traffic" / "summaries.json"
    try:
        found: list[dict[str, Any]] = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    return found


def _counters(summaries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Per end; of several generators the one that ran for longest saw the most."""
    found: dict[str, dict[str, int]] = {}
    for summary in summaries:
        mine = found.setdefault(summary["endpoint"], {})
        for name, increase in summary.get("tcp_counters", {}).items():
            mine[name] = max(mine.get(name, 0), increase)
    return {end: counted for end, counted in found.items() if counted}


def _entries(summaries: list[dict[str, Any]], stream: TcpStream) -> dict[str, dict[str, Any]]:
    """What each end's generator says of a stream, by the name of the end."""
    return {s["endpoint"]: entry for s in summaries for entry in s["streams"] if entry["id"] == stream.id}


def _result(
    run: RunDirectory, stream: TcpStream, connection: TcpConnection | None, entries: dict[str, dict[str, Any]],
    windows: tuple[StopWindow, ...],
) -> TcpResult:
    client_end = "peer" if stream.sender_is_peer else "mobile"
    client = entries.get(client_end, {}).get("tcp", {})
    server = entries.get("mobile" if stream.sender_is_peer else "peer", {})
    request, bulk = stream.role is TcpRole.REQUEST, stream.role is TcpRole.BULK
    common: dict[str, Any] = {
        "name": stream.name, "kind": stream.role, "direction": stream.direction, "server": stream.server,
        "bytes": client.get("bytes", 0), "confirmed_bytes": client.get("confirmed_bytes") if bulk else None,
        "requests": entries.get(client_end, {}).get("sent") if request else None,
        "answered": entries.get(client_end, {}).get("received") if request else None,
        "latency_ms": _latency(run, stream) if request and stream.sender_is_peer else None,
        "kernel": {end: kernel for end in ("mobile", "peer") if (kernel := _kernel(run, stream, end)) is not None},
    }  # fmt: skip
    error = _error(client, server)
    if connection is None:
        return TcpResult(
            client="", survived=False, error=error or "no connection was seen at the peer's port",
            longest_stall_ms=Figure(value=None, resolution_ms=0.0), longest_unacknowledged_ms=0.0, recovery_ms=None, segments=0,
            retransmitted_segments=0, retransmitted_bytes=0, fast_retransmits=0, rto_events=0, tail_loss_probes=0,
            spurious_retransmits=0, duplicate_sacks=0, sack_recoveries=0, **common,
        )  # fmt: skip
    way = 0 if connection.flows[0].receiver == stream.server else 1
    flows = connection.flows
    resets = tuple(reset.sender for reset in connection.resets)
    interval_ns = stream.interval_ns
    stall_ns = None if stream.role is TcpRole.IDLE else connection.longest_stall_ns(flow=way, interval_ns=interval_ns or 0)
    recovery_ns = connection.recovery_ns(windows[0], flow=way) if windows and bulk else None
    silent_ms, clock_lost_ms = _silence(connection, flow=1 - way if stream.sender_is_peer else way, windows=windows)
    return TcpResult(
        client=flows[way].sender, survived=not error and not resets and bool(client.get("closed")), error=error, resets=resets,
        longest_stall_ms=Figure(
            value=None if stall_ns is None else ms(stall_ns), resolution_ms=ms(interval_ns) if interval_ns else _ACK_RESOLUTION_MS
        ),
        silent_ms=silent_ms, clock_lost_ms=clock_lost_ms,
        longest_unacknowledged_ms=ms(max(flow.longest_stall_ns for flow in flows)),
        recovery_ms=None if recovery_ns is None else ms(recovery_ns),
        segments=sum(flow.segments for flow in flows),
        retransmitted_segments=sum(flow.retransmitted_segments for flow in flows),
        retransmitted_bytes=sum(flow.retransmitted_bytes for flow in flows),
        fast_retransmits=sum(flow.fast_retransmits for flow in flows),
        rto_events=sum(flow.rto_events for flow in flows),
        tail_loss_probes=sum(flow.tail_loss_probes for flow in flows),
        spurious_retransmits=sum(flow.spurious_retransmits for flow in flows),
        duplicate_sacks=sum(flow.duplicate_sacks for flow in flows),
        sack_recoveries=sum(flow.sack_recoveries for flow in flows),
        **common,
    )


def _silence(connection: TcpConnection, *, flow: int, windows: tuple[StopWindow, ...]) -> tuple[Figure, Figure]:
    """Of the moving guest, which sent this flow: how long it was silent across the stop, and what its clock lost there."""
    silence = find_silence(connection.emitted[flow], windows=windows)
    if silence is None:
        return Figure(value=None, resolution_ms=0.0), Figure(value=None, resolution_ms=0.0)
    lost_ns = silence.clock_lost_ns
    return (
        Figure(value=ms(silence.duration_ns), resolution_ms=ms(silence.longest_usual_ns)),
        Figure(value=None if lost_ns is None else ms(lost_ns), resolution_ms=ms(TICK_NS)),
    )


def _error(client: dict[str, Any], server: dict[str, Any]) -> str:
    """What ended the connection, if it did not end in order; damaged data is worse than either."""
    if server.get("corrupt"):
        return f"the server got {server['corrupt']} damaged blocks"
    if client.get("error"):
        return str(client["error_text"])
    if not client.get("connected"):
        return "it was never made"
    return "" if client.get("closed") else "it was not closed in order"


def _kernel(run: RunDirectory, stream: TcpStream, end: str) -> TcpEnd | None:
    path = run.path / "traffic" / f"{stream.id}.tcp-{end}.rec"
    if not path.exists():
        return None
    records = read_records(path, kind=RecordKind.TCP).records
    if not records.size:
        return None
    last = records[-1]
    plain = ("app_bytes", "bytes_acked", "bytes_received", "bytes_retrans", "total_retrans", "dsack_dups")
    return TcpEnd(**{name: int(last[name]) for name in plain}, rto_us_max=int(records["rto_us"].max()))


def _latency(run: RunDirectory, stream: TcpStream) -> Latency | None:
    """Of the answered requests, by the client's clock: only that of the peer, which never stands still, can be trusted."""
    path = run.path / "traffic" / f"{stream.id}.replies.rec"
    if not path.exists():
        return None
    replies = read_records(path, kind=RecordKind.REPLIES).records
    if not replies.size:
        return None
    took_ns = np.sort(replies["received_ns"] - replies["sent_ns"])
    p50, p99 = (int(took_ns[min(took_ns.size - 1, int(took_ns.size * share))]) for share in (0.5, 0.99))
    return Latency(p50=ms(p50), p99=ms(p99), max=ms(int(took_ns[-1])))


def _retransmission_notes(result: TcpResult) -> list[str]:
    """The senders' own count of bytes sent again against the capture's: they don't depend on how segments were cut."""
    if not result.kernel or not result.client:
        return []
    kernel = sum(end.bytes_retrans for end in result.kernel.values())
    if kernel == result.retransmitted_bytes:
        return []
    return [
        f"{result.name}: the kernels sent {kernel} bytes again (TCP_INFO), the capture shows {result.retransmitted_bytes}"
    ]


def _counter_notes(counters: dict[str, dict[str, int]], connections: tuple[TcpConnection, ...]) -> list[str]:
    """Each kernel's counters, of all its connections together, against those of all flows that it sent."""
    notes = []
    for end, counted in counters.items():
        addresses = [f"{a.ip4}:" for a in (MOBILE if end == "mobile" else PEER,)] + [f"[{(MOBILE if end == 'mobile' else PEER).ip6}]:"]
        sent = [flow for c in connections for flow in c.flows if flow.sender.startswith(tuple(addresses))]
        for name, ours in _COUNTED.items():
            seen = sum(getattr(flow, ours) for flow in sent)
            if counted.get(name, 0) != seen:
                why = " (one with new data looks like any other segment)" if name == "TCPLossProbes" and seen < counted.get(name, 0) else ""
                notes.append(f"the kernel of {end} counts {counted.get(name, 0)} {name}, the capture shows {seen}{why}")
    return notes
