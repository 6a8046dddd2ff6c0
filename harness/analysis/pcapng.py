"""pcapng files, a batch of packets at a time, without per-packet Python objects.

The writer makes little-endian files of one section with nanosecond times, the direction of each packet
(`epb_flags`) and, at the end, the capture's own counters (an interface statistics block), so that a file
says by itself whether it is complete. The reader takes any byte order, time resolution and block order;
it raises `UsageError` with file and offset for what is truncated, foreign or not Ethernet.

Format: IETF draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError

INBOUND = 1
OUTBOUND = 2

_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 2, 3, 5, 6
_MAGIC = 0x1A2B3C4D
_ETHERNET = 1
_LONGEST_BLOCK = 64 << 20
_NS = 1_000_000_000
# The longest fixed-size window a decoder may take from a batch; batches carry that many spare bytes at their end.
BATCH_SLACK_BYTES = 256


def windows(data: NDArray[np.uint8], width_bytes: int) -> NDArray[np.void]:
    """Every `width_bytes` long window of `data`, as a view: `windows(d, 8)[offsets]` copies whole records."""
    return np.ndarray((data.size - width_bytes + 1,), dtype=f"V{width_bytes}", buffer=data.data, strides=(1,))


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketBatch:
    """Packets that lie in one buffer; `data` ends with at least `BATCH_SLACK_BYTES` bytes of no meaning."""

    data: NDArray[np.uint8]
    offset: NDArray[np.int64]
    captured_bytes: NDArray[np.uint32]
    original_bytes: NDArray[np.uint32]
    time_ns: NDArray[np.int64]
    flags: NDArray[np.uint32]
    """`epb_flags`; the low two bits are the direction (`INBOUND`, `OUTBOUND`, 0 unknown)."""
    interface: NDArray[np.uint16]

    def __len__(self) -> int:
        return self.offset.size


class Interface(msgspec.Struct, frozen=True):
    """One interface description of a file; `exponent` is its time unit as a power of `base` (10 or 2)."""

    name: str
    base: int = 10
    exponent: int = 6
    offset_s: int = 0


class CaptureCounters(msgspec.Struct, frozen=True):
    """The capture's own account; `None` where the file does not say."""

    interface: int
    received: int | None
    dropped: int | None


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


class PcapngWriter:
    """Writes one section to an open binary file, which stays the caller's to close."""

    def __init__(self, file: BinaryIO, *, application: str = "switchover") -> None:
        self._file = file
        self._interfaces = 0
        body = struct.pack("<IHHq", _MAGIC, 1, 0, -1) + _option(4, application.encode()) + _option(0, b"")
        file.write(_block(_SECTION, body))

    def add_interface(self, name: str, *, description: str = "") -> int:
        """Describe an Ethernet interface with nanosecond times; returns its number for `PacketBatch.interface`."""
        options = _option(2, name.encode())
        if description:
            options += _option(3, description.encode())
        options += _option(9, b"\x09") + _option(0, b"")
        self._file.write(_block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0) + options))
        self._interfaces += 1
        return self._interfaces - 1

    def write(self, batch: PacketBatch) -> None:
        """Append the batch's packets in order."""
        if len(batch):
            self._file.write(_encode(batch).data)

    def write_counters(self, interface: int, *, received: int, dropped: int, start_ns: int, end_ns: int) -> None:
        """Append what the capture saw on `interface` and what it dropped."""
        body = struct.pack("<III", interface, *_split(end_ns))
        for code, when_ns in ((2, start_ns), (3, end_ns)):
            body += _option(code, struct.pack("<II", *_split(when_ns)))
        body += _option(4, struct.pack("<Q", received)) + _option(5, struct.pack("<Q", dropped)) + _option(0, b"")
        self._file.write(_block(_STATISTICS, body))


def _split(time_ns: int) -> tuple[int, int]:
    return time_ns >> 32, time_ns & 0xFFFFFFFF


