"""A migration link between two hosts: each a network namespace of its own, with a router between them that limits the rate.

::

    host-a 10.79.0.1 -- 10.79.0.254 wan 10.79.1.254 -- 10.79.1.1 host-b

The machines run in the hosts by turns; their TAPs stay where the bridges are. Rate by tbf; delay and loss, with the rate, by netem.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import msgspec
from pyroute2 import AsyncIPRoute

from harness.errors import EnvironmentLackError, TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import Warden

__all__ = ["LinkShape", "MigrationLink", "queue_words"]

HOSTS = ("host-a", "host-b")
_ROUTER = "wan"
_CALL_S = 10.0


class LinkShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the router does to each direction. `mbit_s`: None for as fast as it goes."""

    mbit_s: float | None = None
    delay_ms: float = 0.0
    loss_percent: float = 0.0


def queue_words(shape: LinkShape) -> list[str]:
    """The queueing discipline of one direction, as `tc` takes it; empty when there is nothing to shape."""
    if shape.delay_ms or shape.loss_percent:
        words = ["netem"]
        if shape.delay_ms:
            words += ["delay", f"{shape.delay_ms:g}ms"]
        if shape.loss_percent:
            words += ["loss", f"{shape.loss_percent:g}%"]
        return [*words, "limit", "100000", *(["rate", f"{shape.mbit_s:g}mbit"] if shape.mbit_s else [])]
    if shape.mbit_s:
        return ["tbf", "rate", f"{shape.mbit_s:g}mbit", "burst", "256kb", "latency", "100ms"]
    return []


class MigrationLink:
    """Made by `start`; goes with the lab's namespaces."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden

    async def start(self, route: AsyncIPRoute, *, shape: LinkShape, mtu: int = 1500) -> None:
        """Bring the link up. `EnvironmentLackError` where this kernel can't shape it so."""
        for name in (*HOSTS, _ROUTER):
            await self._warden.netns(name)
        await self._warden.sysctl({"ipv4/ip_forward": 1}, netns=_ROUTER)
        descriptors = {name: (await self._warden.request("netns_fd", name=name))[1][0] for name in (*HOSTS, _ROUTER)}
        try:
            for number, host in enumerate(HOSTS):
                await route.link(
                    "add", ifname=f"to-{host}", kind="veth", mtu=mtu, net_ns_fd=descriptors[_ROUTER],
                    peer={"ifname": "eth0", "net_ns_fd": descriptors[host], "mtu": mtu},
                )
                await self._configure(_ROUTER, f"to-{host}", f"10.79.{number}.254", gateway=None)
                await self._configure(host, "eth0", f"10.79.{number}.1", gateway=f"10.79.{number}.254")
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
        if words := queue_words(shape):
            for host in HOSTS:
                await self._shape(["qdisc", "add", "dev", f"to-{host}", "root", *words])

    async def _configure(self, netns: str, name: str, address: str, *, gateway: str | None) -> None:
        sock = await self._warden.socket(netns=netns, family=16, type=2, proto=0)  # AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE
        async with AsyncIPRoute(use_socket=sock) as inside:
            (index,) = await inside.link_lookup(ifname=name)
            await inside.link("set", index=1, state="up")
            await inside.link("set", index=index, state="up")
            await inside.addr("add", index=index, address=address, prefixlen=24)
            if gateway is not None:
                await inside.route("add", dst="default", gateway=gateway)

    async def _shape(self, words: Sequence[str]) -> None:
        program = shutil.which("tc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise EnvironmentLackError("the migration link can't be shaped: there is no tc", hint="apt-get install iproute2")
        process = await self._warden.spawn("tc", [program, *words], netns=_ROUTER)
        if await process.wait(Deadline(_CALL_S)) != 0:
            kind = words[5]
            raise EnvironmentLackError(
                f"this kernel has no {kind}, which the migration link needs: {process.error('it was refused').message}",
                hint=f"modprobe sch_{kind}, or leave network.link_delay_ms and network.link_loss_percent out: a rate alone needs sch_tbf",
            )

    @staticmethod
    def host_of(machine: str) -> str:
        """The host that a machine (`m0`, `m1`, ...) runs on."""
        number = machine.removeprefix("m")
        if not number.isdigit():
            raise TestbedError(f"{machine} is on no host of the migration link")
        return HOSTS[int(number) % 2]

    @staticmethod
    def address_of(machine: str) -> str:
        """Where a machine's host is reached."""
        return f"10.79.{HOSTS.index(MigrationLink.host_of(machine))}.1"
