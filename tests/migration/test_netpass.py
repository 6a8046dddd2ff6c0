"""netpass: the source passes what arrived in the switchover; skipped where QEMU lacks it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.switchover(requires=["netpass"], qemu="reference")

HOLD_BACK = {"netpass-hold-back": 500}


@pytest.mark.parametrize("mode", ["precopy", "postcopy"])
def test_no_packet_is_lost_or_doubled(guest_pair, udp, mode):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100)
        guest_pair.succeed("sleep 0.5")
    ledger = stream.ledger
    assert (ledger.lost, ledger.duplicated, ledger.ledger.unexplained) == (0, 0, 0)
    assert ledger.passed >= 80


def test_with_hold_back_nothing_is_reordered(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="netpass", hold_ms=100, parameters=HOLD_BACK)
        guest_pair.succeed("sleep 0.5")
    ledger = stream.ledger
    assert (ledger.lost, ledger.duplicated, ledger.reordered) == (0, 0, 0)


def test_after_a_cancel_the_source_lost_nothing_and_it_works_again(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as first:
        guest_pair.succeed("sleep 0.3")
        record = guest_pair.migrate(mechanism="netpass", hold_ms=100, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.3")
    assert record.status == "cancelled"
    assert (first.ledger.lost, first.ledger.duplicated) == (0, 0)
    with udp(rate_pps=1000, direction="to-guest") as second:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="netpass", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    assert (second.ledger.lost, second.ledger.duplicated) == (0, 0)
