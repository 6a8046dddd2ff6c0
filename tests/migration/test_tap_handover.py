"""tap-handover: zero loss with an unmodified QEMU."""

from __future__ import annotations

import pytest
from helpers import account

pytestmark = pytest.mark.switchover(requires=["ring-status"])


def exactly_once(stream) -> None:
    """Nothing lost, doubled, reordered or unexplained."""
    assert account(stream) == (0, 0, 0, 0), stream.result


@pytest.mark.parametrize("rate_pps", [1000, 3000])
def test_no_packet_is_lost_doubled_or_reordered(guest_pair, udp, rate_pps):
    with udp(rate_pps=rate_pps, direction="to-guest") as down, udp(rate_pps=1000, direction="from-guest") as up:
        guest_pair.succeed("sleep 0.5")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.5")
    exactly_once(down)
    exactly_once(up)
    # Of those sent while no machine ran, the last ones find the bridge moved already and need no passing.
    assert down.ledger.passed >= down.ledger.sent_by_phase["stopped"] // 2 > 0


@pytest.mark.switchover(requires=["ring-status"], peer="guest")
def test_with_a_real_guest_as_peer(guest_pair, udp):
    assert guest_pair.lab.peer_machine is not None
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream)


def test_broadcasts_are_delivered_exactly_once(guest_pair, udp):
    with udp(rate_pps=300, direction="to-guest", cast="broadcast") as stream, udp(rate_pps=500) as unicast:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream)
    exactly_once(unicast)


def test_after_a_cancel_at_the_switchover_the_sources_guest_lost_nothing(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        record = guest_pair.migrate(mechanism="tap-handover", hold_ms=150, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.5")
    assert record.status == "cancelled"
    assert (stream.ledger.lost, stream.ledger.duplicated) == (0, 0)


def test_it_works_again_after_a_cancel(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as first:
        guest_pair.migrate(mechanism="tap-handover", hold_ms=100, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.3")
    with udp(rate_pps=1000, direction="to-guest") as second:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    assert first.ledger.lost == 0
    exactly_once(second)


def test_ipv6_and_large_datagrams(guest_pair, udp):
    with udp(rate_pps=500, size=1400, ip=6) as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream)
