"""The lab's network: one bridge for the traffic under test, one for management, TAPs and the peer's veth.

::

    peer (guest's TAP or a veth) -- br0 -- TAP of the source machine
                                       `-- TAP of the destination machine
    management address           -- br1 -- management TAPs

With two bridges (`Topology.TWO_BRIDGES`) br0 has the peer, and a veth to each of two others, on which the machines are by turns::

    peer -- br0 -- link-a -- br-a -- TAPs of m0, m2, ...
                `- link-b -- br-b -- TAPs of m1, m3, ...

Everything is made in the lab's own namespaces through pyroute2 and goes with them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import AsyncIPRoute

from harness.errors import TestbedError
from harness.host.bridge import BridgeControl, PortFlags, port_message
from harness.host.learning import BridgeWatch
from harness.host.migration_link import LinkShape, MigrationLink
from harness.host.warden import Warden
from harness.model.scenario import Topology

__all__ = ["MANAGEMENT_HOST", "MANAGEMENT_HOST6", "Network", "Port", "PortCounters"]

BRIDGE, MANAGEMENT_BRIDGE = "br0", "br1"
HOST_BRIDGES = ("br-a", "br-b")
MANAGEMENT_HOST = "10.78.0.1"
MANAGEMENT_HOST6 = "fd78::1"
_IFA_F_NODAD = 0x02
TAP_QUEUE_FRAMES = 10_000
"""`txqueuelen` of every TAP: frames that arrive while nobody reads must wait, not be dropped, for seconds."""


@dataclass(frozen=True)
class PortCounters:
    """Counters of one interface: what the kernel sent to it, and what it dropped on the way."""

    tx_packets: int
    tx_dropped: int
    rx_packets: int
    rx_dropped: int


@dataclass(eq=False)
class Port:
    """A port of the bridge. `fds` are the TAP's queues (empty for a veth); the TAP goes when all holders closed them."""

    name: str
    ifindex: int
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Network:
    """Builds and changes the lab's network. Use as an asynchronous context manager."""

    def __init__(self, warden: Warden) -> None:
        self._warden = self.warden = warden
        self._route: AsyncIPRoute | None = None
        self._control: BridgeControl | None = None
        self._ports: list[Port] = []
        self._bridges: dict[str, int] = {}
        self._mtu = 1500
        self._topology = Topology.ONE_BRIDGE
        self.migration_link: MigrationLink | None = None

    async def __aenter__(self) -> Network:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, *, mtu: int = 1500, topology: Topology = Topology.ONE_BRIDGE, link: LinkShape | None = None) -> None:
        """Bring up loopback, the bridges, and between two hosts the migration link."""
        self._mtu = mtu
        self._topology = topology
        hosts = () if topology is Topology.ONE_BRIDGE else HOST_BRIDGES
        # The lab's own ports are wires: without IPv6 they send nothing of their own.
        await self._warden.sysctl({"ipv6/conf/default/disable_ipv6": 1})
        sock = await self._netlink_socket()
        self._route = AsyncIPRoute(use_socket=sock)
        await self._route.setup_endpoint()
        self._control = BridgeControl(await self._netlink_socket())
        await self._route.link("set", index=1, state="up")
        for name in (BRIDGE, MANAGEMENT_BRIDGE, *hosts):
            await self._route.link(
                "add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0
            )
            self._bridges[name] = await self.index_of(name)
            await self._route.link("set", index=self._bridges[name], state="up", mtu=mtu)
        for name in hosts:
            await self._join(BRIDGE, name)
        if topology is Topology.TWO_HOSTS:
            self.migration_link = MigrationLink(self._warden)
            await self.migration_link.start(self._route, shape=link or LinkShape())
        await self._route.addr("add", index=self._bridges[MANAGEMENT_BRIDGE], address=MANAGEMENT_HOST, prefixlen=24)
        await self._warden.sysctl({f"ipv6/conf/{MANAGEMENT_BRIDGE}/disable_ipv6": 0, f"ipv6/conf/{MANAGEMENT_BRIDGE}/accept_dad": 0})
        await self._route.addr(
            "add", index=self._bridges[MANAGEMENT_BRIDGE], address=MANAGEMENT_HOST6, prefixlen=64, flags=_IFA_F_NODAD
        )

    async def close(self) -> None:
        """Close the handles; the devices go with the namespaces."""
        for port in self._ports:
            port.close()
        self._ports.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._route is not None:
            route, self._route = self._route, None
            route.close()

    @property
    def control(self) -> BridgeControl:
        if self._control is None:
            raise TestbedError("the lab's network is not up")
        return self._control

    async def _netlink_socket(self) -> socket.socket:
        return await self._warden.socket(family=socket.AF_NETLINK, type=socket.SOCK_DGRAM, proto=0)

    @property
    def route(self) -> AsyncIPRoute:
        if self._route is None:
            raise TestbedError("the lab's network is not up")
        return self._route

    async def index_of(self, name: str) -> int:
        """Interface index of `name` in the lab's namespace."""
        found = await self.route.link_lookup(ifname=name)
        if not found:
            raise TestbedError(f"the lab has no interface {name!r}")
        return int(found[0])

    async def add_tap(
        self, name: str, *, bridge: str = BRIDGE, queues: int = 1, vnet_hdr_bytes: int = 12,
        flags: PortFlags | None = None,
    ) -> Port:
        """A TAP on a bridge, up; with `flags` the port has them before the first frame can pass."""
        fds = await self._warden.tap(name, queues=queues, vnet_hdr_bytes=vnet_hdr_bytes)
        port = Port(name, await self.index_of(name), fds)
        self._ports.append(port)
        await self._enslave(port, bridge, flags)
        return port

    async def _join(self, one: str, other: str) -> None:
        """A link between two bridges; its ends are ports, as any."""
        ends = (f"{one}-{other}", f"{other}-{one}")
        await self.route.link("add", ifname=ends[0], kind="veth", peer={"ifname": ends[1]})
        for name, bridge in zip(ends, (one, other), strict=True):
            port = Port(name, await self.index_of(name))
            self._ports.append(port)
            await self._enslave(port, bridge, None)

    def remove(self, port: Port) -> None:
        """Give up a port; a TAP goes when nobody else has it open."""
        port.close()
        if port in self._ports:
            self._ports.remove(port)

    def remove_named(self, name: str) -> None:
        """As `remove`, for the port of that name, if there is one."""
        for port in [port for port in self._ports if port.name == name]:
            self.remove(port)

    def bridge_of(self, machine: str) -> str:
        """The bridge on which a machine's TAP belongs; `m0`, `m1`, ... are on the hosts' by turns, where there are any."""
        number = machine.removeprefix("m")
        if self._topology is Topology.ONE_BRIDGE or not number.isdigit():
            return BRIDGE
        return HOST_BRIDGES[int(number) % 2]

    def namespace_of(self, machine: str) -> str:
        """The network namespace that a machine runs in."""
        on_a_host = self._topology is Topology.TWO_HOSTS and machine.removeprefix("m").isdigit()
        return MigrationLink.host_of(machine) if on_a_host else "lab"

    def migration_address(self, machine: str) -> str | None:
        """Where a machine listens for a migration over TCP; None for the loopback."""
        return MigrationLink.address_of(machine) if self._topology is Topology.TWO_HOSTS else None

    async def _enslave(self, port: Port, bridge: str, flags: PortFlags | None) -> None:
        # The queue's length can only be set while the device is down, and a port forwards from "up" on.
        await self.route.link("set", index=port.ifindex, txqlen=TAP_QUEUE_FRAMES, mtu=self._mtu)
        await self.route.link("set", index=port.ifindex, master=self._bridges[bridge])
        if flags is not None:
            self.control.apply([port_message(port.ifindex, flags)])
        await self.route.link("set", index=port.ifindex, state="up")

    async def add_peer_namespace(self, port_name: str, *, mac: str, addresses: list[tuple[str, int]]) -> Port:
        """A network namespace "peer" joined to the bridge by a veth; its end is called eth0."""
        await self._warden.netns("peer")
        await self._warden.sysctl(
            {"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/router_solicitations": 0}, netns="peer"
        )
        _, (netns_fd,) = await self._warden.request("netns_fd", name="peer")
        try:
            await self.route.link(
                "add", ifname=port_name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": netns_fd, "address": mac}
            )
        finally:
            os.close(netns_fd)
        port = Port(port_name, await self.index_of(port_name))
        self._ports.append(port)
        await self._enslave(port, BRIDGE, None)
        sock = await self._warden.socket(netns="peer", family=socket.AF_NETLINK, type=socket.SOCK_DGRAM, proto=0)
        async with AsyncIPRoute(use_socket=sock) as inside:
            (index,) = await inside.link_lookup(ifname="eth0")
            await inside.link("set", index=1, state="up")
            await inside.link("set", index=index, state="up", mtu=self._mtu)
            for address, prefix in addresses:
                extra: dict[str, Any] = {"flags": 0x02}  # IFA_F_NODAD
                if "." in address:
                    extra = {"broadcast": str(ipaddress.ip_interface(f"{address}/{prefix}").network.broadcast_address)}
                await inside.addr("add", index=index, address=address, prefixlen=prefix, **extra)
        return port

    async def add_peer_neighbour(self, address: str, mac: str) -> None:
        """A permanent neighbour entry in the peer's namespace."""
        sock = await self._warden.socket(netns="peer", family=socket.AF_NETLINK, type=socket.SOCK_DGRAM, proto=0)
        async with AsyncIPRoute(use_socket=sock) as inside:
            (index,) = await inside.link_lookup(ifname="eth0")
            await inside.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent")

    def set_port(self, port: Port, flags: PortFlags) -> None:
        """Change a port's flags at once (some tens of microseconds)."""
        self.control.apply([port_message(port.ifindex, flags)])

    async def watch_learning(self) -> BridgeWatch:
        """Record what the bridges learn from now on; to be closed by the caller."""

        def name_of(ifindex: int) -> str:
            return next((port.name for port in self._ports if port.ifindex == ifindex), f"interface {ifindex}")

        return BridgeWatch(await self._netlink_socket(), name_of=name_of)

    async def forwarding_entries(self, port: Port) -> list[str]:
        """MAC addresses that the bridge forwards to `port`, learned ones only."""
        entries = []
        async for entry in await self.route.fdb("dump"):
            permanent = entry["state"] & 0x80
            mac = entry.get("lladdr")
            if mac and not permanent and entry["ifindex"] == port.ifindex and entry.get("master"):
                entries.append(str(mac))
        return entries

    async def port_flags(self, port: Port) -> PortFlags:
        """What the kernel says the port's flags are."""
        async for entry in await self.route.brport("dump"):
            if entry["index"] == port.ifindex:
                info = entry.get("protinfo")
                flood = {bool(info.get(f"IFLA_BRPORT_{name}")) for name in ("UNICAST_FLOOD", "MCAST_FLOOD", "BCAST_FLOOD")}
                return PortFlags(learning=bool(info.get("IFLA_BRPORT_LEARNING")), flooding=flood == {True})
        raise TestbedError(f"{port.name} is no port of a bridge")

    async def counters(self, port: Port) -> PortCounters:
        """The interface's counters now."""
        (link,) = await self.route.link("get", index=port.ifindex)
        stats = link.get("stats64")
        return PortCounters(
            tx_packets=stats["tx_packets"], tx_dropped=stats["tx_dropped"], rx_packets=stats["rx_packets"],
            rx_dropped=stats["rx_dropped"],
        )

    async def packet_socket(self, *, protocol: int = 0) -> socket.socket:
        """An AF_PACKET socket of the lab's namespace, not yet bound."""
        return await self._warden.socket(family=socket.AF_PACKET, type=socket.SOCK_RAW, proto=protocol)
