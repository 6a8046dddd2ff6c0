"""netpass: the source passes what arrived in the switchover; skipped where QEMU lacks it."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from helpers import accounted, exactly_once

from harness.analysis.columns import PROBE, read_capture
from harness.analysis.pcapng import OUTBOUND
from harness.errors import MigrationError
from harness.store.frames import read_frames

pytestmark = pytest.mark.switchover(requires=["netpass"], qemu="reference")

HOLD_BACK = {"netpass-hold-back": 500}
MODES = ["precopy", "postcopy"]


def figure(stream, side: str, name: str) -> float:
    """One of QEMU's own figures of netpass, as it stands in the result."""
    return stream.result.figures[f"netpass-{side}-{name}"]


def undelivered(pair):
    """What was sent to the source's TAP and did not reach its guest."""
    return read_frames(pair.run_directory / "capture/undelivered.pcapng")


def frames_at_the_taps(pair):
    """The probes that were sent to each machine's TAP, in structured arrays with `stream`, `seq` and `time_ns`."""
    found = {}
    for side in ("source", "destination"):
        columns = read_capture(pair.run_directory / f"capture/{side}.pcapng").columns
        mine = (columns.probe == PROBE) & (columns.direction == OUTBOUND)
        fields = [columns.probe_stream[mine], columns.probe_seq[mine], columns.time_ns[mine]]
        found[side] = np.rec.fromarrays(fields, names="stream,seq,time_ns")
    return found


def at_both(frames):
    """How many probes the network sent to both TAPs."""
    return np.intersect1d(*(side[["stream", "seq"]] for side in frames.values())).size


@pytest.mark.parametrize("mode", MODES)
def test_no_packet_is_lost_or_doubled(guest_pair, udp, mode):
    with udp(rate_pps=1000, direction="to-guest") as down, udp(rate_pps=500, direction="from-guest") as up:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    exactly_once(down)
    exactly_once(up)
    assert down.ledger.passed > 0
    assert figure(down, "source", "passed") == figure(down, "destination", "received")
    assert figure(down, "source", "passed") >= down.ledger.passed
    assert figure(down, "source", "dropped") == 0


@pytest.mark.parametrize("mode", MODES)
def test_with_hold_back_nothing_is_reordered(guest_pair, udp, mode):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100, parameters=HOLD_BACK)
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream, ordered=True)


@pytest.mark.parametrize(("mechanism", "loses"), [("none", True), ("tap-handover", False), ("netpass", False)])
def test_the_same_switchover_with_each_mechanism(guest_pair, udp, mechanism, loses):
    """All on one build of QEMU, so that the mechanism is the only difference."""
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism=mechanism, hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    accounted(stream)
    assert stream.ledger.duplicated == 0
    if loses:
        assert stream.ledger.lost == int(np.count_nonzero(undelivered(guest_pair).probe)) > 0
    else:
        assert stream.ledger.lost == 0
        assert stream.ledger.passed > 0


def test_after_a_cancel_the_source_lost_nothing_and_it_works_again(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as first:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", hold_ms=100, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.2")
    assert (record.status, record.survivor) == ("cancelled", "source")
    exactly_once(first, ordered=True)
    assert figure(first, "source", "returned") > 0
    with udp(rate_pps=1000, direction="to-guest") as second:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    exactly_once(second)


def test_a_long_wait_before_the_switchover(guest_pair, udp):
    with udp(rate_pps=500, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", hold_ms=3000, parameters=HOLD_BACK)
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream, ordered=True)
    assert stream.ledger.passed > 500


@pytest.mark.switchover(requires=["netpass"], qemu="reference", management=False)
def test_beyond_the_limit_exactly_the_rest_is_dropped_and_counted(guest_pair, udp):
    limit = 100
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", hold_ms=300, parameters={"netpass-max-packets": limit})
        guest_pair.succeed("sleep 0.3")
    accounted(stream)
    assert stream.ledger.lost > 0
    # The limit is for the frames of all NICs (here there is one), and for all frames, not for probes alone: an announcement of the
    # destination may be among the dropped ones. What came after the end of the capture still waits in the TAP.
    frames, left = undelivered(guest_pair), read_frames(guest_pair.run_directory / "capture/stranded.pcapng")
    dropped = int(figure(stream, "source", "dropped"))
    assert figure(stream, "source", "captured") + dropped + len(left) == len(frames)
    assert stream.ledger.lost - np.count_nonzero(left.probe) == np.count_nonzero(frames.probe[limit : limit + dropped])
    assert stream.ledger.ledger.lost_in_qemu == stream.ledger.lost
    assert stream.ledger.duplicated == 0


@pytest.mark.switchover(requires=["netpass"], qemu="reference", queues=2, vcpus=2)
@pytest.mark.parametrize("mode", MODES)
def test_several_queues(guest_pair, udp, mode):
    """The TAP spreads flows over the queues by a hash: there are as many flows as it takes to use both."""
    with contextlib.ExitStack() as traffic:
        flows = [traffic.enter_context(udp(rate_pps=200, direction="to-guest")) for _ in range(2)]
        while len(flows) < 16 and 0 in interrupts_by_queue(guest_pair):
            flows.append(traffic.enter_context(udp(rate_pps=200, direction="to-guest")))
        assert 0 not in interrupts_by_queue(guest_pair)
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    for stream in flows:
        exactly_once(stream)
    assert figure(flows[0], "source", "passed") > 0