def _encode(batch: PacketBatch) -> NDArray[np.uint8]:
    captured = batch.captured_bytes.astype(np.int64)
    total = captured + (-captured % 4) + 44
    end = np.cumsum(total)
    start = end - total
    out = np.zeros(int(end[-1]), dtype=np.uint8)
    order = np.argsort(captured, kind="stable")
    bounds = np.flatnonzero(np.diff(captured[order])) + 1
    for chosen in np.split(order, bounds):
        length = int(captured[chosen[0]])
        size = int(total[chosen[0]])
        fields: list[tuple[str, str]] = [(name, "<u4") for name in ("kind", "size", "interface", "high", "low")]
        fields += [("captured", "<u4"), ("original", "<u4")]
        fields += [("data", f"V{length}")] if length else []
        fields += [("pad", f"V{-length % 4}")] if length % 4 else []
        fields += [("code", "<u2"), ("width", "<u2"), ("flags", "<u4"), ("end", "<u4"), ("again", "<u4")]
        rows = np.zeros(chosen.size, dtype=np.dtype(fields))
        rows["kind"], rows["size"], rows["again"] = _PACKET, size, size
        rows["interface"] = batch.interface[chosen]
        time_ns = batch.time_ns[chosen]
        rows["high"], rows["low"] = time_ns >> 32, time_ns & 0xFFFFFFFF
        rows["captured"], rows["original"] = length, batch.original_bytes[chosen]
        rows["code"], rows["width"], rows["flags"] = 2, 4, batch.flags[chosen]
        if length:
            rows["data"] = windows(batch.data, length)[batch.offset[chosen]]
        windows(out, size)[start[chosen]] = rows.view(f"V{size}")
    return out


