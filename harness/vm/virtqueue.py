"""What a guest really received, read from the outside: the receive ring of its virtio-net device.

Sources: `x-query-virtio-queue-status` (QEMU >= 7.2) gives the used index (buffers handed to the guest, modulo 65536) and
the ring's address; the used ring itself holds the written length of each of the last `size` buffers. Both
stand still while the machine is stopped.

With vhost it is the host's kernel that hands buffers to the guest. QEMU learns the index only when vhost stops, so it is read from the ring itself, in
the guest's memory, where vhost writes it; and no filter of QEMU's stands before the guest.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import FeatureLackError, TestbedError
from harness.vm.machine import Machine
from harness.vm.qmp import CommandRefusedError

__all__ = ["ReceiveFilter", "ReceiveRing", "read_receive_filter", "read_receive_ring", "works_by_vhost"]

_COMMAND = "x-query-virtio-queue-status"


@dataclass(frozen=True)
class ReceiveRing:
    """The used side of one receive queue. `lengths`: bytes written into each of the last buffers, oldest first."""

    used_index: int
    size: int
    lengths: tuple[int, ...] = ()


def works_by_vhost(machine: Machine, *, nic: str) -> bool:
    """Whether the host's kernel works the rings of this NIC while the guest runs."""
    return any(each.vhost for each in machine.spec.nics if each.id == nic)


async def read_receive_ring(machine: Machine, *, nic: str, pair: int = 0, lengths: bool = False) -> ReceiveRing:
    """The receive ring of queue pair `pair`. With `lengths` the used ring is read as well (the machine must be stopped).

    `FeatureLackError` where QEMU can't be asked (before 7.2, or another device model).
    """
    path = f"/machine/peripheral/{nic}/virtio-backend"
    try:
        status = await machine.qmp.command(_COMMAND, path=path, queue=2 * pair)
    except CommandRefusedError as error:
        raise FeatureLackError(
            f"{machine.spec.name} can't tell what the guest received: {error.reason}",
            hint=f"use a QEMU with {_COMMAND} (7.2 or newer) and a split virtqueue",
        ) from error
    used, size = int(status["used-idx"]), int(status["vring-num"])
    vhost = works_by_vhost(machine, nic=nic)
    if not lengths and not vhost:
        return ReceiveRing(used, size)
    memory = await machine.guest_memory(int(status["vring-used"]), 4 + (8 * size if lengths else 0))
    _, index = struct.unpack_from("<HH", memory)
    if not lengths:
        return ReceiveRing(index, size)
    if vhost:
        used = index
    if index != used:
        raise TestbedError(f"the used ring says {index}, QEMU says {used}: {machine.spec.name} was not stopped")
    entries = struct.unpack_from(f"<{2 * size}I", memory, 4)[1::2]
    start = used % size
    return ReceiveRing(used, size, entries[start:] + entries[:start])


@dataclass(frozen=True)
class ReceiveFilter:
    """Which frames the device lets through to the guest (virtio-net's own filter; what it refuses uses no buffer)."""

    promiscuous: bool
    main_mac: bytes
    unicast: str
    multicast: str
    unicast_table: frozenset[bytes]
    multicast_table: frozenset[bytes]

    def passes(self, frame: bytes) -> bool:
        """Whether a frame (from its Ethernet header on) reaches the guest."""
        if self.promiscuous:
            return True
        destination = frame[:6]
        if destination[0] & 1:
            if destination == b"\xff" * 6:
                # QEMU answers broadcast-allowed with its flag *against* broadcasts (seen in 7.2 and 10.0); no Linux
                # driver sets it, so broadcasts pass.
                return True
            return self.multicast == "all" or (self.multicast == "normal" and destination in self.multicast_table)
        if self.unicast == "none":
            return False
        return self.unicast == "all" or destination == self.main_mac or destination in self.unicast_table


def _macs(texts: Sequence[str]) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(text.replace(":", "")) for text in texts)


async def read_receive_filter(machine: Machine, *, nic: str) -> ReceiveFilter:
    """The device's receive filter as it is now. Guests with VLAN filtering are let through by the main table only.

    With vhost there is none: the kernel hands over whatever reaches the TAP.
    """
    if works_by_vhost(machine, nic=nic):
        return ReceiveFilter(
            promiscuous=True, main_mac=bytes(6), unicast="all", multicast="all", unicast_table=frozenset(), multicast_table=frozenset()
        )
    (info,) = await machine.qmp.command("query-rx-filter", name=nic)
    return ReceiveFilter(
        promiscuous=info["promiscuous"],
        main_mac=bytes.fromhex(info["main-mac"].replace(":", "")),
        unicast="all" if info["unicast-overflow"] else info["unicast"],
        multicast="all" if info["multicast-overflow"] else info["multicast"],
        unicast_table=_macs(info["unicast-table"]),
        multicast_table=_macs(info["multicast-table"]),
    )
