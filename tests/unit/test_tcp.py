"""TCP from captures: hand-made connections of which every retransmission is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from harness.analysis.columns import Columns, decode
from harness.analysis.sightings import StopWindow
from harness.analysis.synthetic import frames_batch
from harness.analysis.tcp import TcpConnection, TcpFlow, find_connections

MS = 1_000_000
# Given addresses: scapy would look them up on the network.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
T0 = 1_700_000_000_000_000_000
ISN, PEER_ISN = 0xFFFFF000, 5000  # the client's numbers wrap early


@dataclass
class Wire:
    """Frames with times in ms; sequence numbers count from the first byte of data."""

    frames: list[bytes] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    version: int = 4

    def add(self, at_ms: float, segment: Packet, *, forward: bool, payload: int = 0) -> None:
        ends = ("10.0.0.1", "10.0.0.2") if self.version == 4 else ("fd00::1", "fd00::2")
        source, destination = ends if forward else ends[::-1]
        network = (IP if self.version == 4 else IPv6)(src=source, dst=destination)
        segment.sport, segment.dport = (1000, 80) if forward else (80, 1000)
        self.frames.append(bytes(ETHER / network / segment / Raw(bytes(payload))))
        self.times.append(T0 + round(at_ms * MS))

    def handshake(self) -> None:
        self.add(0, TCP(seq=ISN - 1, flags="S"), forward=True)
        self.add(0.1, TCP(seq=PEER_ISN - 1, ack=ISN, flags="SA"), forward=False)
        self.add(0.2, TCP(seq=ISN, ack=PEER_ISN, flags="A"), forward=True)

    def data(self, at_ms: float, seq: int, length: int = 1000, flags: str = "A") -> None:
        self.add(at_ms, TCP(seq=(ISN + seq) % 2**32, ack=PEER_ISN, flags=flags), forward=True, payload=length)

    def ack(self, at_ms: float, ack: int, *sacks: int, flags: str = "A") -> None:
        edges = tuple((ISN + edge) % 2**32 for edge in sacks)
        options = [("NOP", None), ("NOP", None), ("SAck", edges)] if edges else []
        segment = TCP(seq=PEER_ISN, ack=(ISN + ack) % 2**32, flags=flags, options=options)
        self.add(at_ms, segment, forward=False)

    def columns(self) -> Columns:
        return decode(frames_batch(self.frames, time_ns=self.times, direction=1))

    def connection(self) -> TcpConnection:
        (found,) = find_connections(self.columns())
        return found

    def flow(self) -> TcpFlow:
        return self.connection().flows[0]


@pytest.fixture
def wire() -> Wire:
    made = Wire()
    made.handshake()
    for number in range(10):
        made.data(10 + number, number * 1000)
        made.ack(10.5 + number, (number + 1) * 1000)
    return made


def kinds(flow: TcpFlow) -> tuple[int, int, int, int, int]:
    return (
        flow.retransmitted_segments,
        flow.fast_retransmits,
        flow.tail_loss_probes,
        flow.rto_events,
        flow.spurious_retransmits,
    )


@pytest.mark.parametrize("version", [4, 6])
def test_an_undisturbed_connection(version: int) -> None:
    wire = Wire(version=version)
    wire.handshake()
    wire.data(1, 0)
    wire.ack(2, 1000)
    wire.data(3, 1000, flags="FA")
    wire.ack(4, 2001, flags="FA")
    connection = wire.connection()
    assert kinds(connection.flows[0]) == (0, 0, 0, 0, 0)
    assert connection.flows[0].payload_bytes == 2002
    assert connection.finished
    assert connection.resets == ()
    assert connection.name == {4: "10.0.0.1:1000 > 10.0.0.2:80", 6: "[fd00::1]:1000 > [fd00::2]:80"}[version]
    assert connection.flows[0].longest_stall_ns == MS


def test_sack_recovery(wire: Wire) -> None:
    for number in range(5):
        wire.data(30 + number / 10, 10_000 + number * 1000)
    wire.ack(31, 10_000, 11_000, 12_000)
    wire.ack(31.1, 10_000, 11_000, 13_000)
    wire.data(31.2, 10_000)
    wire.data(31.3, 13_000)
    wire.ack(32, 15_000)
    flow = wire.flow()
    assert kinds(flow) == (2, 2, 0, 0, 0)
    assert flow.sack_recoveries == 1


def test_a_tail_loss_probe_and_timeouts(wire: Wire) -> None:
    wire.data(30, 10_000)
    wire.data(240, 10_000)
    wire.data(650, 10_000)
    wire.data(1470, 10_000)
    wire.ack(1471, 11_000)
    flow = wire.flow()
    assert kinds(flow) == (3, 0, 1, 2, 0)
    assert flow.longest_stall_ns == 1441 * MS


def test_a_timeout_and_what_follows_it(wire: Wire) -> None:
    for number in range(4):
        wire.data(30 + number / 10, 10_000 + number * 1000)
    wire.data(250, 10_000)
    wire.ack(251, 11_000)
    wire.data(251.1, 11_000)
    wire.data(251.2, 12_000)
    wire.ack(252, 13_000)
    wire.data(252.1, 13_000)
    wire.ack(253, 14_000)
    assert kinds(wire.flow()) == (4, 0, 0, 1, 0)


def test_spurious_ones_and_duplicate_sacks(wire: Wire) -> None:
    wire.data(30, 9000)
    wire.ack(31, 10_000, 9000, 10_000)
    flow = wire.flow()
    # the newest segment again: a tail loss probe of a sender that the acknowledgement never reached
    assert kinds(flow) == (1, 0, 1, 0, 1)
    assert flow.duplicate_sacks == 1


def test_lost_before_the_capture_point(wire: Wire) -> None:
    wire.data(30, 11_000)
    wire.data(50, 10_000)  # fills a hole late: sent again
    wire.data(60, 13_000)
    wire.data(61, 12_000)  # fills a hole at once: overtaken
    flow = wire.flow()
    assert flow.retransmitted_segments == 1
    assert flow.overtaken_segments == 1


def test_an_empty_segment_tells_of_lost_data(wire: Wire) -> None:
    wire.data(30, 11_000, length=0)
    wire.data(38, 10_000)
    assert wire.flow().retransmitted_segments == 1


def test_keep_alives_are_no_retransmissions(wire: Wire) -> None:
    wire.data(5000, 9999, length=1)
    wire.ack(5001, 10_000)
    wire.data(10_000, 9999, length=0)
    wire.ack(10_001, 10_000)
    flow = wire.flow()
    assert flow.retransmitted_segments == 0
    assert flow.keep_alives == 2


def test_resets_name_their_sender(wire: Wire) -> None:
    wire.ack(40, 10_000, flags="R")
    connection = wire.connection()
    assert [(each.sender, each.time_ns) for each in connection.resets] == [("10.0.0.2:80", T0 + 40 * MS)]
    assert not connection.survived(StopWindow(stop_ns=T0 + 5 * MS, resume_ns=T0 + 12 * MS))


def test_the_answer_to_a_late_copy_after_the_close_is_no_reset(wire: Wire) -> None:
    wire.data(30, 10_000, 0, flags="FA")
    wire.ack(31, 10_001, flags="FA")
    late = TCP(seq=PEER_ISN + 1, flags="R")
    wire.add(32, late.copy(), forward=False)  # the close is not acknowledged yet: this one is
    wire.add(33, TCP(seq=(ISN + 10_001) % 2**32, ack=PEER_ISN + 1, flags="A"), forward=True)
    wire.add(34, late.copy(), forward=False)
    assert [each.time_ns for each in wire.connection().resets] == [T0 + 32 * MS]
    assert wire.connection().finished


def test_a_reused_pair_of_ports_is_another_connection(wire: Wire) -> None:
    wire.add(100, TCP(seq=77, flags="S"), forward=True)
    wire.add(101, TCP(seq=900, ack=78, flags="SA"), forward=False)
    assert len(find_connections(wire.columns())) == 2


def test_a_stall_and_the_recovery_from_it() -> None:
    """200 kB/s; nothing for 300 ms; half the rate for 500 ms; then the full rate again."""
    wire = Wire()
    wire.handshake()
    seq, at = 0, 10.0
    stop, resume = 2010.0, 2310.0
    while at < 5000:
        size = 500 if resume <= at < resume + 500 else 1000
        wire.data(at, seq, size)
        seq += size
        wire.ack(at + 0.2, seq)
        at = resume if at < stop <= at + 5 else at + 5
    connection = wire.connection()
    window = StopWindow(stop_ns=T0 + round(stop * MS), resume_ns=T0 + round(resume * MS))
    assert connection.survived(window)
    assert abs(connection.flows[0].longest_gap_ns - 300 * MS) <= 5 * MS
    recovery = connection.recovery_ns(window)
    assert recovery is not None
    # The first 250 ms at 90 % of the rate hold 50 ms at half of it.
    assert abs(recovery - 450 * MS) <= 10 * MS
    never = StopWindow(stop_ns=window.stop_ns, resume_ns=T0 + 4990 * MS)
    assert connection.recovery_ns(never) is None
    early = StopWindow(stop_ns=T0 + 20 * MS, resume_ns=T0 + 30 * MS)
    assert connection.recovery_ns(early) is None


def test_without_tcp_there_is_no_connection() -> None:
    assert find_connections(decode(frames_batch([b"\0" * 60], time_ns=[1], direction=1))) == ()


def test_a_capture_that_begins_in_the_middle() -> None:
    wire = Wire()
    wire.ack(1, 5000)
    wire.data(2, 5000)
    wire.data(3, 6000)
    wire.ack(4, 7000)
    connection = wire.connection()
    data = next(flow for flow in connection.flows if flow.payload_bytes)
    assert data.payload_bytes == 2000
    assert kinds(data) == (0, 0, 0, 0, 0)
    assert np.count_nonzero(connection.acknowledged[1][1] == 2000) == 1


def test_a_timeout_while_new_data_still_goes_out(wire: Wire) -> None:
    """The timer runs from the last acknowledgement, whatever is sent meanwhile."""
    for number in range(20):
        wire.data(30 + 10 * number, 10_000 + number * 1000)
    wire.data(235, 10_000)
    wire.data(240, 30_000)
    wire.ack(241, 11_000)
    assert kinds(wire.flow()) == (1, 0, 0, 1, 0)


def test_a_timeout_that_crosses_the_acknowledgement_is_spurious(wire: Wire) -> None:
    for number in range(3):
        wire.data(30 + number, 10_000 + number * 1000)
    wire.ack(250, 13_000)
    wire.data(250.5, 10_000)  # sent before the acknowledgement came, seen after it
    assert kinds(wire.flow()) == (1, 0, 0, 1, 1)


def test_what_was_sent_again_in_bytes_and_in_the_kernels_segments(wire: Wire) -> None:
    wire.data(30, 10_000, 1000)
    wire.data(30.1, 11_000, 1448 * 2 + 1)
    wire.ack(31, 10_000, 11_000, 12_000)
    wire.data(31.2, 10_000, 1000)
    wire.data(31.4, 11_000, 1448 * 2 + 1)
    flow = wire.flow()
    assert flow.retransmitted_bytes == 1000 + 1448 * 2 + 1
    assert flow.retransmitted_parts(mss=1448) == 4
    assert flow.retransmitted_segments == 2


@pytest.mark.parametrize("sender_stands_still", [False, True])
def test_a_stall_is_found_whichever_side_stands_still(sender_stands_still: bool) -> None:
    """Writes every 10 ms, acknowledged 0.5 ms later; nothing is for 200 ms."""
    wire = Wire()
    wire.handshake()
    for number in range(100):
        at = 10.0 * number + 10
        in_stall = 500 < at < 700
        if not (sender_stands_still and in_stall):
            wire.data(at, number * 1000)
        if not in_stall:
            wire.ack(at + 0.5, (number + 1) * 1000)
    stall_ns = wire.connection().longest_stall_ns(interval_ns=10 * MS)
    assert stall_ns == 190 * MS
    assert wire.connection().longest_stall_ns(flow=1) is None
