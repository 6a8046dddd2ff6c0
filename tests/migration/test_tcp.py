"""TCP through switchovers, and the clients that others wrote. Counts and order only: times are for campaigns."""

from __future__ import annotations

import struct
from typing import ClassVar

import pytest
from scapy.layers import inet
from scapy.layers.l2 import Ether

from harness.analysis.columns import RST, TCP, read_capture
from harness.errors import UsageError
from harness.migrate.mechanisms import MECHANISMS, TapHandover
from harness.model.addresses import MOBILE, PEER

pytestmark = pytest.mark.switchover(requires=["ring-status"])


def exactly_once(stream) -> None:
    """Nothing lost, doubled or unexplained."""
    ledger = stream.ledger
    assert (ledger.lost, ledger.duplicated, ledger.ledger.unexplained) == (0, 0, 0), stream.result.notes


def whole(stream) -> None:
    """The connection went on and ended in order, and every byte of it arrived."""
    connection = stream.connection
    assert connection.survived, (connection, stream.result.notes)
    assert connection.resets == ()
    if connection.kind == "bulk":
        assert connection.bytes == connection.confirmed_bytes > 0
    if connection.kind == "request":
        assert connection.answered == connection.requests > 0


def test_connections_live_through_a_switchover_that_loses_frames(guest_pair, udp, tcp):
    with (
        udp(rate_pps=1000) as probes, tcp(rate_pps=200) as down, tcp(rate_pps=200, direction="from-guest") as up,
        tcp(idle=True) as idle, tcp(mode="request", direction="from-guest", ip=6) as requests,
    ):
        guest_pair.succeed("sleep 0.5")
        guest_pair.migrate(hold_ms=150)
        guest_pair.succeed("sleep 1")
    for stream in (down, up, idle, requests):
        whole(stream)
    assert probes.ledger.lost > 0
    assert probes.ledger.ledger.unexplained == 0
    assert down.connection.retransmitted_segments > 0, "the frames of the switchover were lost, and had to be sent again"
    assert idle.connection.bytes == 1
    assert idle.connection.longest_stall_ms.value is None
    assert probes.result.tcp_counters.keys() == {"mobile", "peer"}


def test_tap_handover_with_bulk_data_as_fast_as_it_goes(guest_pair, udp, tcp):
    with udp(rate_pps=1000) as probes, udp(rate_pps=500, direction="from-guest") as back, tcp() as bulk:
        guest_pair.succeed("sleep 0.5")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.5")
    exactly_once(probes)
    exactly_once(back)
    whole(bulk)
    passed = read_capture(guest_pair.run_directory / "capture" / "passed.pcapng").columns
    assert (passed.protocol == TCP).any(), "TCP was among what went over"


class WithSuperFrames(TapHandover):
    """One super-frame reaches the running guest, and one arrives when it has stopped. No connection of the guest's: it resets both."""

    RUNNING: ClassVar[int] = 41001
    STOPPED: ClassVar[int] = 41002
    # TCPv4 in parts of 1000 bytes behind a header of 54, the checksum still to be made.
    HEADER: ClassVar[bytes] = struct.pack("<BBHHHHH", 1, 1, 54, 1000, 34, 16, 0)
    FRAME_BYTES: ClassVar[int] = 10_054

    def send(self, context, *, port):
        segment = Ether(src=PEER.mac, dst=MOBILE.mac) / inet.IP(src=PEER.ip4, dst=MOBILE.ip4) / inet.TCP(sport=port, dport=9, flags="A")
        frame = bytes(segment / bytes(self.FRAME_BYTES - 54))
        context.injector(context.source).send(self.HEADER, frame, deadline_ns=2**62)

    async def prepare(self, context):
        self.send(context, port=self.RUNNING)
        await super().prepare(context)

    async def stopped(self, context, *, stop_ns):
        await super().stopped(context, stop_ns=stop_ns)
        self.send(context, port=self.STOPPED)


def test_super_frames_are_accounted_for_and_go_over_whole(guest_pair, udp, monkeypatch):
    """They take several receive buffers, so that the lengths in the ring have to tell what the guest got."""
    monkeypatch.setitem(MECHANISMS, "with-super-frames", WithSuperFrames)
    # So few that the ring's last lengths reach back to the first super-frame.
    with udp(rate_pps=20) as probes:
        guest_pair.migrate(mechanism="with-super-frames", hold_ms=150)
        guest_pair.succeed("sleep 0.3")
    exactly_once(probes)
    whole_one = [WithSuperFrames.FRAME_BYTES]
    seen = {name: guest_pair.run_directory / "capture" / f"{name}.pcapng" for name in ("source", "destination", "peer", "passed")}
    columns = {name: read_capture(path).columns for name, path in seen.items()}
    for name, running, stopped in (("source", whole_one, whole_one), ("passed", [], whole_one), ("destination", [], whole_one)):
        for port, lengths in ((WithSuperFrames.RUNNING, running), (WithSuperFrames.STOPPED, stopped)):
            mine = (columns[name].protocol == TCP) & (columns[name].source_port == port)
            assert columns[name].frame_bytes[mine].tolist() == lengths, (name, port)
    peer = columns["peer"]
    resets = (peer.protocol == TCP) & (peer.tcp_flags & RST != 0)
    assert sorted(peer.destination_port[resets].tolist()) == [WithSuperFrames.RUNNING, WithSuperFrames.STOPPED], "the guest got both"


def test_requests_both_ways_under_tap_handover(guest_pair, udp, tcp):
    with (
        udp(rate_pps=1000) as probes, tcp(mode="request", rate_pps=100) as asked,
        tcp(mode="request", rate_pps=100, direction="from-guest", size=5000) as asking, tcp(idle=True, direction="from-guest") as idle,
    ):
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.5")
    exactly_once(probes)
    for stream in (asked, asking, idle):
        whole(stream)
    assert asked.connection.latency_ms.max >= asked.connection.latency_ms.p50 > 0
    assert asking.connection.latency_ms is None, "the moving guest's clock can't tell"


def test_ping_beside_our_own_probes(guest_pair, udp, ping):
    with udp(rate_pps=1000) as probes, ping(rate_pps=50) as log:
        guest_pair.succeed("sleep 0.5")
        guest_pair.migrate(mode="stop-cont", outage_ms=200)
        guest_pair.succeed("sleep 0.5")
    exactly_once(probes)
    figures, capture = log.witness.figures, log.witness.capture
    assert log.witness.error == ""
    assert figures["sent"] == pytest.approx(capture["sent"], abs=1)
    assert figures["received"] == pytest.approx(capture["received"], abs=1)
    assert {"estimate.lost-times-interval_ms", "estimate.switchover_ms"} <= figures.keys()
    with pytest.raises(UsageError, match="is not a TCP connection"):
        _ = log.connection


@pytest.mark.switchover(requires=["ring-status"], static_neighbours=False)
def test_address_resolution_and_multicast_across_the_switchover(guest_pair, udp):
    with udp(rate_pps=500) as unicast, udp(rate_pps=300, cast="multicast") as group, udp(rate_pps=300, direction="from-guest", ip=6) as back:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("ip neigh flush dev eth0; sleep 0.5")
    exactly_once(unicast)
    exactly_once(group)
    exactly_once(back)
