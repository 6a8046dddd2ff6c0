"""From raw TPACKET_V3 blocks, as the capture thread left them, to a pcapng file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.analysis.pcapng import BATCH_SLACK_BYTES, INBOUND, OUTBOUND, PacketBatch, PcapngWriter, windows
from harness.errors import TestbedError

_BATCH_BYTES = 32 << 20
# Native byte order: a spool never leaves the host. Layouts of <linux/if_packet.h>; "type" is sll_pkttype of the
# sockaddr_ll behind each packet header.
_BLOCK = np.dtype(
    {"names": ["packets", "first", "size"], "formats": ["u4", "u4", "u4"], "offsets": [12, 16, 20], "itemsize": 48}
)
_PACKET = np.dtype(
    {
        "names": ["next", "seconds", "nanoseconds", "captured", "original", "status", "mac", "tci", "tpid", "type"],
        "formats": ["u4", "u4", "u4", "u4", "u4", "u4", "u2", "u4", "u2", "u1"],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 32, 36, 58],
        "itemsize": 60,
    }
)
_VLAN_VALID, _TPID_VALID = 0x10, 0x40
_DOT1Q = 0x8100
KEPT_BYTES = 9216
"""Of each frame: all of those that an MTU up to 9000 allows. Only GSO super-frames are longer; of their data, hundreds of MB/s of it, nobody
needs the rest, and keeping it costs a ring its completeness."""
# epb_flags for the packet types host, broadcast, multicast, other host, outgoing: direction, and reception << 2.
_FLAGS = np.array([INBOUND | 1 << 2, INBOUND | 3 << 2, INBOUND | 2 << 2, INBOUND | 4 << 2, OUTBOUND], dtype=np.uint32)


def convert_spool(
    spool: Path, path: Path, *, interface: str, packets: int, dropped: int, start_ns: int, end_ns: int
) -> int:
    """Write `spool` as `path`, which appears only when it is whole; returns how many frames are shorter than what is kept.

    Raises `TestbedError` if the blocks do not hold exactly `packets` packets.
    """
    part = path.with_name(path.name + ".part")
    written = shortened = 0
    with part.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface(interface)
        for data, starts in _pieces(spool):
            batch = _decode(data, starts)
            written += len(batch)
            shortened += int(np.count_nonzero(batch.captured_bytes < np.minimum(batch.original_bytes, KEPT_BYTES)))
            writer.write(batch)
        writer.write_counters(0, received=packets + dropped, dropped=dropped, start_ns=start_ns, end_ns=end_ns)
    if written != packets:
        raise TestbedError(f"capture of {interface}: {packets} packets were counted, {written} are in {spool}")
    part.replace(path)
    return shortened


def _pieces(spool: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The file in pieces of whole blocks, each with the offsets of its blocks."""
    carry = b""
    with spool.open("rb") as file:
        while piece := file.read(_BATCH_BYTES):
            raw = carry + piece
            data = np.frombuffer(raw + bytes(BATCH_SLACK_BYTES), dtype=np.uint8).copy()
            starts = []
            position = 0
            while position + _BLOCK.itemsize <= len(raw):
                (size,) = struct.unpack_from("I", raw, position + 20)
                if position + size > len(raw):
                    break
                starts.append(position)
                position += size
            yield data, np.array(starts, dtype=np.int64)
            carry = raw[position:]
    if carry:
        raise TestbedError(f"{spool}: the last block is incomplete")


def _packet_offsets(data: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets of all packet headers in order: the k-th packets of all blocks are found in one step."""
    blocks = windows(data, _BLOCK.itemsize)[starts].view(_BLOCK)
    counts = blocks["packets"].astype(np.int64)
    place = np.cumsum(counts) - counts
    found = np.empty(int(counts.sum()), dtype=np.int64)
    fullest_first = np.argsort(-counts, kind="stable")
    at = (starts + blocks["first"])[fullest_first]
    place, counts = place[fullest_first], counts[fullest_first]
    step_of = windows(data, 4)
    for step in range(int(counts[0]) if counts.size else 0):
        live = int(np.searchsorted(-counts, -step, side="left"))
        found[place[:live] + step] = at[:live]
        at[:live] += step_of[at[:live]].view("u4")
    return found


def _decode(data: NDArray[np.uint8], starts: NDArray[np.int64]) -> PacketBatch:
    """The packets of the blocks at `starts`. VLAN tags are put back into the frames, within `data`."""
    at = _packet_offsets(data, starts)
    head = windows(data, _PACKET.itemsize)[at].view(_PACKET)
    offset = at + head["mac"]
    captured, original = head["captured"].copy(), head["original"].copy()
    tagged = np.flatnonzero((head["status"] & _VLAN_VALID != 0) & (captured >= 12))
    if tagged.size:
        # PACKET_RESERVE left the room: the addresses move four bytes to the front, the tag comes behind them.
        front = offset[tagged] - 4
        windows(data, 12)[front] = windows(data, 12)[offset[tagged]]
        protocol = np.where(head["status"][tagged] & _TPID_VALID, head["tpid"][tagged], _DOT1Q).astype(">u2")
        windows(data, 2)[front + 12] = protocol.view("V2")
        windows(data, 2)[front + 14] = head["tci"][tagged].astype(">u2").view("V2")
        offset[tagged] = front
        captured[tagged] += 4
        original[tagged] += 4
    return PacketBatch(
        data=data,
        offset=offset,
        captured_bytes=captured,
        original_bytes=original,
        time_ns=head["seconds"].astype(np.int64) * 1_000_000_000 + head["nanoseconds"],
        flags=_FLAGS[np.minimum(head["type"], 4)],
        interface=np.zeros(at.size, dtype=np.uint16),
    )
