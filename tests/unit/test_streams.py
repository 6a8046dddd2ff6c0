"""Streams from traffic sections, and the generator's arguments."""

from __future__ import annotations

from harness.model.scenario import Cast, Direction, TrafficSection
from harness.model.streams import plan_streams


def test_both_ways_are_two_streams_with_ports_of_their_own():
    down, up = plan_streams([TrafficSection(direction=Direction.BOTH, rate_pps=1000)])
    assert (down.name, up.name) == ("udp-to-guest", "udp-from-guest")
    assert down.port != up.port
    assert (down.sender_is_peer, up.sender_is_peer) == (True, False)


def test_names_are_unique():
    names = [s.name for s in plan_streams([TrafficSection(), TrafficSection(), TrafficSection(name="x", direction=Direction.ECHO)])]
    assert len(set(names)) == len(names)
    assert "x" in names


def test_the_generators_words():
    (stream,) = plan_streams([TrafficSection(direction=Direction.TO_GUEST, rate_pps=2.5, size=64)])
    assert stream.sender() == f"id=1,role=send,dst=10.77.0.2,port={stream.port},size=64,rate=2.5,cast=unicast"
    assert stream.receiver() == f"id=1,role=receive,port={stream.port},cast=unicast"
    (cast,) = plan_streams([TrafficSection(direction=Direction.TO_GUEST, cast=Cast.BROADCAST)])
    assert "dst=10.77.0.255" in cast.sender()
    assert "ifname=eth0,src=10.77.0.1" in cast.sender()
    (echo,) = plan_streams([TrafficSection(direction=Direction.ECHO, ip=6)])
    assert echo.sender().endswith("echo=1")
    assert "role=echo" in echo.receiver()
    assert "dst=fd77::2" in echo.sender()
