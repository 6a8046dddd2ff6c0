"""Which traffic can't be meant: keys that mean nothing to a kind, values that contradict one another."""

from __future__ import annotations

from collections.abc import Iterator

from harness.model.scenario import TRAFFIC_DEFAULTS, Cast, Direction, Scenario, TcpMode, TrafficKind, TrafficSection
from harness.model.schema import Key, Problem

__all__ = ["traffic_problems"]


def traffic_problems(scenario: Scenario) -> Iterator[Problem]:
    """What is wrong with a scenario's traffic sections, beyond their shape."""
    taken: set[str] = set()
    for number, section in enumerate(scenario.traffic):
        yield from _check_kind(section, ("traffic", number))
        if section.cast is Cast.BROADCAST and section.ip == 6:
            yield Problem(("traffic", number, "cast"), "IPv6 has no broadcast", "take multicast, or ip = 4", section.cast)
        if section.name is None:
            continue
        ways = (Direction.TO_GUEST, Direction.FROM_GUEST) if section.direction is Direction.BOTH else ()
        names = {f"{section.name}-{way}" for way in ways} or {section.name}
        if names & taken:
            yield Problem(("traffic", number, "name"), "another stream has that name", "choose another", section.name)
        taken |= names


_KIND_KEYS = ("mode", "direction", "cast", "rate_pps", "size")
_SPOT_KINDS = (TrafficKind.ICMP, TrafficKind.IRTT)


def _check_kind(section: TrafficSection, key: Key) -> Iterator[Problem]:
    """Keys and values that mean nothing to this kind of traffic."""
    for name in _KIND_KEYS:
        value = getattr(section, name)
        if value is None or name in section.defaults:
            continue
        kinds = " or ".join(kind for kind, defaults in TRAFFIC_DEFAULTS.items() if name in defaults)
        why = ": it always asks from the peer and is answered by the guest" if name == "direction" and section.kind in _SPOT_KINDS else ""
        yield Problem((*key, name), f"means nothing to kind {section.kind}{why}", f"leave it out, or take kind {kinds}", value)
    if section.direction is Direction.ECHO and section.kind is not TrafficKind.UDP and "direction" in section.defaults:
        mend = "take to-guest, from-guest or both" + (", or mode = request" if section.kind is TrafficKind.TCP else "")
        yield Problem((*key, "direction"), f"only kind udp has an echo, not {section.kind}", mend, section.direction)
    if section.kind is TrafficKind.TCP and section.mode is TcpMode.BULK and section.size is not None and section.size % 4096:
        yield Problem((*key, "size"), "bulk data goes in blocks of 4096 bytes", "take a multiple of 4096", section.size)
