"""Decoding: scapy builds the frames, the columns must say the same; damage is counted, never fatal."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from harness.analysis import columns as c
from harness.analysis.columns import Columns, decode, read_capture
from harness.analysis.pcapng import INBOUND, OUTBOUND, PacketBatch, PcapngWriter
from harness.analysis.synthetic import frames_batch, probe_batch, probe_frame

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

PROBE = probe_frame(stream=5, nonce=6, seq=7, probe=c.ECHO_REQUEST)[42:]
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def decoded(*frames: bytes | Packet) -> Columns:
    return decode(frames_batch([bytes(frame) for frame in frames], time_ns=1, direction=1))


def truncated(frame: bytes, length: int) -> Columns:
    """The frame as a capture that kept only its first bytes."""
    whole = frames_batch([frame], time_ns=1, direction=1)
    return decode(
        PacketBatch(
            data=frames_batch([frame[:length]], time_ns=1, direction=1).data,
            offset=whole.offset,
            captured_bytes=np.array([length], dtype=np.uint32),
            original_bytes=whole.original_bytes,
            time_ns=whole.time_ns,
            flags=whole.flags,
            interface=whole.interface,
        )
    )


@pytest.mark.parametrize(
    "network",
    [
        IP(src="10.0.0.1", dst="10.0.0.2"),
        IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01\x01\x01\x00"),
        IPv6(src="fd00::1", dst="fd00::2"),
        IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop(),
        IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt(),
        IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(id=1),
    ],
)
@pytest.mark.parametrize("tags", [[], [Dot1Q(vlan=42)], [Dot1AD(vlan=7), Dot1Q(vlan=42)]])
def test_a_probe_is_found_behind_any_headers(network: Packet, tags: list[Packet]) -> None:
    frame = ETHER
    for layer in tags:
        frame = frame / layer
    frame = frame / network / UDP(sport=1000, dport=2000) / Raw(PROBE)
    found = decoded(frame)
    assert found.status[0] == c.OK
    assert found.vlan[0] == (tags[0].vlan if tags else c.NO_VLAN)
    assert (found.source_mac[0], found.destination_mac[0]) == (0x020000000001, 0x020000000002)
    assert found.protocol[0] == c.UDP
    assert (found.source_port[0], found.destination_port[0]) == (1000, 2000)
    assert found.payload_bytes[0] == len(PROBE)
    assert (found.probe[0], found.probe_stream[0], found.probe_nonce[0], found.probe_seq[0]) == (
        c.ECHO_REQUEST,
        5,
        6,
        7,
    )
    if found.ip_version[0] == 4:
        assert (found.source_lo[0], found.destination_lo[0]) == (0x0A000001, 0x0A000002)
    else:
        assert (found.source_hi[0], found.source_lo[0]) == (0xFD00 << 48, 1)
        assert (found.destination_hi[0], found.destination_lo[0]) == (0xFD00 << 48, 2)


@unhurried
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 255),
    st.integers(0, 1400),
)
def test_tcp_fields(seq: int, ack: int, window: int, flags: int, payload: int) -> None:
    segment = TCP(sport=5, dport=6, seq=seq, ack=ack, window=window, flags=flags) / Raw(bytes(payload))
    found = decoded(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / segment)
    assert (found.tcp_seq[0], found.tcp_ack[0], found.tcp_window[0]) == (seq, ack, window)
    assert (found.tcp_flags[0], found.payload_bytes[0]) == (flags, payload)


@pytest.mark.parametrize(
    ("options", "sacks", "dsack"),
    [
        ([], 0, 0),
        ([("NOP", None), ("NOP", None), ("Timestamp", (1, 2))], 0, 0),
        ([("NOP", None), ("NOP", None), ("SAck", (2000, 3000))], 1, 0),
        (
            [("NOP", None), ("NOP", None), ("Timestamp", (1, 2)), ("NOP", None), ("NOP", None), ("SAck", (2000, 3000))],
            1,
            0,
        ),
        ([("SAck", (500, 1000))], 1, 1),
        ([("SAck", (2000, 2100, 2000, 3000))], 2, 1),
        ([("SAck", (2000, 3000, 4000, 5000, 6000, 7000))], 3, 0),
    ],
)
def test_sack_options(options: list[tuple[str, object]], sacks: int, dsack: int) -> None:
    found = decoded(ETHER / IP() / TCP(ack=1000, flags="A", options=options))
    assert (found.tcp_sacks[0], found.tcp_dsack[0]) == (sacks, dsack)
    assert found.status[0] == c.OK


def test_a_super_frame_and_one_without_a_length() -> None:
    big = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A") / Raw(bytes(40_000)))
    no_length = big[:16] + b"\0\0" + big[18:]
    found = decoded(big, no_length)
    assert found.payload_bytes.tolist() == [40_000, 40_000]
    assert found.frame_bytes.tolist() == [40_054, 40_054]
    assert found.status.tolist() == [c.OK, c.OK]


def test_fragments() -> None:
    datagram = UDP(sport=1, dport=2, len=3000) / Raw(PROBE + bytes(1000))
    v6 = IPv6(src="fd00::1", dst="fd00::2")
    found = decoded(
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / datagram,
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=100, proto=17) / Raw(bytes(1000)),
        ETHER / v6 / IPv6ExtHdrFragment(m=1) / datagram,
        ETHER / v6 / IPv6ExtHdrFragment(offset=100, nh=17) / Raw(bytes(1000)),
    )
    assert found.fragment.tolist() == [c.FIRST_FRAGMENT, c.LATER_FRAGMENT] * 2
    assert found.probe.tolist() == [c.ECHO_REQUEST, c.NO_PROBE] * 2
    assert found.status.tolist() == [c.OK] * 4
    assert found.destination_port.tolist() == [2, 0, 2, 0]


def test_arp_and_icmp() -> None:
    found = decoded(
        ETHER / ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.1"),
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8) / Raw(bytes(40)),
        ETHER / IPv6(src="fd00::1", dst="ff02::1") / ICMPv6ND_NA(),
    )
    assert found.ethertype.tolist() == [c.ARP, c.IPV4, c.IPV6]
    assert (found.protocol[0], found.source_lo[0], found.destination_lo[0]) == (2, 0x0A000001, 0x0A000001)
    assert found.protocol[1:].tolist() == [c.ICMP, c.ICMPV6]
    assert found.source_port[1:].tolist() == [8, 136]


GOOD = [
    probe_frame(stream=1),
    bytes(ETHER / Dot1Q(vlan=1) / IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop() / UDP() / Raw(PROBE)),
    bytes(ETHER / IP() / TCP(options=[("NOP", None), ("NOP", None), ("SAck", (1, 2))]) / Raw(b"data")),
    bytes(ETHER / ARP()),
]


@pytest.mark.parametrize("frame", GOOD)
def test_a_frame_cut_by_the_capture_is_marked(frame: bytes) -> None:
    for length in range(len(frame)):
        found = truncated(frame, length)
        assert found.status[0] in (c.OK, c.TRUNCATED)
        if length < 40:
            assert found.status[0] == c.TRUNCATED
        assert found.frame_bytes[0] == len(frame)
        if found.probe[0] == c.PROBE:
            assert length >= 14 + 20 + 8 + 24


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\x02" * 10, "shorter than an Ethernet header"),
        (probe_frame(stream=1)[:14] + b"\x35" + probe_frame(stream=1)[15:], "IP version 3"),
        (probe_frame(stream=1)[:14] + b"\x44" + probe_frame(stream=1)[15:], "header of 16 bytes"),
        (probe_frame(stream=1)[:60], "ends before its datagram"),
        (probe_frame(stream=1)[:38] + struct.pack("!H", 4) + probe_frame(stream=1)[40:], "UDP length 4"),
        (probe_frame(stream=1)[:38] + struct.pack("!H", 4000) + probe_frame(stream=1)[40:], "UDP length 4000"),
        (bytes(ETHER / IP() / TCP(dataofs=2)), "TCP header of 8 bytes"),
        (bytes(ETHER / IP() / TCP(dataofs=15)), "TCP header beyond the datagram"),
        (bytes(ETHER / IPv6(plen=5000) / UDP()), "IPv6 length beyond the frame"),
    ],
)
def test_malformed_frames_are_marked(frame: bytes, why: str) -> None:
    found = decoded(frame, probe_frame(stream=1, seq=9))
    assert found.status.tolist() == [c.MALFORMED, c.OK], why
    assert found.probe.tolist() == [c.NO_PROBE, c.PROBE]
    assert found.probe_seq[1] == 9


@unhurried
@given(st.lists(st.binary(max_size=120) | st.sampled_from(GOOD), max_size=20), st.randoms(use_true_random=False))
def test_no_bytes_are_fatal(frames: list[bytes], random) -> None:  # type: ignore[no-untyped-def]
    damaged = []
    for frame in frames:
        changed = bytearray(frame)
        for _ in range(min(len(changed), 3)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        damaged.append(bytes(changed))
    assert len(decoded(*damaged)) == len(damaged)


@pytest.mark.parametrize("change", [b"XXXX", b"SWOV\0\2", b"SWOV\0\1\0\3"])
def test_other_udp_is_no_probe(change: bytes) -> None:
    frame = probe_frame(stream=1)
    found = decoded(frame[:42] + change + frame[42 + len(change) :])
    assert (found.probe[0], found.status[0], found.payload_bytes[0]) == (c.NO_PROBE, c.OK, 58)


def test_many_packets_and_selection() -> None:
    found = decode(probe_batch(range(1000), time_ns=np.arange(1000), direction=2, stream=3))
    assert (found.probe_seq == np.arange(1000)).all()
    part = found.select(found.probe_seq >= 990)
    assert len(part) == 10
    assert c.concatenate([part, part]).probe_seq.tolist() == [*range(990, 1000)] * 2
    assert len(c.concatenate([])) == 0
    bytes_each = sum(getattr(found, field).itemsize for field in Columns.__dataclass_fields__)
    assert bytes_each < 130


@pytest.mark.parametrize(
    ("frames", "backward_ms"),
    [
        # what came in was stamped at 3 ms, and what went out at 11 ms was in the file before the processor got to it
        ([(0, INBOUND), (11, OUTBOUND), (3, INBOUND), (14, INBOUND), (31, OUTBOUND)], 0),
        ([(0, INBOUND), (11, OUTBOUND), (15, INBOUND), (8, INBOUND), (9, OUTBOUND)], 7),
        ([(5, OUTBOUND)], 0),
        ([], 0),
    ],
    ids=["between directions", "a clock that was set", "one frame", "no frame"],
)
def test_a_clock_that_was_set_is_seen_within_a_direction(tmp_path, frames, backward_ms):
    path = tmp_path / "peer.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface("peer")
        for time_ms, direction in frames:
            writer.write(probe_batch([time_ms], time_ns=1_700_000_000_000_000_000 + time_ms * 1_000_000, direction=direction))
    assert read_capture(path).backward_ns == backward_ms * 1_000_000
