"""netpass when something dies: the account is complete, nobody hangs, and the guest goes on where one can."""

from __future__ import annotations

import pytest
from helpers import accounted, exactly_once

pytestmark = pytest.mark.switchover(requires=["netpass"], qemu="reference")

MODES = ["precopy", "postcopy"]


@pytest.mark.parametrize(
    ("at", "mode"), [("active", "precopy"), ("stopped", "precopy"), ("stopped", "postcopy"), ("switchover", "precopy")]
)
def test_the_destination_dies_before_it_starts(guest_pair, udp, at, mode):
    fault = {"action": "kill-destination", "at": at}
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=80, fault=fault)
        if record.survivor:
            guest_pair.succeed("sleep 0.2")
    if at == "switchover":
        # On its way to the start: who is faster decides, but it must be clear who was.
        assert (record.status, record.survivor) in (("failed", "source"), ("completed", ""))
        if not record.survivor:
            return  # the records went with the guest
    assert (record.status, record.survivor) == ("failed", "source")
    exactly_once(stream)
    assert guest_pair.succeed("echo alive") == "alive\n"


@pytest.mark.parametrize("mode", MODES)
def test_the_destination_dies_when_it_has_just_said_resume(guest_pair, udp, mode):
    """Before its VM_STARTED came the source goes on, after it nobody can: both are clear, and complete in the account."""
    fault = {"action": "kill-destination", "at": "started"}
    with udp(rate_pps=1000, direction="echo") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=80, fault=fault)
        if record.survivor:
            assert guest_pair.succeed("sleep 0.2; echo alive") == "alive\n"
    accounted(stream)
    assert record.survivor == ("source" if record.status == "failed" else "")


@pytest.mark.parametrize("mode", MODES)
def test_the_destination_dies_after_the_switchover(guest_pair, udp, mode):
    fault = {"action": "kill-destination", "at": "started", "after_ms": 400}
    with udp(rate_pps=1000, direction="echo") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=80, fault=fault)
    assert record.survivor == ""
    assert record.status in ("completed", "postcopy-paused")
    accounted(stream)
    assert stream.ledger.lost > 0


@pytest.mark.parametrize(("at", "mode"), [("active", "precopy"), ("stopped", "precopy"), ("stopped", "postcopy")])
def test_the_source_dies_before_the_destination_starts(guest_pair, udp, at, mode):
    fault = {"action": "kill-source", "at": at}
    with udp(rate_pps=1000, direction="echo") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=80, fault=fault)
    assert (record.status, record.survivor) == ("source-died", "")
    accounted(stream)
    assert stream.ledger.lost > 0


def test_the_source_dies_after_the_destination_started(guest_pair, udp):
    fault = {"action": "kill-source", "at": "started"}
    hold_back = {"netpass-hold-back": 500}
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", hold_ms=80, fault=fault, parameters=hold_back)
        assert guest_pair.succeed("sleep 0.7; echo alive") == "alive\n"
    assert record.survivor == "destination"
    accounted(stream)
    assert stream.ledger.duplicated == 0


def test_a_destination_that_hangs_does_not_hang_the_source(guest_pair, udp):
    """The source waits for VM_STARTED no longer than its limit, and sends what it has; what arrives after that is lost, and said to be."""
    fault = {"action": "freeze-destination", "at": "stopped", "for_ms": 2000}
    limit = {"netpass-wait-limit": 200, "downtime-limit": 10}
    with udp(rate_pps=300, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        # A TCP connection takes the little that is left of the guest's memory, while nobody reads; a UNIX socket would block the source.
        record = guest_pair.migrate(mechanism="netpass", transport="tcp", hold_ms=80, fault=fault, parameters=limit)
        assert guest_pair.succeed("sleep 0.2; echo alive") == "alive\n"
    assert (record.status, record.survivor) == ("completed", "destination")
    accounted(stream)
    assert stream.ledger.duplicated == 0
    assert stream.ledger.passed > 0
    assert stream.ledger.lost > 0
    assert stream.result.figures["netpass-source-timed-out"] == 1
