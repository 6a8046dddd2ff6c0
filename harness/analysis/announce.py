"""How the network learns where the guest is now: announcements and the guest's first frame, found in captures."""

from __future__ import annotations

from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import ARP, ICMPV6, IPV6, RARP, Columns
from harness.analysis.pcapng import INBOUND

_NEIGHBOUR_ADVERTISEMENT = 136
_ALL_NODES_HI, _ALL_NODES_LO = 0xFF02 << 48, 1


class AnnouncementKind(StrEnum):
    RARP = "rarp"
    """QEMU's self-announcement, and the kernel's way for some drivers."""
    ARP = "gratuitous-arp"
    """ARP whose sender and target address are the same."""
    NEIGHBOUR = "unsolicited-na"
    """A neighbour advertisement to all nodes (RFC 4861, 7.2.6)."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    kind: AnnouncementKind
    time_ns: int
    mac: str


def mac_number(mac: str) -> int:
    """`52:54:00:12:34:56` as the number that columns hold."""
    return int(mac.replace(":", ""), 16)


def mac_text(number: int) -> str:
    return ":".join(f"{number:012x}"[at : at + 2] for at in range(0, 12, 2))


def find_announcements(
    columns: Columns, *, mac: str | None = None, direction: int = INBOUND
) -> tuple[Announcement, ...]:
    """Announcements in order of capture; `mac`: only that sender's. Of a TAP, or `OUTBOUND` of a port."""
    mine = columns.direction == direction
    if mac is not None:
        mine &= columns.source_mac == mac_number(mac)
    kinds = {
        AnnouncementKind.RARP: columns.ethertype == RARP,
        AnnouncementKind.ARP: (columns.ethertype == ARP)
        & (columns.source_lo == columns.destination_lo)
        & (columns.source_lo != 0),
        AnnouncementKind.NEIGHBOUR: (columns.ethertype == IPV6)
        & (columns.protocol == ICMPV6)
        & (columns.source_port == _NEIGHBOUR_ADVERTISEMENT)
        & (columns.destination_hi == np.uint64(_ALL_NODES_HI))
        & (columns.destination_lo == np.uint64(_ALL_NODES_LO)),
    }
    found = [(int(row), kind) for kind, mask in kinds.items() for row in np.flatnonzero(mine & mask)]
    return tuple(
        Announcement(kind=kind, time_ns=int(columns.time_ns[row]), mac=mac_text(int(columns.source_mac[row])))
        for row, kind in sorted(found)
    )


def first_frame_ns(columns: Columns, *, mac: str, after_ns: int = 0) -> int | None:
    """When the guest with that address was first heard on the port captured: the end of the phase `unannounced`."""
    mine: NDArray[np.bool_] = (columns.direction == INBOUND) & (columns.source_mac == mac_number(mac))
    times = columns.time_ns[mine & (columns.time_ns >= after_ns)]
    return int(times.min()) if times.size else None
