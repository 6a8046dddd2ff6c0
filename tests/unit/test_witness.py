"""What other people's clients wrote down, read and set beside a capture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from harness.analysis.columns import Columns, concatenate, decode
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.synthetic import frames_batch
from harness.analysis.tcp import find_connections
from harness.analysis.witness import (
    capture_of_icmp,
    capture_of_iperf3,
    capture_of_irtt,
    differences,
    read_iperf3,
    read_irtt,
    read_ping,
)
from harness.errors import UsageError

MS = 1_000_000
PING = """PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data.
[1000.001000] 64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=1.00 ms
[1000.011000] 64 bytes from 10.77.0.2: icmp_seq=2 ttl=64 time=1.00 ms
[1000.030000] no answer yet for icmp_seq=3
[1000.040000] no answer yet for icmp_seq=4
[1000.041500] 64 bytes from 10.77.0.2: icmp_seq=5 ttl=64 time=1.50 ms

--- 10.77.0.2 ping statistics ---
5 packets transmitted, 3 received, 40% packet loss, time 40ms
"""


def columns(*frames: tuple[float, int, Packet]) -> Columns:
    """Frames as (milliseconds, direction, packet)."""
    parts = [decode(frames_batch([bytes(p)], time_ns=[round(ms * MS)], direction=way)) for ms, way, p in frames]
    return concatenate(parts)


def test_a_log_of_ping(tmp_path: Path) -> None:
    path = tmp_path / "1.ping.log"
    path.write_text(PING)
    figures = read_ping(path, interval_ns=10 * MS).figures
    assert (figures["sent"], figures["received"], figures["lost"]) == (5, 3, 2)
    assert figures["longest_gap_ms"] == pytest.approx(30.5)
    assert figures["rtt_max_ms"] == pytest.approx(1.5)
    assert figures["estimate.lost-times-interval_ms"] == 20
    assert figures["estimate.lost-plus-one_ms"] == 30
    assert figures["estimate.switchover_ms"] == pytest.approx(20.5)


def test_echo_in_a_capture_is_not_mistaken_for_anything_else() -> None:
    v4, v6 = Ether() / IP(), Ether() / IPv6()
    seen = columns(
        (1, INBOUND, v4 / ICMP(type=8)), (2, OUTBOUND, v4 / ICMP(type=0)), (5, INBOUND, v4 / ICMP(type=8)),
        (9, OUTBOUND, v4 / ICMP(type=0)), (10, INBOUND, v4 / ICMP(type=8)),
        (11, OUTBOUND, Ether() / ARP(op=1)),  # its operation stands where a protocol's number would, and is that of ICMP
        (12, INBOUND, v4 / ICMP(type=3)), (13, INBOUND, v6 / ICMPv6EchoRequest()), (14, OUTBOUND, v6 / ICMPv6EchoReply()),
    )  # fmt: skip
    assert capture_of_icmp(seen, ip=4) == {"sent": 3, "received": 2, "lost": 1, "longest_gap_ms": 7.0}
    assert capture_of_icmp(seen, ip=6) == {"sent": 1, "received": 1, "lost": 0}


def irtt(**changes: Any) -> dict[str, Any]:
    def trip(wall: int, lost: str = "false") -> dict[str, Any]:
        return {"lost": lost, "timestamps": {"client": {"receive": {"wall": wall}}}}

    stats = {"packets_sent": 4, "packets_received": 3, "duplicates": 0, "late_packets": 0, "server_packets_received": 3,
             "rtt": {"median": 2 * MS, "max": 3 * MS}}  # fmt: skip
    trips = [trip(10 * MS), trip(20 * MS), trip(0, "true_down"), trip(55 * MS)]
    return {"version": {"irtt": "0.9.0"}, "stats": stats, "round_trips": trips} | changes


def test_a_report_of_irtt(tmp_path: Path) -> None:
    path = tmp_path / "1.irtt.json"
    path.write_text(json.dumps(irtt()))
    report = read_irtt(path)
    assert report.program == "irtt 0.9.0"
    assert (report.figures["sent"], report.figures["received"], report.figures["lost"]) == (4, 3, 1)
    assert (report.figures["longest_gap_ms"], report.figures["rtt_max_ms"]) == (35.0, 3.0)


def test_irtts_packets_in_a_capture_without_its_handshake() -> None:
    def packet(size: int, *, to_server: bool) -> Packet:
        ports = {"dport": 7009, "sport": 4000} if to_server else {"dport": 4000, "sport": 7009}
        return Ether() / IP() / UDP(**ports) / bytes(size)

    seen = columns(
        (1, INBOUND, packet(48, to_server=True)), (2, OUTBOUND, packet(48, to_server=False)), (3, INBOUND, packet(100, to_server=True)),
        (4, OUTBOUND, packet(100, to_server=False)), (5, INBOUND, packet(100, to_server=True)),
    )  # fmt: skip
    assert capture_of_irtt(seen, port=7009, size=100) == {"sent": 2, "received": 1, "lost": 1}


def iperf3_report(**changes: Any) -> dict[str, Any]:
    start = {
        "connected": [{"local_host": "10.77.0.1", "local_port": 4000, "remote_host": "10.77.0.2", "remote_port": 7001}],
        "version": "iperf 3.12", "system_info": "", "timestamp": {"time": "", "timesecs": 0},
        "test_start": {"protocol": "TCP", "num_streams": 1, "blksize": 4096, "omit": 0, "duration": 86000},
    }  # fmt: skip
    load = dict.fromkeys(("host_total", "host_user", "host_system", "remote_total", "remote_user", "remote_system"), 0.0)
    end = {
        "cpu_utilization_percent": load, "sum_sent": {"bytes": 409_600, "bits_per_second": 1.0, "retransmits": 3},
        "sum_received": {"bytes": 400_000, "bits_per_second": 1.0},
    }  # fmt: skip
    return {"start": start, "intervals": [], "end": end, "error": "interrupt - the client has terminated"} | changes


def test_a_report_of_iperf3_that_was_interrupted_has_figures(tmp_path: Path) -> None:
    path = tmp_path / "1.iperf3.json"
    path.write_text(json.dumps(iperf3_report()))
    report = read_iperf3(path)
    assert report.program == "iperf 3.12"
    assert report.figures == {"bytes": 409_600, "received_bytes": 400_000, "retransmitted_segments": 3}


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_iperf3, "", "iperf3 left no report"),
        (read_iperf3, "{", "no report of iperf3"),
        (read_iperf3, "[]", "no report of iperf3"),
        (read_iperf3, json.dumps(iperf3_report(error="unable to connect to server")), "iperf3 ended with: unable to connect"),
        (read_iperf3, json.dumps(iperf3_report(end={})), "a report of iperf3 without 'cpu_utilization_percent'"),
        (read_irtt, "", "irtt left no report"),
        (read_irtt, json.dumps({"stats": {}}), "a report of irtt without 'packets_sent'"),
        (read_irtt, json.dumps(irtt(round_trips=[{"lost": "false"}])), "a report of irtt without 'timestamps'"),
    ],
)  # fmt: skip
def test_a_damaged_report_is_refused(read: Any, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read(path)


def test_iperf3_without_any_connection_in_the_capture() -> None:
    assert capture_of_iperf3(find_connections(columns((1, INBOUND, Ether() / ARP()))), server="10.77.0.2:7001", mss=1448) == {}


def test_differences_are_told_beyond_what_is_allowed() -> None:
    says, capture = {"sent": 10, "lost": 3, "rtt_max_ms": 5.0}, {"sent": 11, "lost": 1}
    assert differences(says, capture, allowed={"sent": 1, "lost": 1}) == ("lost: it says 3, the capture 1",)
    assert differences(says, {"sent": 10, "lost": 3}, allowed={}) == ()
