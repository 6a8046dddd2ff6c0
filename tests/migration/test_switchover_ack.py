"""switchover-ack: no stop before the destination's word, and no harm from one that never gives it."""

from __future__ import annotations

import time

import pytest
from held import ACK, held_migration

from harness.analysis.switchover_ack import acknowledgement
from harness.errors import UsageError
from harness.model.costs import AckOrder
from harness.vm.qmp import CommandRefusedError
from harness.vm.trace import trace_events

NEVER_READY = {"requires": ["switchover-ack", "slow-device"], "qemu": "reference", "slow_device": {"prepare_ms": -1}, "management": False}
SEVERAL_PASSES = 20


def speaks(qemu, *, machine, protocol):
    """A QEMU, and the machine type that decides which protocol it speaks (from 11.1 on)."""
    marker = pytest.mark.switchover(requires=["switchover-ack"], qemu=qemu, machine=machine, management=False)
    return pytest.param(protocol, marks=marker, id=f"{qemu}-{machine}")


COUNTED = pytest.mark.parametrize(
    "protocol",
    [
        speaks("reference", machine="q35", protocol="counted"),
        speaks("10.0", machine="q35", protocol="counted"),
        speaks("11.1", machine="pc-q35-11.0", protocol="counted"),
    ],
)


def acknowledged_migration(pair):
    """Migrate once, and say when the ACK came."""
    source, begin_ns = pair.lab.mobile, time.time_ns()
    record = pair.migrate(capabilities=ACK)
    assert record.status == "completed"
    return acknowledgement(
        trace_events(source), trace_events(pair.lab.mobile), begin_ns=begin_ns, end_ns=record.resume_ns, stop_ns=record.stop_ns
    )


def all_before_the_stop(pair, *, protocol, times):
    found = [acknowledged_migration(pair) for _ in range(times)]
    assert [(ack.protocol, ack.order, ack.asked, ack.received) for ack in found] == [(protocol, AckOrder.ACK_FIRST, 0, 1)] * times


@COUNTED
def test_no_stop_before_the_ack(guest_pair, protocol):
    all_before_the_stop(guest_pair, protocol=protocol, times=3)


@pytest.mark.nightly
@COUNTED
def test_no_stop_before_the_ack_twenty_times(guest_pair, protocol):
    all_before_the_stop(guest_pair, protocol=protocol, times=20)


@pytest.mark.switchover(requires=["switchover-ack"], qemu="11.1", machine="pc-q35-11.1", management=False)
def test_with_an_ack_per_device_and_none_that_asks_there_is_nothing_to_wait_for(guest_pair):
    found = [acknowledged_migration(guest_pair) for _ in range(3)]
    assert [(ack.protocol, ack.order, ack.asked, ack.received) for ack in found] == [("per-device", AckOrder.NOT_ASKED, 0, 0)] * 3


@pytest.mark.switchover(**NEVER_READY)
def test_the_source_runs_on_until_the_destination_is_ready(guest_pair):
    async def check():
        async with held_migration(guest_pair, ACK) as held:

            async def waited():
                return await held.passes() >= SEVERAL_PASSES  # after each the source could have stopped

            await held.deadline.poll(waited, awaited="the source to walk its memory several times")
            assert (await held.status(), await held.runs()) == ("active", True)
            await held.make_ready()
            await held.completed()
        return held.acknowledgement()

    ack = guest_pair.do(check())
    assert (ack.order, ack.asked, len(ack.approved_ns), ack.received) == (AckOrder.ACK_FIRST, 1, 1, 1)
    assert ack.waited_us == 0


