"""Record files of the traffic generator: what was sent, received or answered, packet by packet.

A file is little-endian: a header of 64 bytes, then records of 32 bytes (of a TCP connection: 128). Nothing of a damaged file is used:
`UsageError` names the file and what is wrong with it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError

RECORD_MAGIC = b"SWREC\0\0"
RECORD_VERSION = 1
_HEADER = struct.Struct("<7sBIIIIQQqq8s")

SENT = np.dtype([("seq", "<u8"), ("due_ns", "<i8"), ("sent_ns", "<i8"), ("errno", "<i4"), ("reserved", "<u4")])
RECEIVED = np.dtype(
    [("seq", "<u8"), ("sent_ns", "<i8"), ("received_ns", "<i8"), ("udp_bytes", "<u4"), ("flags", "<u4")]
)
TCP = np.dtype(
    [("time_ns", "<i8"), ("progress_ns", "<i8"), ("app_bytes", "<u8")]
    + [(name, "<u8") for name in ("bytes_acked", "bytes_received", "bytes_sent", "bytes_retrans")]
    + [(name, "<u4") for name in ("segs_out", "segs_in", "total_retrans", "dsack_dups", "reord_seen", "rcv_ooopack")]
    + [(name, "<u4") for name in ("rto_us", "rtt_us", "rttvar_us", "snd_cwnd", "unacked", "lost", "notsent_bytes", "snd_wnd")]
    + [(name, "u1") for name in ("event", "state", "ca_state", "retransmits", "backoff", "probes")]
    + [("reserved", "<u2"), ("last_ack_recv_ms", "<u4"), ("delivered", "<u4")]
)  # fmt: skip

Records = NDArray[np.void]
"""A structured array of `SENT`, `RECEIVED` or `TCP`."""


class RecordKind(IntEnum):
    SENT = 1
    RECEIVED = 2
    REPLIES = 3
    TCP = 4


_LAYOUTS = {RecordKind.SENT: SENT, RecordKind.RECEIVED: RECEIVED, RecordKind.REPLIES: RECEIVED, RecordKind.TCP: TCP}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile:
    """One file. Times are those of the clock where the program ran: a stopped guest's clock stands still."""

    kind: RecordKind
    stream: int
    nonce: int
    overflowed: int
    """Packets that no longer fitted into the generator's memory: with more than 0 the file is not complete."""
    start_realtime_ns: int
    start_monotonic_ns: int
    records: Records


def read_records(path: Path, *, kind: RecordKind | None = None) -> RecordFile:
    """Read a whole file; `kind` is what the caller expects it to be. Raises `UsageError`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_records(raw, name=str(path), kind=kind)


def parse_records(raw: bytes, *, name: str, kind: RecordKind | None = None) -> RecordFile:
    """Read a file's content; `name` is for messages. Raises `UsageError`."""
    if raw[:7] != RECORD_MAGIC[: len(raw[:7])] or not raw:
        raise UsageError(f"{name}: not a traffic record file")
    if len(raw) < _HEADER.size:
        raise UsageError(f"{name}: truncated: {len(raw)} bytes where the header alone has {_HEADER.size}")
    _, version, number, stream, size, nonce, count, overflowed, realtime, monotonic, _ = _HEADER.unpack_from(raw)
    if version != RECORD_VERSION:
        raise UsageError(f"{name}: record format version {version}, this program reads {RECORD_VERSION}")
    if number not in set(RecordKind):
        raise UsageError(f"{name}: unknown kind of record {number}")
    if kind is not None and number != kind:
        raise UsageError(f"{name}: holds {RecordKind(number).name.lower()} records, expected {kind.name.lower()}")
    layout = _LAYOUTS[RecordKind(number)]
    if size != layout.itemsize:
        raise UsageError(f"{name}: records of {size} bytes, expected {layout.itemsize}")
    there = len(raw) - _HEADER.size
    if there != count * size:
        state = "truncated" if there < count * size else "too long"
        raise UsageError(f"{name}: {state}: {there} bytes of records where the header announces {count} x {size}")
    return RecordFile(
        kind=RecordKind(number),
        stream=stream,
        nonce=nonce,
        overflowed=overflowed,
        start_realtime_ns=realtime,
        start_monotonic_ns=monotonic,
        records=np.frombuffer(raw, dtype=layout, count=count, offset=_HEADER.size),
    )


def make_records(kind: RecordKind, **columns: Any) -> Records:
    """A structured array from columns (`seq=...`, `sent_ns=...`); those not given are 0."""
    length = len(next(iter(columns.values()), ()))
    made = np.zeros(length, dtype=_LAYOUTS[kind])
    for name, column in columns.items():
        made[name] = column
    return made


def encode_records(
    records: Records, *, kind: RecordKind, stream: int, nonce: int, overflowed: int = 0, start_realtime_ns: int = 0
) -> bytes:
    """The file content that `parse_records` reads back."""
    head = _HEADER.pack(
        RECORD_MAGIC, RECORD_VERSION, kind, stream, records.dtype.itemsize, nonce, records.size, overflowed,
        start_realtime_ns, 0, bytes(8),
    )  # fmt: skip
    return head + records.tobytes()
