"""What a scenario's traffic sections stand for: probe streams, connections, and other people's clients as witnesses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from harness.model.addresses import BROADCAST4, MOBILE, MULTICAST_GROUP, PEER
from harness.model.scenario import Cast, Direction, TcpMode, TrafficKind, TrafficSection

__all__ = ["TcpRole", "TcpStream", "Traffic", "UdpStream", "Witness", "plan_streams", "plan_traffic"]

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


class TcpRole(StrEnum):
    """What a connection is for."""

    BULK = "bulk"
    REQUEST = "request"
    IDLE = "idle"


class TcpStream(msgspec.Struct, frozen=True, kw_only=True):
    """One connection. `direction` is the way of the data (bulk) or of the requests; the client sends them, the server listens on `port`.

    `rate_pps`: writes or requests per second; None: as fast as TCP goes. An idle connection has none.
    """

    name: str
    id: int
    role: TcpRole
    direction: Direction
    rate_pps: float | None
    size: int
    ip: int
    port: int

    @property
    def sender_is_peer(self) -> bool:
        return self.direction is Direction.TO_GUEST

    @property
    def interval_ns(self) -> int | None:
        """Between two writes or requests; None where TCP sets the pace."""
        return round(1e9 / self.rate_pps) if self.rate_pps else None

    @property
    def server(self) -> str:
        """The server's address, as `harness.analysis.tcp` writes it."""
        address = (MOBILE if self.sender_is_peer else PEER).ip(self.ip)
        return f"[{address}]:{self.port}" if self.ip == 6 else f"{address}:{self.port}"

    def sender(self) -> str:
        """The generator's `--stream` argument at the client."""
        target = MOBILE if self.sender_is_peer else PEER
        words = [f"id={self.id}", f"role=tcp-{self.role}", f"dst={target.ip(self.ip)}", f"port={self.port}"]
        if self.role is not TcpRole.IDLE:
            words.append(f"size={self.size}")
        if self.rate_pps:
            words.append(f"rate={self.rate_pps:.9g}")
        return ",".join(words)

    def receiver(self) -> str:
        """The generator's `--stream` argument at the server."""
        words = [f"id={self.id}", "role=tcp-serve", f"port={self.port}"]
        if self.ip == 6:
            words.append("src=::")
        return ",".join(words)


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """A client that others wrote. It runs at the peer and talks to the mobile guest, on `port` where it has one."""

    name: str
    id: int
    kind: TrafficKind
    direction: Direction | None
    rate_pps: float | None
    size: int
    ip: int
    port: int

    @property
    def interval_s(self) -> float | None:
        return 1 / self.rate_pps if self.rate_pps else None


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """All that a scenario's traffic sections stand for; names, ids and ports are unique."""

    udp: tuple[UdpStream, ...] = ()
    tcp: tuple[TcpStream, ...] = ()
    witnesses: tuple[Witness, ...] = ()

    @classmethod
    def of(cls, each: Iterable[UdpStream | TcpStream | Witness]) -> Traffic:
        """Sorted by what they are."""
        everything = tuple(each)
        return cls(
            udp=tuple(one for one in everything if isinstance(one, UdpStream)),
            tcp=tuple(one for one in everything if isinstance(one, TcpStream)),
            witnesses=tuple(one for one in everything if isinstance(one, Witness)),
        )

    def __iter__(self) -> Iterator[UdpStream | TcpStream | Witness]:
        yield from self.udp
        yield from self.tcp
        yield from self.witnesses


def plan_streams(sections: Sequence[TrafficSection]) -> tuple[UdpStream, ...]:
    """The probe streams that a scenario's traffic sections stand for, with unique names and ports."""
    return plan_traffic(sections).udp


def plan_traffic(sections: Sequence[TrafficSection]) -> Traffic:
    """Everything that a scenario's traffic sections stand for."""
    planned: list[UdpStream | TcpStream | Witness] = []
    taken: set[str] = set()
    for section in sections:
        for way in _ways(section):
            number = len(planned) + 1
            name = _name(section, way, number=number, taken=taken)
            taken.add(name)
            common: dict[str, Any] = {
                "name": name, "id": number, "direction": way, "rate_pps": section.rate_pps, "size": section.size or 0,
                "ip": section.ip, "port": _FIRST_PORT + number,
            }  # fmt: skip
            match section.kind:
                case TrafficKind.UDP:
                    planned.append(UdpStream(cast=section.cast or Cast.UNICAST, **common))
                case TrafficKind.TCP | TrafficKind.IDLE_TCP:
                    planned.append(TcpStream(role=_role(section), **common))
                case _:
                    planned.append(Witness(kind=section.kind, **common))
    return Traffic.of(planned)


def _ways(section: TrafficSection) -> tuple[Direction | None, ...]:
    if section.direction is Direction.BOTH:
        return (Direction.TO_GUEST, Direction.FROM_GUEST)
    return (section.direction,)


def _role(section: TrafficSection) -> TcpRole:
    if section.kind is TrafficKind.IDLE_TCP:
        return TcpRole.IDLE
    return TcpRole.REQUEST if section.mode is TcpMode.REQUEST else TcpRole.BULK


def _name(section: TrafficSection, way: Direction | None, *, number: int, taken: set[str]) -> str:
    base = section.name or str(section.kind)
    if section.name is None and section.cast not in (None, Cast.UNICAST):
        base += f"-{section.cast}"
    if section.name is None and section.mode is not None:
        base += f"-{section.mode}"
    name = base if way is None or (section.name is not None and section.direction is not Direction.BOTH) else f"{base}-{way}"
    return f"{name}-{number}" if name in taken else name