@pytest.mark.switchover(**NEVER_READY)
def test_a_source_that_is_told_to_start_postcopy_waits_as_well(guest_pair):
    def statuses():
        return [event.data["status"] for event in guest_pair.lab.timeline if event.name == "MIGRATION"]

    async def check():
        async with held_migration(guest_pair, (*ACK, "postcopy-ram", "events")) as held:
            await held.source.qmp.command("migrate-start-postcopy")
            began = await held.passes()

            async def waited():
                return await held.passes() >= began + SEVERAL_PASSES

            await held.deadline.poll(waited, awaited="the source to walk its memory several times")
            assert (await held.status(), await held.runs()) == ("active", True)
            assert "postcopy-active" not in statuses()
            await held.make_ready()
            await held.completed()  # in postcopy, or at once where little was left
        return held.acknowledgement()

    assert guest_pair.do(check()).order is AckOrder.ACK_FIRST


@pytest.mark.switchover(**NEVER_READY)
def test_without_the_capability_the_source_stops_for_a_destination_that_is_not_ready(guest_pair):
    async def check():
        async with held_migration(guest_pair, ("return-path",)) as held:

            # Not asked by query-status: the source answers nothing while its device state waits to be read.
            async def stopped():
                return held.stopped()

            await held.deadline.poll(stopped, awaited="the source to stop")
            assert held.acknowledgement().received_ns is None
            await held.make_ready()
            await held.completed()

    guest_pair.do(check())


@pytest.mark.switchover(**NEVER_READY)
def test_a_destination_that_never_acknowledges_costs_no_packet_and_can_be_cancelled(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as down, udp(rate_pps=1000, direction="from-guest") as up:
        record = guest_pair.migrate(capabilities=ACK, cancel_after_ms=1000)
        guest_pair.succeed("sleep 0.2")
    assert (record.status, record.stop_ns) == ("cancelled", None)
    ack = down.result.switchover_ack
    assert (ack.order, ack.asked, ack.stop_ns, ack.approved_ns) == (AckOrder.NO_ACK, 1, None, ())
    for stream in (down, up):
        assert (stream.ledger.lost, stream.ledger.duplicated, stream.ledger.ledger.unexplained) == (0, 0, 0)


@pytest.mark.switchover(requires=["switchover-ack"], qemu="reference", management=False)
def test_without_the_return_path_it_is_refused(guest_pair):
    with pytest.raises(UsageError, match="switchover-ack needs capability return-path"):
        guest_pair.migrate(capabilities=("switchover-ack",))
    with pytest.raises(CommandRefusedError, match="Capability 'switchover-ack' requires capability 'return-path'"):
        guest_pair.qmp("migrate-set-capabilities", {"capabilities": [{"capability": "switchover-ack", "state": True}]})
    assert guest_pair.qmp("query-status")["running"]


EVERYTHING = {
    "requires": ["switchover-ack", "slow-device", "virtio-iterative", "netpass"], "qemu": "reference",
    "slow_device": {"prepare_ms": 50}, "iterative_delta": True, "management": False,
}  # fmt: skip


def nothing_is_lost_with_everything_on(pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as down, udp(rate_pps=1000, direction="from-guest") as up:
        pair.succeed("sleep 0.2")
        pair.migrate(mechanism="netpass", capabilities=(*ACK, "virtio-iterative"), hold_ms=50)
        pair.succeed("sleep 0.3")
    for stream in (down, up):
        assert (stream.ledger.lost, stream.ledger.duplicated, stream.ledger.ledger.unexplained) == (0, 0, 0)
    assert down.ledger.passed > 0
    assert (down.result.switchover_ack.order, down.result.switchover_ack.asked) == (AckOrder.ACK_FIRST, 1)
    assert [cost.sent for cost in down.result.devices.devices if cost.nic == "net0"] == ["delta"]


@pytest.mark.switchover(**EVERYTHING)
def test_with_virtio_iterative_and_netpass_nothing_is_lost(guest_pair, udp):
    nothing_is_lost_with_everything_on(guest_pair, udp)


@pytest.mark.nightly
@pytest.mark.switchover(**EVERYTHING)
def test_with_virtio_iterative_and_netpass_nothing_is_lost_twenty_times(guest_pair, udp):
    for _ in range(20):
        nothing_is_lost_with_everything_on(guest_pair, udp)
