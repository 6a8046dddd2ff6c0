"""Captured frames as numpy columns: IPv4, IPv6, VLAN, TCP, UDP and the probes of the traffic generator.

Decoding never fails on a frame: one that is malformed or cut short keeps the columns that could be read and is marked
in `status`. About 115 bytes a packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis.pcapng import CaptureCounters, PacketBatch, PcapngReader, windows

PROBE_MAGIC = 0x53574F56
PROBE_VERSION = 1
NO_PROBE, PROBE, ECHO_REQUEST, ECHO_REPLY = 0, 1, 2, 3
OK, MALFORMED, TRUNCATED = 0, 1, 2
WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT = 0, 1, 2
IPV4, IPV6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
NO_VLAN = -1

_VLAN_TYPES = (0x8100, 0x88A8)
_EXTENSIONS = (0, 43, 60, 135)  # hop by hop, routing, destination options, mobility: 8 + 8n bytes each
_FRAGMENT, _AUTHENTICATION = 44, 51
_IPV4 = np.dtype(
    [("first", "u1"), ("tos", "u1"), ("total", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"),
     ("protocol", "u1"), ("checksum", ">u2"), ("source", ">u4"), ("destination", ">u4")]
)  # fmt: skip
_IPV6 = np.dtype(
    [("first", ">u4"), ("payload", ">u2"), ("next", "u1"), ("hops", "u1"), ("source_hi", ">u8"), ("source_lo", ">u8"),
     ("destination_hi", ">u8"), ("destination_lo", ">u8")]
)  # fmt: skip
_TCP = np.dtype(
    [("source", ">u2"), ("destination", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"), ("flags", "u1"),
     ("window", ">u2"), ("checksum", ">u2"), ("urgent", ">u2")]
)  # fmt: skip
_UDP = np.dtype(
    [("source", ">u2"), ("destination", ">u2"), ("length", ">u2"), ("checksum", ">u2"), ("magic", ">u4"),
     ("version", ">u2"), ("flags", ">u2"), ("stream", ">u4"), ("nonce", ">u4"), ("seq", ">u8"), ("sent_ns", ">i8")]
)  # fmt: skip
_PROBE_END = 8 + 24  # the sequence number ends here; the send time behind it is not needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One entry a packet, in capture order. Fields that a packet does not have are 0."""

    time_ns: NDArray[np.int64]
    direction: NDArray[np.uint8]
    """1 into the host from the interface, 2 out of the host, 0 unknown."""
    interface: NDArray[np.uint8]
    status: NDArray[np.uint8]
    """`OK`, `MALFORMED` or `TRUNCATED` (the capture holds less of the frame than its headers need)."""
    frame_bytes: NDArray[np.uint32]
    ethertype: NDArray[np.uint16]
    """That of the payload, behind VLAN tags."""
    vlan: NDArray[np.int16]
    """The outer VLAN's number, or `NO_VLAN`."""
    source_mac: NDArray[np.uint64]
    destination_mac: NDArray[np.uint64]
    ip_version: NDArray[np.uint8]
    source_hi: NDArray[np.uint64]
    """Upper half of an IPv6 address; an IPv4 or ARP address is all in the lower half."""
    source_lo: NDArray[np.uint64]
    destination_hi: NDArray[np.uint64]
    destination_lo: NDArray[np.uint64]
    protocol: NDArray[np.uint8]
    """Of the upper layer, behind IPv6 extension headers; for ARP and RARP the operation."""
    fragment: NDArray[np.uint8]
    source_port: NDArray[np.uint16]
    """For ICMP and ICMPv6 the type."""
    destination_port: NDArray[np.uint16]
    payload_bytes: NDArray[np.uint32]
    """Of TCP or UDP; a GSO super-frame counts as one packet with all its bytes."""
    tcp_seq: NDArray[np.uint32]
    tcp_ack: NDArray[np.uint32]
    tcp_flags: NDArray[np.uint8]
    tcp_window: NDArray[np.uint16]
    tcp_sacks: NDArray[np.uint8]
    """Number of SACK blocks; `tcp_dsack` is 1 where the first reports a duplicate (RFC 2883)."""
    tcp_dsack: NDArray[np.uint8]
    tcp_timestamp: NDArray[np.uint32]
    """The sender's own time (TSval, RFC 7323); 0 also where there is none."""
    probe: NDArray[np.uint8]
    """`NO_PROBE`, `PROBE`, `ECHO_REQUEST` or `ECHO_REPLY`."""
    probe_stream: NDArray[np.uint32]
    probe_nonce: NDArray[np.uint32]
    probe_seq: NDArray[np.uint64]

    def __len__(self) -> int:
        return self.time_ns.size

    def select(self, mask: NDArray[Any] | slice) -> Columns:
        """The packets that a mask or an index array names; those of a slice without a copy."""
        return Columns(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A decoded file. `received` and `dropped` are the capture's own counters, `None` where the file has none."""

    columns: Columns
    interfaces: tuple[str, ...]
    received: int | None
    dropped: int | None
    malformed: int
    truncated: int
    fragments: int
    backward_ns: int
    """The largest step backwards from one packet's time to the next one's of its direction: above some 0.1 ms the clock was set.

    Between directions it means nothing: what comes in is stamped when it is queued for the processor, what goes out when it goes out, and
    a busy processor gets to its queue milliseconds later.
    """


_TYPES: dict[str, Any] = {
    "time_ns": np.int64, "direction": np.uint8, "interface": np.uint8, "status": np.uint8, "frame_bytes": np.uint32,
    "ethertype": np.uint16, "vlan": np.int16, "source_mac": np.uint64, "destination_mac": np.uint64,
    "ip_version": np.uint8, "source_hi": np.uint64, "source_lo": np.uint64, "destination_hi": np.uint64,
    "destination_lo": np.uint64, "protocol": np.uint8, "fragment": np.uint8, "source_port": np.uint16,
    "destination_port": np.uint16, "payload_bytes": np.uint32, "tcp_seq": np.uint32, "tcp_ack": np.uint32,
    "tcp_flags": np.uint8, "tcp_window": np.uint16, "tcp_sacks": np.uint8, "tcp_dsack": np.uint8, "tcp_timestamp": np.uint32,
    "probe": np.uint8, "probe_stream": np.uint32, "probe_nonce": np.uint32, "probe_seq": np.uint64,
}  # fmt: skip


def empty_columns(count: int = 0) -> Columns:
    """`count` packets of zeros."""
    return Columns(**{name: np.zeros(count, dtype=kind) for name, kind in _TYPES.items()})


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The packets of all parts in order."""
    if not parts:
        return empty_columns()
    if len(parts) == 1:
        return parts[0]
    return Columns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _TYPES})


def read_capture(path: Path) -> Capture:
    """Read and decode a pcapng file; raises `UsageError` for a damaged or foreign one."""
    with PcapngReader(path) as reader:
        # Room for the most packets that a file of this size can hold: memory that is never touched costs nothing.
        room = empty_columns(path.stat().st_size // 32)
        count = 0
        for batch in reader:
            decode(batch, into=room.select(slice(count, count + len(batch))))
            count += len(batch)
        interfaces = tuple(interface.name for interface in reader.interfaces)
        counters = reader.counters
    columns = room.select(slice(count))
    return Capture(
        columns=columns,
        interfaces=interfaces,
        received=_total(counters, "received", len(interfaces)),
        dropped=_total(counters, "dropped", len(interfaces)),
        malformed=int(np.count_nonzero(columns.status == MALFORMED)),
        truncated=int(np.count_nonzero(columns.status == TRUNCATED)),
        fragments=int(np.count_nonzero(columns.fragment)),
        backward_ns=_backward_ns(columns),
    )


def _backward_ns(columns: Columns) -> int:
    steps = (np.diff(columns.time_ns[columns.direction == direction]) for direction in np.unique(columns.direction))
    return max((max(0, -int(each.min())) for each in steps if each.size), default=0)


def _total(counters: Sequence[CaptureCounters], name: str, interfaces: int) -> int | None:
    """A sum over all interfaces; an interface's later figure replaces its earlier one. `None` if any is missing."""
    latest: dict[int, int | None] = {each.interface: getattr(each, name) for each in counters}
    if len(latest) < interfaces or None in latest.values():
        return None
    return sum(value or 0 for value in latest.values())


def decode(batch: PacketBatch, *, into: Columns | None = None) -> Columns:
    """Decode one batch, into columns of zeros of its length if there are such."""
    out = empty_columns(len(batch)) if into is None else into
    out.time_ns[:] = batch.time_ns
    out.direction[:] = batch.flags & 3
    out.interface[:] = batch.interface
    out.frame_bytes[:] = batch.original_bytes
    at = _decode_ethernet(batch, out)
    upper = _decode_ipv4(batch, out, at) + _decode_ipv6(batch, out, at)
    _decode_arp(batch, out, at)
    for rows, start, end in upper:
        _decode_tcp(batch, out, rows, start, end)
        _decode_udp(batch, out, rows, start, end)
        _decode_icmp(batch, out, rows, start)
    return out


Rows = NDArray[np.int64]


def _frame_end(batch: PacketBatch, rows: Rows) -> NDArray[np.int64]:
    """Where each frame's captured bytes end."""
    end: NDArray[np.int64] = batch.offset[rows] + batch.captured_bytes[rows]
    return end


def _sound(batch: PacketBatch, out: Columns, rows: Rows, need_end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows hold all bytes up to `need_end`; the others are marked as malformed or truncated."""
    there = need_end <= _frame_end(batch, rows)
    if not there.all():
        bad = rows[~there]
        cut = batch.captured_bytes[bad] < batch.original_bytes[bad]
        out.status[bad] = np.where(cut, TRUNCATED, MALFORMED)
    return there


def _decode_ethernet(batch: PacketBatch, out: Columns) -> NDArray[np.int64]:
    """Addresses, VLAN and type; returns where each frame's network header starts."""
    rows = np.arange(len(batch))
    out.vlan[:] = NO_VLAN
    at = batch.offset + 14
    rows = rows[_sound(batch, out, rows, at)]
    head = windows(batch.data, 16)[batch.offset[rows]]
    wide = head.view([("destination", ">u8"), ("source", ">u8")])
    out.destination_mac[rows] = wide["destination"] >> np.uint64(16)
    middle = head.view([("skip", "V4"), ("source", ">u8"), ("type", "V4")])["source"]
    out.source_mac[rows] = middle & np.uint64(0xFFFFFFFFFFFF)
    out.ethertype[rows] = head.view([("skip", "V12"), ("type", ">u2"), ("rest", "V2")])["type"]
    rows = rows[np.isin(out.ethertype[rows], _VLAN_TYPES)] if np.isin(out.ethertype, _VLAN_TYPES).any() else rows[:0]
    while rows.size:
        rows = rows[_sound(batch, out, rows, at[rows] + 4)]
        tag = windows(batch.data, 4)[at[rows]].view([("tci", ">u2"), ("type", ">u2")])
        out.vlan[rows] = np.where(out.vlan[rows] == NO_VLAN, tag["tci"] & 0xFFF, out.vlan[rows])
        out.ethertype[rows] = tag["type"]
        at[rows] += 4
        rows = rows[np.isin(out.ethertype[rows], _VLAN_TYPES)]
    return at


Upper = list[tuple[Rows, NDArray[np.int64], NDArray[np.int64]]]
"""Rows whose upper-layer header is there to read, where it starts, and where the datagram says it ends."""


def _decode_ipv4(batch: PacketBatch, out: Columns, at: NDArray[np.int64]) -> Upper:
    rows = np.flatnonzero((out.ethertype == IPV4) & (out.status == OK))
    rows = rows[_sound(batch, out, rows, at[rows] + 20)]
    head = windows(batch.data, 20)[at[rows]].view(_IPV4)
    header_bytes = (head["first"] & 15).astype(np.int64) * 4
    # A total length of 0 is that of a super-frame above 64 KiB; it then ends with the frame.
    total = head["total"].astype(np.int64)
    end = at[rows] + total
    if (total == 0).any():
        end = np.where(total == 0, batch.offset[rows] + batch.original_bytes[rows], end)
    beyond = end > batch.offset[rows] + batch.original_bytes[rows]
    bad = (head["first"] >> 4 != 4) | (header_bytes < 20) | beyond | (end < at[rows] + header_bytes)
    if bad.any():  # each selection costs a copy of all: it is made only for the frames that need it
        out.status[rows[bad]] = MALFORMED
        rows, head, end, header_bytes = rows[~bad], head[~bad], end[~bad], header_bytes[~bad]
    out.ip_version[rows] = 4
    out.source_lo[rows], out.destination_lo[rows] = head["source"], head["destination"]
    out.protocol[rows] = head["protocol"]
    start = at[rows] + header_bytes
    upper = _sound(batch, out, rows, start)
    if (head["fragment"] & 0x3FFF).any():
        offset, more = head["fragment"] & 0x1FFF, head["fragment"] & 0x2000
        out.fragment[rows] = np.where(offset != 0, LATER_FRAGMENT, np.where(more != 0, FIRST_FRAGMENT, WHOLE))
        upper &= offset == 0
    if not upper.all():
        rows, start, end = rows[upper], start[upper], end[upper]
    return [(rows, start, end)]


def _decode_ipv6(batch: PacketBatch, out: Columns, at: NDArray[np.int64]) -> Upper:
    rows = np.flatnonzero((out.ethertype == IPV6) & (out.status == OK))
    rows = rows[_sound(batch, out, rows, at[rows] + 40)]
    if not rows.size:
        return []
    head = windows(batch.data, 40)[at[rows]].view(_IPV6)
    frame_end = batch.offset[rows] + batch.original_bytes[rows]
    payload = head["payload"].astype(np.int64)
    end = np.where(payload == 0, frame_end, at[rows] + 40 + payload)  # 0: a jumbogram, the length is in an extension
    bad = (head["first"] >> 28 != 6) | (end > frame_end)
    out.status[rows[bad]] = MALFORMED
    rows, head, end = rows[~bad], head[~bad], end[~bad]
    out.ip_version[rows] = 6
    for name in ("source_hi", "source_lo", "destination_hi", "destination_lo"):
        getattr(out, name)[rows] = head[name]
    following = head["next"].astype(np.uint8)
    start = at[rows] + 40
    out.protocol[rows] = following
    upper = np.ones(rows.size, dtype=np.bool_)
    kinds = (*_EXTENSIONS, _FRAGMENT, _AUTHENTICATION)
    live = np.flatnonzero(np.isin(following, kinds))
    while live.size:
        sound = _sound(batch, out, rows[live], start[live] + 8)
        upper[live[~sound]] = False
        live = live[sound]
        extension = windows(batch.data, 4)[start[live]].view([("next", "u1"), ("size", "u1"), ("fragment", ">u2")])
        kind = following[live]
        size = np.where(kind == _FRAGMENT, 8, extension["size"].astype(np.int64) * 8 + 8)
        size = np.where(kind == _AUTHENTICATION, extension["size"].astype(np.int64) * 4 + 8, size)
        split = (kind == _FRAGMENT) & (extension["fragment"] & 0xFFF9 != 0)
        later = split & (extension["fragment"] & 0xFFF8 != 0)
        out.fragment[rows[live[split]]] = FIRST_FRAGMENT
        out.fragment[rows[live[later]]] = LATER_FRAGMENT
        upper[live[later]] = False
        start[live] += size
        following[live] = extension["next"]
        out.protocol[rows[live]] = extension["next"]
        live = live[~later & np.isin(extension["next"], kinds)]
    upper &= out.status[rows] == OK
    upper[upper] &= _sound(batch, out, rows[upper], start[upper])
    return [(rows[upper], start[upper], end[upper])]


def _decode_arp(batch: PacketBatch, out: Columns, at: NDArray[np.int64]) -> None:
    rows = np.flatnonzero(((out.ethertype == ARP) | (out.ethertype == RARP)) & (out.status == OK))
    rows = rows[_sound(batch, out, rows, at[rows] + 28)]
    if not rows.size:
        return
    layout = [("skip", "V6"), ("operation", ">u2"), ("m1", "V6"), ("source", ">u4"), ("m2", "V6"), ("target", ">u4")]
    body = windows(batch.data, 28)[at[rows]].view(layout)
    out.protocol[rows] = body["operation"]
    out.source_lo[rows], out.destination_lo[rows] = body["source"], body["target"]


def _decode_tcp(batch: PacketBatch, out: Columns, rows: Rows, start: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    mine = out.protocol[rows] == TCP
    if not mine.any():
        return
    rows, start, end = rows[mine], start[mine], end[mine]
    sound = _sound(batch, out, rows, start + 20)
    rows, start, end = rows[sound], start[sound], end[sound]
    head = windows(batch.data, 20)[start].view(_TCP)
    header_bytes = (head["offset"] >> 4).astype(np.int64) * 4
    first_fragment = out.fragment[rows] == FIRST_FRAGMENT
    bad = (header_bytes < 20) | ((end < start + header_bytes) & ~first_fragment)
    out.status[rows[bad]] = MALFORMED
    out.source_port[rows], out.destination_port[rows] = head["source"], head["destination"]
    out.tcp_seq[rows], out.tcp_ack[rows] = head["seq"], head["ack"]
    out.tcp_flags[rows], out.tcp_window[rows] = head["flags"], head["window"]
    out.payload_bytes[rows] = np.maximum(end - start - header_bytes, 0)
    optional = ~bad & (header_bytes > 20)
    _decode_tcp_options(batch, out, rows[optional], start[optional] + 20, start[optional] + header_bytes[optional])


def _decode_tcp_options(
    batch: PacketBatch, out: Columns, rows: Rows, position: NDArray[np.int64], end: NDArray[np.int64]
) -> None:
    sound = _sound(batch, out, rows, end)
    rows, position, end = rows[sound], position[sound], end[sound]
    while rows.size:
        option = windows(batch.data, 18)[position].view([("kind", "u1"), ("size", "u1"), ("edge", ">u4", (4,))])
        kind = option["kind"]
        size = np.where(kind <= 1, 1, option["size"].astype(np.int64))
        good = (kind != 0) & (size >= 1) & ((kind == 1) | (size >= 2)) & (position + size <= end)
        sack = np.flatnonzero(good & (kind == 5) & (size >= 10))
        if sack.size:
            _note_sack(out, rows[sack], (size[sack] - 2) // 8, option["edge"][sack])
        stamp = good & (kind == 8) & (size == 10)
        out.tcp_timestamp[rows[stamp]] = option["edge"][stamp, 0]
        position = position + size
        good &= position + 2 <= end
        rows, position, end = rows[good], position[good], end[good]


def _note_sack(out: Columns, rows: Rows, blocks: NDArray[np.int64], edge: NDArray[Any]) -> None:
    """RFC 2883: the first block is below the cumulative acknowledgement, or inside the second block."""
    out.tcp_sacks[rows] = blocks
    left, right, second_left, second_right = (edge[:, k].astype(np.uint32) for k in range(4))
    ack = out.tcp_ack[rows]
    below = (right - ack).view(np.int32) <= 0
    inside = ((left - second_left).view(np.int32) >= 0) & ((right - second_right).view(np.int32) <= 0)
    out.tcp_dsack[rows] = below | (inside & (blocks >= 2))


def _decode_udp(batch: PacketBatch, out: Columns, rows: Rows, start: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    mine = out.protocol[rows] == UDP
    if not mine.any():
        return
    if not mine.all():
        rows, start, end = rows[mine], start[mine], end[mine]
    sound = _sound(batch, out, rows, start + 8)
    if not sound.all():
        rows, start, end = rows[sound], start[sound], end[sound]
    body = windows(batch.data, _UDP.itemsize)[start].view(_UDP)
    whole = out.fragment[rows] == WHOLE
    length = body["length"].astype(np.int64)
    bad = (length != 0) & ((length < 8) | (whole & (start + length > end)))
    out.status[rows[bad]] = MALFORMED
    out.source_port[rows], out.destination_port[rows] = body["source"], body["destination"]
    out.payload_bytes[rows] = np.where(length == 0, end - start - 8, np.maximum(length - 8, 0))
    probe = (body["magic"] == PROBE_MAGIC) & (body["version"] == PROBE_VERSION) & (body["flags"] <= 2) & ~bad
    probe &= np.minimum(end, _frame_end(batch, rows)) >= start + _PROBE_END
    if not probe.all():
        rows, body = rows[probe], body[probe]
    out.probe[rows] = body["flags"] + 1
    out.probe_stream[rows], out.probe_nonce[rows], out.probe_seq[rows] = body["stream"], body["nonce"], body["seq"]


def _decode_icmp(batch: PacketBatch, out: Columns, rows: Rows, start: NDArray[np.int64]) -> None:
    mine = (out.protocol[rows] == ICMP) | (out.protocol[rows] == ICMPV6)
    rows, start = rows[mine], start[mine]
    sound = _sound(batch, out, rows, start + 4)
    out.source_port[rows[sound]] = windows(batch.data, 1)[start[sound]].view("u1")
