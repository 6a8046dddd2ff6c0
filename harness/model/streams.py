"""The probe streams that a scenario's traffic sections stand for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harness.model.addresses import BROADCAST4, MOBILE, MULTICAST_GROUP, PEER
from harness.model.scenario import Cast, Direction, TrafficSection

__all__ = ["UdpStream", "plan_streams"]

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
