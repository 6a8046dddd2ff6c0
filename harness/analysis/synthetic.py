"""Captures and record files of runs that never took place, for tests and benchmarks."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.analysis.columns import PROBE, PROBE_MAGIC, PROBE_VERSION, Capture, concatenate, decode
from harness.analysis.pcapng import BATCH_SLACK_BYTES, PacketBatch, windows
from harness.analysis.records import RecordFile, RecordKind, make_records

_HEADERS = 14 + 20 + 8
_PROBE_BYTES = 32


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def probe_frame(
    *, stream: int, nonce: int = 1, seq: int = 0, probe: int = PROBE, frame_bytes: int = 100, sent_ns: int = 0
) -> bytes:
    """One probe from 10.0.0.1 to 10.0.0.2 as an Ethernet frame."""
    payload = struct.pack("!IHHIIQq", PROBE_MAGIC, PROBE_VERSION, probe - 1, stream, nonce, seq, sent_ns)
    payload += bytes(frame_bytes - _HEADERS - len(payload))
    udp = struct.pack("!HHHH", 7000, 7000, 8 + len(payload), 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0x4000, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    return b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1" + b"\x08\0" + ip + udp + payload


def frames_batch(frames: Sequence[bytes], *, time_ns: ArrayLike, direction: int) -> PacketBatch:
    """Any frames, whole, as one batch of interface 0."""
    size = np.array([len(frame) for frame in frames], dtype=np.int64)
    return _batch(b"".join(frames), size, time_ns=time_ns, direction=direction)


def probe_batch(
    seq: ArrayLike, *, time_ns: ArrayLike, direction: int, stream: int = 1, nonce: int = 1, probe: int = PROBE,
    frame_bytes: int = 100,
) -> PacketBatch:  # fmt: skip
    """Probes with the given sequence numbers, captured at the given times."""
    number = np.asarray(seq, dtype=np.uint64)
    template = probe_frame(stream=stream, nonce=nonce, probe=probe, frame_bytes=frame_bytes)
    data = np.tile(np.frombuffer(template, dtype=np.uint8), number.size)
    at = np.arange(number.size) * frame_bytes + _HEADERS + 16
    if number.size:
        windows(data, 8)[at] = number.astype(">u8").view("V8")
    return _batch(data.tobytes(), np.full(number.size, frame_bytes), time_ns=time_ns, direction=direction)


def _batch(raw: bytes, size: NDArray[np.int64], *, time_ns: ArrayLike, direction: int) -> PacketBatch:
    data = np.frombuffer(raw + bytes(BATCH_SLACK_BYTES), dtype=np.uint8)
    return PacketBatch(
        data=data,
        offset=np.cumsum(size) - size,
        captured_bytes=size.astype(np.uint32),
        original_bytes=size.astype(np.uint32),
        time_ns=np.broadcast_to(np.asarray(time_ns, dtype=np.int64), size.shape),
        flags=np.full(size.size, direction, dtype=np.uint32),
        interface=np.zeros(size.size, dtype=np.uint16),
    )


def capture_of(*batches: PacketBatch, dropped: int | None = 0, backward_ns: int = 0) -> Capture:
    """The batches as a decoded capture with the given counters."""
    columns = concatenate([decode(batch) for batch in batches])
    return Capture(
        columns=columns,
        interfaces=("synthetic",),
        received=len(columns),
        dropped=dropped,
        malformed=0,
        truncated=0,
        fragments=0,
        backward_ns=backward_ns,
    )


def sent_file(
    seq: ArrayLike, *, sent_ns: ArrayLike, errno: ArrayLike = 0, stream: int = 1, nonce: int = 1
) -> RecordFile:
    """The records of a sender that was never late."""
    records = make_records(RecordKind.SENT, seq=np.asarray(seq), due_ns=sent_ns, sent_ns=sent_ns, errno=errno)
    return _file(RecordKind.SENT, records, stream=stream, nonce=nonce)


def received_file(
    seq: ArrayLike, *, received_ns: ArrayLike, flags: ArrayLike = 0, stream: int = 1, nonce: int = 1,
    kind: RecordKind = RecordKind.RECEIVED, overflowed: int = 0,
) -> RecordFile:  # fmt: skip
    """The records of a receiver, in order of arrival."""
    records = make_records(kind, seq=np.asarray(seq), received_ns=received_ns, flags=flags)
    return _file(kind, records, stream=stream, nonce=nonce, overflowed=overflowed)


def _file(kind: RecordKind, records: NDArray[np.void], *, stream: int, nonce: int, overflowed: int = 0) -> RecordFile:
    return RecordFile(
        kind=kind, stream=stream, nonce=nonce, overflowed=overflowed, start_realtime_ns=0, start_monotonic_ns=0,
        records=records,
    )  # fmt: skip