class PcapngReader:
    """Iterates over a file's packets in file order; a context manager.

    `interfaces` and `counters` are complete once the iteration has ended. Raises `UsageError`.
    """

    def __init__(self, path: Path, *, batch_bytes: int = 4 << 20) -> None:
        self.path = path
        self.interfaces: list[Interface] = []
        self.counters: list[CaptureCounters] = []
        self._batch_bytes = batch_bytes
        self._base = 0
        """Number of the current section's first interface."""
        self._order = "<"
        self._chain = _Chain()
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        if self._file.read(4) != b"\n\r\r\n":
            self._file.close()
            raise UsageError(f"{path}: not a pcapng file (no section header at offset 0)")
        self._file.seek(0)

    def __enter__(self) -> PcapngReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[PacketBatch]:
        carry = b""
        at = 0
        wanted = self._batch_bytes
        while True:
            piece = self._file.read(wanted)
            size = len(carry) + len(piece)
            if not size:
                return
            data = np.empty(size + BATCH_SLACK_BYTES, dtype=np.uint8)
            data[: len(carry)] = np.frombuffer(carry, dtype=np.uint8)
            data[len(carry) : size] = np.frombuffer(piece, dtype=np.uint8)
            data[size:] = 0
            used = yield from self._parse(data, size, at)
            if not piece and used < size:
                raise UsageError(
                    f"{self.path}: truncated: the block at offset {at + used} ends beyond the end of the file",
                    hint="the capture was cut short; such a file cannot be analysed",
                )
            carry = data[used:size].tobytes()
            at += used
            wanted = self._batch_bytes if used else max(wanted * 2, self._batch_bytes)

    def _parse(self, data: NDArray[np.uint8], size: int, at: int) -> Generator[PacketBatch, None, int]:
        """Yield the packets of `data[:size]`, which starts at file offset `at`; returns the bytes used."""
        position = 0
        runs: list[NDArray[np.int64]] = []
        while position + 12 <= size:
            kind = self._u32(data, position)
            if kind == _SECTION:
                yield from self._flush(data, runs, at)
                magic = int.from_bytes(data[position + 8 : position + 12].tobytes(), "little")
                self._order = {_MAGIC: "<", 0x4D3C2B1A: ">"}.get(magic, "")
                if not self._order:
                    raise self._foreign(at + position, "section header with an unknown byte order")
                self._base = len(self.interfaces)
            if kind == _PACKET:
                found, position = self._chain.follow(data, size, start=position, order=self._order)
                if found.size:
                    runs.append(found)
                    continue
            length = self._u32(data, position + 4)
            if length < 12 or length % 4 or length > _LONGEST_BLOCK:
                raise self._foreign(at + position, f"a block of {length} bytes")
            if position + length > size:
                break
            if self._u32(data, position + length - 4) != length:
                raise self._foreign(at + position, "a block whose two lengths differ")
            if kind in (_INTERFACE, _STATISTICS, _SIMPLE_PACKET, _OLD_PACKET):
                yield from self._flush(data, runs, at)
                self._describe(kind, data[position + 8 : position + length - 4].tobytes(), at + position)
            position += length
        yield from self._flush(data, runs, at)
        return position

    def _u32(self, data: NDArray[np.uint8], position: int) -> int:
        return int.from_bytes(data[position : position + 4].tobytes(), "little" if self._order == "<" else "big")

    def _foreign(self, offset: int, what: str) -> UsageError:
        return UsageError(f"{self.path}: not a sound pcapng file: {what} at offset {offset}")

    def _describe(self, kind: int, body: bytes, offset: int) -> None:
        if kind in (_SIMPLE_PACKET, _OLD_PACKET):
            raise self._foreign(offset, "a packet block without a time or of the obsolete kind")
        if kind == _INTERFACE:
            if len(body) < 8:
                raise self._foreign(offset, "a short interface description")
            (link,) = struct.unpack_from(self._order + "H", body)
            if link != _ETHERNET:
                raise UsageError(f"{self.path}: link type {link} at offset {offset}; only Ethernet (1) can be analysed")
            options = dict(self._options(body, 8, offset))
            resolution = options.get(9, b"\x06")[:1] or b"\x06"
            self.interfaces.append(
                Interface(
                    name=options.get(2, b"").rstrip(b"\0").decode(errors="replace"),
                    base=2 if resolution[0] & 0x80 else 10,
                    exponent=resolution[0] & 0x7F,
                    offset_s=struct.unpack(self._order + "q", options[14])[0] if len(options.get(14, b"")) == 8 else 0,
                )
            )
            return
        if len(body) < 12:
            raise self._foreign(offset, "short interface statistics")
        (interface,) = struct.unpack_from(self._order + "I", body)
        options = dict(self._options(body, 12, offset))
        received, dropped = (
            struct.unpack(self._order + "Q", options[code])[0] if len(options.get(code, b"")) == 8 else None
            for code in (4, 5)
        )
        self.counters.append(CaptureCounters(self._base + interface, received, dropped))

    def _options(self, body: bytes, position: int, offset: int) -> Iterator[tuple[int, bytes]]:
        while position + 4 <= len(body):
            code, length = struct.unpack_from(self._order + "HH", body, position)
            if code == 0:
                return
            if position + 4 + length > len(body):
                raise self._foreign(offset, "an option longer than its block")
            yield code, body[position + 4 : position + 4 + length]
            position += 4 + length + (-length % 4)

    def _flush(self, data: NDArray[np.uint8], runs: list[NDArray[np.int64]], at: int) -> Iterator[PacketBatch]:
        if not runs:
            return
        start = np.concatenate(runs)
        runs.clear()
        u4, u2 = self._order + "u4", self._order + "u2"
        names = ("kind", "size", "interface", "high", "low", "captured", "original")
        head = windows(data, 28)[start].view([(name, u4) for name in names])
        size, captured = head["size"].astype(np.int64), head["captured"].astype(np.int64)
        padded = captured + (-captured % 4)
        bad = (size < 32) | (padded > size - 32) | (windows(data, 4)[start + size - 4].view(u4) != head["size"])
        bad |= head["interface"] >= len(self.interfaces) - self._base
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise self._foreign(at + int(start[first]), "a packet block that contradicts itself")
        interface = head["interface"].astype(np.uint16) + np.uint16(self._base)
        ticks = (head["high"].astype(np.uint64) << np.uint64(32)) | head["low"]
        yield PacketBatch(
            data=data,
            offset=start + 28,
            captured_bytes=head["captured"].astype(np.uint32),
            original_bytes=head["original"].astype(np.uint32),
            time_ns=self._times(ticks, interface),
            flags=_flags(data, start + 28 + padded, start + size - 4, u2=u2, u4=u4),
            interface=interface,
        )

    def _times(self, ticks: NDArray[np.uint64], interface: NDArray[np.uint16]) -> NDArray[np.int64]:
        time_ns = np.empty(ticks.size, dtype=np.int64)
        for number in np.unique(interface):
            here = slice(None) if len(self.interfaces) == 1 else interface == number
            unit = self.interfaces[number]
            if unit.base == 10 and unit.exponent <= 9:
                time_ns[here] = (ticks[here] * np.uint64(10 ** (9 - unit.exponent))).astype(np.int64)
            elif unit.base == 10:
                # 10^19 is the largest power of ten in 64 bits; finer units make any tick zero.
                time_ns[here] = (ticks[here] // np.uint64(10 ** min(unit.exponent - 9, 19))).astype(np.int64)
            else:
                time_ns[here] = _binary_ns(ticks[here], unit.exponent)
            time_ns[here] += unit.offset_s * _NS
        return time_ns


def _binary_ns(ticks: NDArray[np.uint64], exponent: int) -> NDArray[np.int64]:
    if exponent > 63:
        return np.zeros(ticks.size, dtype=np.int64)
    second = ticks >> np.uint64(exponent)
    rest = ticks - (second << np.uint64(exponent))
    # Keep 30 bits of the fraction (about a nanosecond): more would overflow the product with 10^9.
    shift = max(exponent - 30, 0)
    part = ((rest >> np.uint64(shift)) * np.uint64(_NS)) >> np.uint64(exponent - shift)
    return (second * np.uint64(_NS) + part).astype(np.int64)


def _flags(
    data: NDArray[np.uint8], option: NDArray[np.int64], end: NDArray[np.int64], *, u2: str, u4: str
) -> NDArray[np.uint32]:
    """The `epb_flags` option of each packet, 0 where there is none."""
    flags = np.zeros(option.size, dtype=np.uint32)
    left = np.flatnonzero(option + 8 <= end)
    position = option[left]
    while left.size:
        head = windows(data, 8)[position].view([("code", u2), ("size", u2), ("value", u4)])
        hit = (head["code"] == 2) & (head["size"] == 4)
        flags[left[hit]] = head["value"][hit]
        size = head["size"].astype(np.int64)
        following = position + 4 + size + (-size % 4)
        on = ~hit & (head["code"] != 0) & (following + 8 <= end[left])
        left, position = left[on], following[on]
    return flags


class _Chain:
    """Follows a chain of packet blocks; runs of equal blocks, the usual case, cost no loop per packet."""

    def __init__(self) -> None:
        self._guess = 16
        self._rest = 0
        """Blocks to walk one by one before the next guess: guessing costs as much as walking some twenty."""

    def follow(self, data: NDArray[np.uint8], size: int, *, start: int, order: str) -> tuple[NDArray[np.int64], int]:
        """Offsets of the whole packet blocks from `start` on, and where the first other or unfinished block begins.

        A block of an impossible length ends the chain: the caller looks at it again and says so.
        """
        parts: list[NDArray[np.int64]] = []
        singles: list[int] = []
        unpack = struct.Struct(order + "II").unpack_from
        view = data.data
        position = start
        while position + 12 <= size:
            kind, length = unpack(view, position)
            if kind != _PACKET or length < 32 or length % 4 or position + length > size:
                break
            if self._rest:
                self._rest -= 1
                singles.append(position)
                position += length
                continue
            count = min(self._guess, (size - position) // length)
            heads = np.ndarray((count, 2), dtype=order + "u4", buffer=view, offset=position, strides=(length, 4))
            same = (heads[:, 0] == _PACKET) & (heads[:, 1] == length)
            run = count if same.all() else int(same.argmin())
            if run < 16:
                self._guess, self._rest = 16, 64
            elif run == self._guess:
                self._guess = min(self._guess * 4, 65536)
            if singles:
                parts.append(np.array(singles, dtype=np.int64))
                singles = []
            parts.append(np.arange(run, dtype=np.int64) * length + position)
            position += run * length
        if singles:
            parts.append(np.array(singles, dtype=np.int64))
        return (np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)), position
