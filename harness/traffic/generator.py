"""What all generators have in common, and all generators of a run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.host.deadline import Deadline
from harness.model.scenario import TrafficKind
from harness.model.streams import TcpStream, UdpStream, Witness
from harness.traffic.endpoint import Endpoint
from harness.traffic.iperf3 import Iperf3
from harness.traffic.irtt import Irtt
from harness.traffic.ping import Ping
from harness.traffic.tcp import TcpTraffic
from harness.traffic.udp import UdpTraffic

__all__ = ["Generator", "SideBySide", "make_generators"]


class Generator(Protocol):
    """Makes one kind of traffic between the mobile guest and its peer, and leaves its raw output in the run directory."""

    async def start(self, *, deadline: Deadline) -> None:
        """Begin; on return whoever has to answer does."""

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """Stop sending, wait up to `drain_s` for what is on its way, fetch all output into `folder`.

        Returns the summaries of our own generator; a witness has none.
        """


_WITNESSES: dict[TrafficKind, type[Ping | Iperf3 | Irtt]] = {
    TrafficKind.ICMP: Ping,
    TrafficKind.IPERF3: Iperf3,
    TrafficKind.IRTT: Irtt,
}


def make_generators(
    traffic: Iterable[UdpStream | TcpStream | Witness], *, mobile: Endpoint, peer: Endpoint, nonce: int
) -> SideBySide:
    """The generators for these streams, connections and witnesses; `nonce` marks the packets of this run."""
    udp: list[UdpStream] = []
    tcp: list[TcpStream] = []
    generators: list[Generator] = []
    for each in traffic:
        match each:
            case UdpStream():
                udp.append(each)
            case TcpStream():
                tcp.append(each)
            case Witness():
                generators.append(_WITNESSES[each.kind](each, mobile=mobile, peer=peer, nonce=nonce))
    # Our own first: the account's streams are not to wait for anybody's server.
    if tcp:
        generators.insert(0, TcpTraffic(tuple(tcp), mobile=mobile, peer=peer, nonce=nonce))
    if udp:
        generators.insert(0, UdpTraffic(tuple(udp), mobile=mobile, peer=peer, nonce=nonce))
    return SideBySide(generators)


class SideBySide:
    """Several generators as one."""

    def __init__(self, generators: Sequence[Generator]) -> None:
        self._generators = tuple(generators)

    async def start(self, *, deadline: Deadline) -> None:
        await asyncio.gather(*(generator.start(deadline=deadline) for generator in self._generators))

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        stops = (generator.stop(folder, drain_s=drain_s, deadline=deadline) for generator in self._generators)
        return [summary for summaries in await asyncio.gather(*stops) for summary in summaries]
