"""Record files: read back what was written, refuse what is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.records import RecordKind, encode_records, make_records, parse_records, read_records
from harness.errors import UsageError

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

SENT = make_records(RecordKind.SENT, seq=[1, 2, 3], due_ns=[10, 20, 30], sent_ns=[11, 21, 31], errno=[0, 105, 0])
FILE = encode_records(SENT, kind=RecordKind.SENT, stream=7, nonce=9, overflowed=2, start_realtime_ns=5)


@unhurried
@given(
    st.sampled_from(RecordKind),
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=20),
)
def test_round_trip(kind: RecordKind, packets: list[tuple[int, int]]) -> None:
    number, time = ("app_bytes", "time_ns") if kind is RecordKind.TCP else ("seq", "sent_ns")
    records = make_records(kind, **{number: [seq for seq, _ in packets], time: [at for _, at in packets]})
    file = parse_records(encode_records(records, kind=kind, stream=1, nonce=2), name="x", kind=kind)
    assert file.kind is kind
    assert file.records.tolist() == records.tolist()


def test_fields(tmp_path: Path) -> None:
    path = tmp_path / "7.sent.rec"
    path.write_bytes(FILE)
    file = read_records(path, kind=RecordKind.SENT)
    assert (file.stream, file.nonce, file.overflowed, file.start_realtime_ns) == (7, 9, 2, 5)
    assert file.records["errno"].tolist() == [0, 105, 0]


def test_the_layout_is_the_generators() -> None:
    """Byte by byte, as the C program writes it."""
    head = struct.pack("<8sIIIIQQqqq", b"SWREC\0\0\1", 2, 3, 32, 4, 1, 0, 100, 200, 0)
    file = parse_records(head + struct.pack("<QqqII", 5, 6, 7, 8, 9), name="x")
    assert (file.kind, file.stream, file.nonce) == (RecordKind.RECEIVED, 3, 4)
    assert (file.start_realtime_ns, file.start_monotonic_ns) == (100, 200)
    (record,) = file.records.tolist()
    assert record == (5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a traffic record file"),
        (b"\n\r\r\n" + bytes(80), "not a traffic record file"),
        (FILE[:30], "truncated: 30 bytes"),
        (FILE[:-1], r"truncated: 95 bytes of records where the header announces 3 x 32"),
        (FILE + b"x", "too long"),
        (FILE[:7] + b"\x02" + FILE[8:], "version 2, this program reads 1"),
        (FILE[:8] + struct.pack("<I", 9) + FILE[12:], "unknown kind of record 9"),
        (FILE[:16] + struct.pack("<I", 40) + FILE[20:], "records of 40 bytes"),
        (FILE[:8] + struct.pack("<I", 2) + FILE[12:], "holds received records, expected sent"),
    ],
)
def test_damaged_files(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_records(content, name="file.rec", kind=RecordKind.SENT)
    assert "file.rec" in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / "nothing.rec")
