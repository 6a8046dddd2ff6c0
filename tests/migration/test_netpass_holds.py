"""netpass over short and long stops: every packet exactly once, and in order where newer ones are held back.

    pytest tests/migration/test_netpass_holds.py -m nightly --switchover-repeat 5
"""

from __future__ import annotations

import pytest
from helpers import exactly_once

pytestmark = [pytest.mark.nightly, pytest.mark.switchover(requires=["netpass"], qemu="reference")]

HOLDS_MS = [5, 50, 150, 500]


@pytest.mark.parametrize("hold_ms", HOLDS_MS)
@pytest.mark.parametrize("mode", ["precopy", "postcopy"])
@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "hold-back"])
def test_every_packet_exactly_once(guest_pair, udp, mode, hold_ms, ordered):
    parameters = {"netpass-hold-back": 2000} if ordered else {}
    with udp(rate_pps=1000, direction="to-guest") as down, udp(rate_pps=500, direction="from-guest") as up:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=hold_ms, parameters=parameters)
        guest_pair.succeed("sleep 0.3")
    exactly_once(down, ordered=ordered)
    exactly_once(up, ordered=ordered)
    assert down.ledger.passed > 0
    assert down.result.figures["netpass-destination-hold-expired"] == 0
