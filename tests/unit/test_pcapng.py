"""pcapng: what is written is read back; what is damaged or foreign is said."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from harness.analysis.pcapng import OUTBOUND, Interface, PcapngReader, PcapngWriter
from harness.analysis.synthetic import frames_batch, probe_batch
from harness.errors import UsageError

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

Packet = tuple[bytes, int, int]
"""Frame, time, direction."""


def encode(packets: list[Packet]) -> bytes:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    writer.add_interface("tap0", description="a TAP")
    for frame, time_ns, direction in packets:
        writer.write(frames_batch([frame], time_ns=time_ns, direction=direction))
    writer.write_counters(0, received=len(packets) + 2, dropped=2, start_ns=1, end_ns=2)
    return file.getvalue()


def packets_in(path: Path, *, batch_bytes: int = 1 << 20) -> list[Packet]:
    found = []
    with PcapngReader(path, batch_bytes=batch_bytes) as reader:
        for batch in reader:
            for at in range(len(batch)):
                start = int(batch.offset[at])
                frame = batch.data[start : start + int(batch.captured_bytes[at])].tobytes()
                found.append((frame, int(batch.time_ns[at]), int(batch.flags[at])))
    return found


packet_lists = st.lists(
    st.tuples(st.binary(max_size=200), st.integers(0, 2**62), st.integers(0, 2)), min_size=1, max_size=30
)


@unhurried
@given(packets=packet_lists, batch_bytes=st.integers(16, 4096))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, packets: list[Packet], batch_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("pcapng") / "file.pcapng"
    path.write_bytes(encode(packets))
    assert packets_in(path, batch_bytes=batch_bytes) == packets


@unhurried
@given(packets=packet_lists)
def test_one_batch_is_the_same_as_many(packets: list[Packet]) -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    writer.add_interface("tap0", description="a TAP")
    frames, times, directions = zip(*packets, strict=True)
    batch = frames_batch(frames, time_ns=times, direction=0)
    batch.flags[:] = directions
    writer.write(batch)
    assert file.getvalue() == encode(packets)[: len(file.getvalue())]


def test_interfaces_and_counters(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    path.write_bytes(encode([(b"x" * 20, 5, OUTBOUND)]))
    with PcapngReader(path) as reader:
        assert sum(len(batch) for batch in reader) == 1
        assert reader.interfaces == [Interface(name="tap0", exponent=9)]
        assert [(each.interface, each.received, each.dropped) for each in reader.counters] == [(0, 3, 2)]


def test_another_program_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    frames = [bytes([number]) * (60 + number) for number in range(10)]
    times = [1_700_000_000_123_456_789 + number for number in range(10)]
    path.write_bytes(encode(list(zip(frames, times, [1, 2] * 5, strict=True))))
    with RawPcapNgReader(str(path)) as reader:
        found = [(frame, (meta.tshigh << 32 | meta.tslow), meta.direction) for frame, meta in reader]
    assert found == list(zip(frames, times, [1, 2] * 5, strict=True))


def block(kind: int, body: bytes, *, order: str = "<") -> bytes:
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def section(*, order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order=order)


def interface(*options: tuple[int, bytes], order: str = "<", link: int = 1) -> bytes:
    body = struct.pack(order + "HHI", link, 0, 0)
    for code, value in options:
        body += struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(1, body + (bytes(4) if options else b""), order=order)


def packet(ticks: int, data: bytes, *options: tuple[int, bytes], order: str = "<", number: int = 0) -> bytes:
    body = struct.pack(order + "5I", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    body += data + bytes(-len(data) % 4)
    for code, value in options:
        body += struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(6, body, order=order)


@pytest.mark.parametrize(
    ("option", "ticks", "time_ns"),
    [
        ((9, b"\x06"), 1_700_000_000_000_001, 1_700_000_000_000_001_000),
        ((9, b"\x03"), 1_700_000_000_001, 1_700_000_000_001_000_000),
        ((9, b"\x0c"), 5_000_000_001_999, 5_000_000_001),
        ((9, b"\x94"), (7 << 20) | (1 << 19), 7_500_000_000),
        ((9, b"\xa8"), (3 << 40) | (1 << 38), 3_250_000_000),
        ((14, struct.pack("<q", 100)), 1_000_000, 101_000_000_000),
    ],
)
def test_any_time_unit(tmp_path: Path, option: tuple[int, bytes], ticks: int, time_ns: int) -> None:
    path = tmp_path / "file.pcapng"
    path.write_bytes(section() + interface(option) + packet(ticks, bytes(60)))
    assert packets_in(path)[0][1] == time_ns


def test_big_endian_several_sections_unknown_blocks_and_options(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    comment = (1, b"a comment")
    path.write_bytes(
        section(order=">")
        + interface((9, b"\x09"), order=">")
        + block(0x0BAD, b"1234", order=">")
        + packet(7, b"first", comment, (2, struct.pack(">I", 2)), order=">")
        + section()
        + interface((9, b"\x09"))
        + interface((9, b"\x06"))
        + packet(8, b"second", (2, struct.pack("<I", 1)), comment, number=1)
        + packet(9, b"third")
    )
    assert packets_in(path) == [(b"first", 7, 2), (b"second", 8000, 1), (b"third", 9, 0)]


def test_runs_of_equal_and_of_mixed_sizes(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    sizes = [60] * 500 + [60, 100, 64] * 200 + [1400] * 300 + [61] * 5
    path.write_bytes(encode([(bytes(size), number, 1) for number, size in enumerate(sizes)]))
    found = packets_in(path, batch_bytes=50_000)
    assert [len(frame) for frame, _, _ in found] == sizes
    assert [time_ns for _, time_ns, _ in found] == list(range(len(sizes)))


def test_a_file_cut_anywhere_is_truncated_or_shorter(tmp_path: Path) -> None:
    whole = encode([(bytes(60), 1, 1), (bytes(61), 2, 1)])
    path = tmp_path / "cut.pcapng"
    blocks, position = set(), 0
    while position < len(whole):
        position += struct.unpack_from("<I", whole, position + 4)[0]
        blocks.add(position)
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        if length in blocks:
            assert len(packets_in(path)) < 3
        else:
            with pytest.raises(UsageError, match=r"cut\.pcapng: truncated"):
                packets_in(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pcapng file"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "not a pcapng file"),
        (section() + interface() + block(3, bytes(8)), "without a time"),
        (section() + interface(link=113), "link type 113 at offset 28"),
        (section() + packet(1, bytes(60)), "contradicts itself at offset 28"),
        (section() + struct.pack("<III", 1, 10, 10), "a block of 10 bytes at offset 28"),
        (section() + struct.pack("<IIII", 1, 16, 0, 20), "two lengths differ at offset 28"),
        (block(0x0A0D0D0A, bytes(16)), "unknown byte order at offset 0"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "foreign.pcapng"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        packets_in(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        PcapngReader(tmp_path / "nothing")


def test_a_packet_longer_than_its_block(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    good = packet(1, bytes(60))
    path.write_bytes(section() + interface() + good[:20] + struct.pack("<I", 4000) + good[24:])
    with pytest.raises(UsageError, match="contradicts itself at offset 48"):
        packets_in(path)


def test_a_large_batch_is_encoded_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface("x")
        writer.write(probe_batch(range(20_000), time_ns=np.arange(20_000), direction=1))
    assert [time_ns for _, time_ns, _ in packets_in(path, batch_bytes=100_000)] == list(range(20_000))
