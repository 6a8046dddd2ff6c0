"""UDP probe streams: numbered packets on schedule, recorded at both ends by the guest traffic generator (swgen)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from harness.host.deadline import Deadline
from harness.model.addresses import BROADCAST4, MOBILE, MULTICAST_GROUP, PEER
from harness.model.scenario import Cast, Direction, TrafficSection
from harness.traffic.endpoint import Endpoint, Running

__all__ = ["UdpStream", "UdpTraffic", "plan_streams"]

_FIRST_PORT = 7000


class UdpStream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of probes. `direction` is never `both` here; `port` is the receiver's."""

    name: str
    id: int
    direction: Direction
    cast: Cast
    rate_pps: float
    size: int
    ip: int
    port: int

    @property
    def sender_is_peer(self) -> bool:
        return self.direction in (Direction.TO_GUEST, Direction.ECHO)

    @property
    def interval_ns(self) -> int:
        return round(1e9 / self.rate_pps)

    def sender(self) -> str:
        """The generator's `--stream` argument at the sending end."""
        target = MOBILE if self.sender_is_peer else PEER
        origin = PEER if self.sender_is_peer else MOBILE
        destination = {
            Cast.UNICAST: target.ip(self.ip), Cast.BROADCAST: BROADCAST4, Cast.MULTICAST: MULTICAST_GROUP[self.ip],
        }[self.cast]
        words = [
            f"id={self.id}", "role=send", f"dst={destination}", f"port={self.port}", f"size={self.size}",
            f"rate={self.rate_pps:.9g}", f"cast={self.cast}",
        ]
        if self.cast is not Cast.UNICAST:
            words += ["ifname=eth0", f"src={origin.ip(self.ip)}"]
        if self.direction is Direction.ECHO:
            words.append("echo=1")
        return ",".join(words)

    def receiver(self) -> str:
        """The generator's `--stream` argument at the receiving end."""
        role = "echo" if self.direction is Direction.ECHO else "receive"
        words = [f"id={self.id}", f"role={role}", f"port={self.port}", f"cast={self.cast}"]
        if self.cast is Cast.MULTICAST:
            words += [f"dst={MULTICAST_GROUP[self.ip]}", "ifname=eth0"]
        elif self.ip == 6:
            words.append("src=::")
        return ",".join(words)


def plan_streams(sections: Sequence[TrafficSection]) -> tuple[UdpStream, ...]:
    """The streams that a scenario's traffic sections stand for, with unique names and ports."""
    streams: list[UdpStream] = []
    for section in sections:
        ways = [section.direction]
        if section.direction is Direction.BOTH:
            ways = [Direction.TO_GUEST, Direction.FROM_GUEST]
        for way in ways:
            number = len(streams) + 1
            base = section.name or (section.kind if section.cast is Cast.UNICAST else f"{section.kind}-{section.cast}")
            name = f"{base}-{way}" if len(ways) > 1 or section.name is None else base
            if any(stream.name == name for stream in streams):
                name = f"{name}-{number}"
            streams.append(
                UdpStream(
                    name=name, id=number, direction=way, cast=section.cast, rate_pps=section.rate_pps,
                    size=section.size, ip=section.ip, port=_FIRST_PORT + number,
                )
            )
    return tuple(streams)


@dataclass(eq=False)
class UdpTraffic:
    """All UDP streams of a run. Receivers are up before the first packet is sent and stay until the last one had time to arrive."""

    streams: tuple[UdpStream, ...]
    mobile: Endpoint
    peer: Endpoint
    nonce: int = field(default_factory=lambda: secrets.randbits(32))
    _senders: list[Running] = field(default_factory=list)
    _receivers: list[Running] = field(default_factory=list)

    async def start(self, *, deadline: Deadline) -> None:
        """Start receivers, then senders; returns when all send."""
        to_guest = [stream for stream in self.streams if stream.sender_is_peer]
        from_guest = [stream for stream in self.streams if not stream.sender_is_peer]
        self._receivers = await self._launch(
            deadline, "receive", (self.mobile, [s.receiver() for s in to_guest]), (self.peer, [s.receiver() for s in from_guest])
        )
        self._senders = await self._launch(
            deadline, "send", (self.peer, [s.sender() for s in to_guest]), (self.mobile, [s.sender() for s in from_guest])
        )

    async def _launch(
        self, deadline: Deadline, what: str, *work: tuple[Endpoint, list[str]]
    ) -> list[Running]:
        async def one(endpoint: Endpoint, streams: list[str]) -> Running:
            arguments = ["--nonce", str(self.nonce)]
            for stream in streams:
                arguments += ["--stream", stream]
            running = await endpoint.start(f"{what}-{self.nonce:08x}", arguments)
            await running.ready(deadline=deadline)
            return running

        return list(await asyncio.gather(*(one(endpoint, streams) for endpoint, streams in work if streams)))

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """Stop sending, wait `drain_s` for what is on its way, fetch all records into `folder`; the generators' summaries."""
        await asyncio.gather(*(sender.stop_sending() for sender in self._senders))
        await asyncio.sleep(drain_s)
        summaries = await asyncio.gather(
            *(running.finish(folder, deadline=deadline) for running in (*self._senders, *self._receivers))
        )
        return list(summaries)
