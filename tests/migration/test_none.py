"""What stock QEMU does to the packets of a migrating guest."""

from __future__ import annotations

import pytest

from harness.analysis.evidence import Fate
from harness.store.analyze import analyze_run
from harness.store.rundir import RunDirectory

RATE_PPS = 1000


def lost_packets(guest_pair, stream):
    """The sequence numbers of those that never arrived, by the stored run."""
    ledger = analyze_run(RunDirectory.open(guest_pair.run_directory)).ledgers[stream.name]
    return [int(seq) for seq in ledger.seq[ledger.fate != Fate.DELIVERED]]


def test_nothing_is_lost_without_a_migration(guest_pair, udp):
    with udp(rate_pps=RATE_PPS, direction="to-guest") as down, udp(rate_pps=RATE_PPS, direction="from-guest") as up:
        guest_pair.succeed("sleep 1")
    for stream in (down, up):
        assert (stream.ledger.lost, stream.ledger.duplicated, stream.ledger.reordered) == (0, 0, 0)
        assert stream.ledger.sent > 900


@pytest.mark.parametrize("hold_ms", [0, 150])
def test_a_switchover_loses_rate_times_downtime(guest_pair, udp, hold_ms):
    with udp(rate_pps=RATE_PPS, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(hold_ms=hold_ms)
        guest_pair.succeed("sleep 0.3")
    assert stream.result.downtime.compute_ms.value >= hold_ms
    # Every packet sent while no machine ran is lost; one may be on its way to the bridge as the destination's port opens.
    # How many that is, against rate x downtime, is for a campaign on a quiet host: a busy one stops later and resumes later.
    sent = stream.ledger.sent_by_phase["stopped"]
    assert sent >= 10
    assert stream.ledger.lost_by_phase["stopped"] >= sent - 1
    lost = lost_packets(guest_pair, stream)
    assert list(lost) == list(range(lost[0], lost[0] + stream.ledger.lost)), "one outage, and no packet got through in it"
    classes = stream.ledger.ledger
    assert classes.unexplained == 0
    assert classes.stranded_at_source + classes.lost_in_qemu == stream.ledger.lost
    assert (stream.ledger.duplicated, stream.ledger.reordered) == (0, 0)


def test_what_the_guest_sends_is_delayed_and_not_lost(guest_pair, udp):
    with udp(rate_pps=RATE_PPS, direction="from-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    assert stream.ledger.lost == 0
    assert stream.ledger.longest_gap_ms >= 100


def test_a_known_outage_loses_nothing_and_is_measured(guest_pair, udp):
    with udp(rate_pps=RATE_PPS, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        record = guest_pair.migrate(mode="stop-cont", outage_ms=120)
        guest_pair.succeed("sleep 0.3")
    truth_ms = (record.resume_ns - record.stop_ns) / 1e6
    assert stream.ledger.lost == 0
    assert truth_ms >= 120
    # How near to the truth it comes is for a calibration on a quiet host to say: a busy one makes it longer, and a pause of
    # the sender's own hides as much of it.
    assert stream.ledger.network_downtime_ms >= truth_ms - 2 - stream.ledger.sent_late_max_ms
    (step,) = stream.result.clock.steps
    assert step.step_ms <= -truth_ms


@pytest.mark.switchover(requires=["ring-status"])
def test_a_cancelled_migration_goes_on_at_the_source(guest_pair, udp):
    with udp(rate_pps=RATE_PPS, direction="to-guest") as stream:
        guest_pair.succeed("sleep 0.3")
        record = guest_pair.migrate(hold_ms=80, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.3")
    assert record.status == "cancelled"
    # Stock QEMU frees a received frame now and then at its stop (features of the stop path): never more than one a queue.
    assert stream.ledger.lost <= 1
    assert stream.ledger.ledger.lost_in_qemu == stream.ledger.lost
    assert stream.ledger.ledger.unexplained == 0
    # Counted where nothing was lost too: without it, what the next stop frees would have no evidence.
    counters = RunDirectory.open(guest_pair.run_directory).facts().counters
    assert [counter.count for counter in counters if counter.fate == "lost_in_qemu"] == [stream.ledger.lost]


def test_the_guest_can_be_migrated_again_and_again(guest_pair, udp):
    names = set()
    for _ in range(3):
        with udp(rate_pps=RATE_PPS, direction="from-guest") as stream:
            guest_pair.migrate(hold_ms=20)
            guest_pair.succeed("sleep 0.2")
        names.add(guest_pair.lab.mobile.spec.name)
        assert stream.ledger.lost == 0
    assert names == {"m1", "m2", "m3"}