def interrupts_by_queue(pair) -> list[int]:
    """How often each receive queue of the NIC interrupted the guest."""
    lines = [line.split() for line in pair.succeed("grep virtio1-input /proc/interrupts").splitlines()]
    return [sum(int(word) for word in words[1:] if word.isdigit()) for words in lines]


def test_a_destination_without_it_fails_the_migration_at_its_beginning(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        with pytest.raises(MigrationError, match="failed"):
            guest_pair.migrate(mechanism="netpass", hold_ms=100, only_at_source=["netpass"])
        guest_pair.succeed("sleep 0.3")
    exactly_once(stream, ordered=True)
    assert stream.result.downtime.compute_ms.value is None
    assert guest_pair.succeed("echo alive") == "alive\n"


@pytest.mark.parametrize("mode", MODES)
def test_a_destination_that_waits_for_its_user(guest_pair, udp, mode):
    """With -S the source doesn't wait for `cont`: what arrives in between is lost, and said to be."""
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.2")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100, start_after_ms=100)
        guest_pair.succeed("sleep 0.3")
    accounted(stream)
    assert stream.ledger.duplicated == 0
    assert stream.ledger.passed > 0
    assert stream.ledger.lost <= stream.ledger.ledger.stranded_at_source + stream.ledger.ledger.lost_in_qemu


def test_broadcasts_are_delivered_and_the_networks_copies_are_counted(guest_pair, udp):
    """The destination's port opens at RESUME only, so that the bridge makes no copies of what the source passes."""
    with udp(rate_pps=300, direction="to-guest", cast="broadcast") as broadcast, udp(rate_pps=500) as unicast:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    exactly_once(unicast)
    accounted(broadcast)
    # A broadcast that comes after RESUME, before the destination's port opens, reaches the source alone, which may have passed its last.
    assert set(broadcast.ledger.lost_by_phase) <= {"unannounced", "after"}
    frames = frames_at_the_taps(guest_pair)
    assert broadcast.ledger.lost <= np.count_nonzero(frames["source"].time_ns >= record.resume_ns)
    assert not np.count_nonzero(frames["destination"].time_ns < record.resume_ns), "the bridge copied while no machine ran"
    # Opening one port and closing the other are two steps for the kernel: a broadcast that meets it between them goes to both.
    assert broadcast.ledger.duplicated <= at_both(frames)


@pytest.mark.switchover(requires=["netpass"], qemu="reference", destination_port="from-start")
def test_a_network_that_floods_both_ports_delivers_twice_what_it_copied(guest_pair, udp):
    with udp(rate_pps=300, direction="to-guest", cast="broadcast") as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="netpass", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    accounted(stream)
    assert stream.ledger.lost == 0
    # What the bridge copied waits at the destination's TAP until RESUME; the source's guest had it too, or it is passed.
    frames = frames_at_the_taps(guest_pair)
    waited = np.count_nonzero(frames["destination"].time_ns < record.resume_ns)
    both = at_both(frames)
    assert waited > 0
    assert waited <= stream.ledger.duplicated <= both


@pytest.mark.switchover(requires=["netpass"], qemu="reference", peer="guest")
def test_between_two_guests_with_ping_as_a_witness(guest_pair, udp):
    with udp(rate_pps=500, direction="echo") as stream:
        script = "ping -q -i 0.01 -c 100 -W 3 10.77.0.1 >/tmp/ping.log 2>&1 &"
        guest_pair.succeed(f"{script} sleep 0.2", on="peer")
        guest_pair.migrate(mechanism="netpass", hold_ms=150)
        said = guest_pair.succeed("n=0; until grep -q loss /tmp/ping.log; do n=$((n+1)); [ $n -lt 100 ]; usleep 100000; done; cat /tmp/ping.log", on="peer")
    exactly_once(stream)
    assert "100 packets transmitted, 100 received" in said


@pytest.mark.parametrize("mode", MODES)
def test_tcp_goes_on_and_nothing_of_it_is_lost(guest_pair, udp, tcp, mode):
    with udp(rate_pps=500) as probes, tcp(rate_pps=200) as down, tcp(rate_pps=200, direction="from-guest") as up, tcp(idle=True) as idle:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="netpass", mode=mode, hold_ms=100, parameters=HOLD_BACK)
        guest_pair.succeed("sleep 0.5")
    exactly_once(probes, ordered=True)
    for stream in (down, up, idle):
        assert stream.connection.survived, stream.connection
        assert stream.connection.resets == ()
    for stream in (down, up):
        assert stream.connection.bytes == stream.connection.confirmed_bytes > 0


@pytest.mark.switchover(requires=["netpass"], qemu="reference", vhost=True)
def test_a_vhost_netdev_is_declined_with_a_warning(request):
    try:
        os.close(os.open("/dev/vhost-net", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"vhost-net is not to be had on this host: {error.strerror}")
    pair, udp = request.getfixturevalue("guest_pair"), request.getfixturevalue("udp")
    with udp(rate_pps=500, direction="to-guest") as stream:
        pair.succeed("sleep 0.2")
        pair.migrate(mechanism="netpass", hold_ms=100)
        pair.succeed("sleep 0.3")
    assert stream.ledger.passed == 0
    assert stream.ledger.lost > 0
    said = pair.lab.machines[0].process.read_output().decode()
    assert any("netpass" in line and "vhost" in line for line in said.splitlines()), said
