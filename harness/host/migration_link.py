"""A migration link between two hosts: each a network namespace of its own, with a router between them that limits the rate.

::

    host-a 10.79.0.1 -- 10.79.0.254 wan 10.79.1.254 -- 10.79.1.1 host-b

The machines run in the hosts by turns; their TAPs stay where the bridges are. Rate by tbf; delay and loss, with the rate, by netem. Where the kernel
has no netem, a relay in user space takes the router's place (`harness.host.relay`): one subnet then, and tbf for the rate.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from pyroute2 import AsyncIPRoute

from harness.errors import EnvironmentLackError, TestbedError
from harness.host.deadline import Deadline
from harness.host.relay import plain_wire
from harness.host.warden import Warden

__all__ = ["LinkQueue", "LinkShape", "MigrationLink", "queue_words", "read_queues"]

HOSTS = ("host-a", "host-b")
_ROUTER = "wan"
_CALL_S = 10.0
_SEED = 1
"""Of what the relay loses: the same in every lab."""


class LinkShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the router does to each direction. `mbit_s`: None for as fast as it goes."""

    mbit_s: float | None = None
    delay_ms: float = 0.0
    loss_percent: float = 0.0


class LinkQueue(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says of one direction's queue. `delay_ms` and `loss_percent`: as it was set, 0 where the kind has none; `frames`: those that went out."""

    towards: str
    kind: str
    delay_ms: float = 0.0
    loss_percent: float = 0.0
    frames: int
    dropped: int

    def __str__(self) -> str:
        shape = "".join((f", {self.delay_ms:g} ms" if self.delay_ms else "", f", {self.loss_percent:g} % loss" if self.loss_percent else ""))
        return f"{self.kind}{shape} towards {self.towards}: {self.frames} frames, {self.dropped} dropped"


def read_queues(text: bytes) -> list[LinkQueue]:
    """The router's queues from what `tc -s -j qdisc show` printed; those without a discipline are left out."""
    found = []
    for each in msgspec.json.decode(text):
        name, kind, options = each["dev"], each["kind"], each.get("options", {})
        if not each.get("root") or kind == "noqueue" or name.removeprefix("to-") not in HOSTS:
            continue
        found.append(
            LinkQueue(
                towards=name.removeprefix("to-"), kind=kind, delay_ms=round(1e3 * options.get("delay", {}).get("delay", 0.0), 3),
                loss_percent=round(1e2 * options.get("loss-random", {}).get("loss", 0.0), 4), frames=each["packets"], dropped=each["drops"],
            )
        )
    return sorted(found, key=lambda queue: queue.towards)


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


def _tc() -> str:
    program = shutil.which("tc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise EnvironmentLackError("the migration link can't be shaped: there is no tc", hint="apt-get install iproute2")
    return program


class MigrationLink:
    """Made by `start`; goes with the lab's namespaces. `relayed`: delay and loss come from a relay in user space."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self.relayed = False
        self._shaped = False
        self._queues: dict[str, LinkQueue] = {}

    async def start(self, route: AsyncIPRoute, *, shape: LinkShape, mtu: int = 1500) -> None:
        """Bring the link up. `EnvironmentLackError` where this kernel can't shape it so."""
        for name in (*HOSTS, _ROUTER):
            await self._warden.netns(name)
        await self._warden.sysctl({"ipv4/ip_forward": 1}, netns=_ROUTER)
        descriptors = {name: (await self._warden.request("netns_fd", name=name))[1][0] for name in (*HOSTS, _ROUTER)}
        try:
            for host in HOSTS:
                await route.link(
                    "add", ifname=f"to-{host}", kind="veth", mtu=mtu, net_ns_fd=descriptors[_ROUTER],
                    peer={"ifname": "eth0", "net_ns_fd": descriptors[host], "mtu": mtu},
                )
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
        words = queue_words(shape)
        self._shaped = bool(words)
        refused = await self._shape(words) if words else ""
        self.relayed = bool(refused) and words[0] == "netem"
        if refused and not self.relayed:
            raise EnvironmentLackError(f"the migration link can't be shaped: {refused}", hint="modprobe sch_tbf, or leave network.link_mbit_s out")
        if self.relayed and shape.mbit_s and (refused := await self._shape(queue_words(LinkShape(mbit_s=shape.mbit_s)))):
            raise EnvironmentLackError(f"the migration link can't be shaped: {refused}", hint="modprobe sch_tbf, or leave network.link_mbit_s out")
        prefix = 16 if self.relayed else 24
        for number, host in enumerate(HOSTS):
            gateway = f"10.79.{number}.254"
            await self._configure(_ROUTER, f"to-{host}", None if self.relayed else gateway, prefix=prefix, gateway=None)
            await self._configure(host, "eth0", self.address_of(f"m{number}"), prefix=prefix, gateway=None if self.relayed else gateway)
        if self.relayed:
            await self._relay(shape)

    async def _socket(self, netns: str, family: int = socket.AF_NETLINK) -> socket.socket:
        return await self._warden.socket(netns=netns, family=family, type=socket.SOCK_DGRAM, proto=0)

    async def _configure(self, netns: str, name: str, address: str | None, *, prefix: int, gateway: str | None) -> None:
        async with AsyncIPRoute(use_socket=await self._socket(netns)) as inside:
            (index,) = await inside.link_lookup(ifname=name)
            await inside.link("set", index=1, state="up")
            await inside.link("set", index=index, state="up")
            if address is not None:
                await inside.addr("add", index=index, address=address, prefixlen=prefix)
            if gateway is not None:
                await inside.route("add", dst="default", gateway=gateway)

    async def _shape(self, words: Sequence[str]) -> str:
        """Shape both directions; what the kernel said where it refused."""
        for host in HOSTS:
            process = await self._warden.spawn("tc", [_tc(), "qdisc", "replace", "dev", f"to-{host}", "root", *words], netns=_ROUTER)
            if await process.wait(Deadline(_CALL_S)) != 0:
                return process.error(f"tc refused {words[0]}").message
        return ""

    async def queues(self) -> list[LinkQueue]:
        """What the kernel's queues did since this was last asked, one for each direction; empty where it shapes nothing.

        `TestbedError` where tc can't say it.
        """
        if not self._shaped:
            return []
        process = await self._warden.spawn("tc", [_tc(), "-s", "-j", "qdisc", "show"], netns=_ROUTER)
        if await process.wait(Deadline(_CALL_S)) != 0:
            raise process.error("tc can't show the migration link's queues")
        before, now = self._queues, {queue.towards: queue for queue in read_queues(process.read_output())}
        self._queues = now
        return [
            msgspec.structs.replace(queue, frames=queue.frames - before[name].frames, dropped=queue.dropped - before[name].dropped)
            if name in before else queue
            for name, queue in now.items()
        ]  # fmt: skip

    async def _relay(self, shape: LinkShape) -> None:
        for host in HOSTS:
            for netns, name in ((host, "eth0"), (_ROUTER, f"to-{host}")):
                with await self._socket(netns, socket.AF_INET) as sock:
                    plain_wire(sock, name)
        script = Path(__file__).with_name("relay.py")
        words = [f"{shape.delay_ms:g}", f"{shape.loss_percent:g}", str(_SEED)]
        await self._warden.spawn("relay", [sys.executable, "-I", "-S", str(script), *(f"to-{host}" for host in HOSTS), *words], netns=_ROUTER)

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
