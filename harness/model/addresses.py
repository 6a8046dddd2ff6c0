"""The lab's addresses. Every lab is a world of its own, so all labs use the same ones."""

from __future__ import annotations

import ipaddress

import msgspec

__all__ = ["LAB_NETWORKS", "MOBILE", "MULTICAST_GROUP", "PEER", "Addresses"]


class Addresses(msgspec.Struct, frozen=True):
    """Addresses of one end. `management` is the guest's address on the management network."""

    mac: str
    ip4: str
    ip6: str
    management: str
    management_mac: str

    def ip(self, version: int) -> str:
        return self.ip4 if version == 4 else self.ip6


PREFIX4, PREFIX6 = 24, 64
BROADCAST4 = "10.77.0.255"
MULTICAST_GROUP = {4: "239.77.0.1", 6: "ff15::77"}
MOBILE = Addresses("52:54:00:77:00:02", "10.77.0.2", "fd77::2", "10.78.0.2", "52:54:00:78:00:02")
PEER = Addresses("52:54:00:77:00:01", "10.77.0.1", "fd77::1", "10.78.0.3", "52:54:00:78:00:03")
LAB_NETWORKS = tuple(map(ipaddress.ip_network, ("10.77.0.0/16", "10.78.0.0/16", "10.79.0.0/16", "fd77::/16", "fd78::/16")))
"""Every unicast address of a lab is in one of these: anything else in a log or a capture comes from outside."""
