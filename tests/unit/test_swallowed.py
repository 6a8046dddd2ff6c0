"""Parked and purged frames: who is who among those that the source took from its TAP."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from bundle_factory import START, STEP, facts_of, lab_frame, make_run

from harness.model.facts import CounterFacts, MigrationFacts, QueueFacts
from harness.model.result import Outcome
from harness.store.analyze import analyze_run
from harness.store.frames import write_frames
from harness.store.rundir import RunDirectory


def run_with(results: Path, *, undelivered: range, waiting: range, taken: int | None, mechanism: str = "none") -> RunDirectory:
    """The usual run, in which these of the packets 100 to 119 were left undelivered, and these still waited in the TAP."""
    facts = facts_of()
    migration = msgspec.structs.replace(facts.migrations[0], taken=taken, mechanism=mechanism)
    run = make_run(results, migrations=(migration,))
    for name, seqs in (("undelivered", undelivered), ("stranded", waiting)):
        times = [START + seq * STEP for seq in seqs]
        write_frames(run.path / "capture" / f"{name}.pcapng", [lab_frame(seq) for seq in seqs], times_ns=times, interface="tap")
    return run


def test_a_frame_behind_which_qemu_read_on_was_purged_and_one_before_waiting_frames_parked(tmp_path):
    run = run_with(tmp_path, undelivered=range(100, 120), waiting=range(102, 120), taken=2)
    found = analyze_run(run)
    ledger = found.ledgers["udp"]
    assert ledger.counts.lost_in_qemu == 2
    assert ledger.counts.stranded_at_source == 18
    assert ledger.counts.unexplained == 0
    assert ledger.explain(100).reason.startswith("purged: ")
    assert ledger.explain(101).reason.startswith("parked: ")
    assert (found.result.figures["purged_frames"], found.result.figures["parked_frames"]) == (1, 1)


def test_one_taken_frame_and_nothing_behind_it_has_no_name(tmp_path):
    run = run_with(tmp_path, undelivered=range(100, 101), waiting=range(0), taken=1)
    found = analyze_run(run)
    assert found.ledgers["udp"].explain(100).reason.startswith("QEMU took it")
    assert (found.result.figures["purged_frames"], found.result.figures["parked_frames"]) == (0, 0)


def test_a_queue_that_overflowed_is_not_taken_for_frames_that_qemu_read(tmp_path):
    """Of 20 undelivered frames the source read one and 9 wait; the other ten were dropped at the queue's end, and no counter says so."""
    run = run_with(tmp_path, undelivered=range(100, 120), waiting=range(101, 110), taken=1)
    counts = analyze_run(run).ledgers["udp"].counts
    assert (counts.lost_in_qemu, counts.stranded_at_source, counts.unexplained) == (1, 9, 10)


def test_a_run_from_before_the_counter_goes_by_the_queues_length(tmp_path):
    run = run_with(tmp_path, undelivered=range(100, 120), waiting=range(101, 120), taken=None)
    counts = analyze_run(run).ledgers["udp"].counts
    assert (counts.lost_in_qemu, counts.unexplained) == (1, 0)


def test_of_several_queues_each_has_its_own_parked_and_purged_frames(tmp_path):
    """Packets 100 to 105 went to the first queue, 110 to 114 to the second, 118 to the third; 100 was purged, 101 and 110 parked, 118 taken."""
    run = run_with(tmp_path, undelivered=range(0), waiting=range(0), taken=None)
    facts = run.facts()
    queues = (QueueFacts(undelivered=6, waiting=4), QueueFacts(undelivered=5, waiting=4), QueueFacts(undelivered=1, waiting=0))
    (migration,) = facts.migrations
    run.write_json("run.json", msgspec.structs.replace(facts, migrations=(msgspec.structs.replace(migration, queues=queues),)))
    undelivered, waiting = [*range(100, 106), *range(110, 115), 118], [*range(102, 106), *range(111, 115)]
    for name, seqs in (("undelivered", undelivered), ("stranded", waiting)):
        times = [START + seq * STEP for seq in seqs]
        write_frames(run.path / "capture" / f"{name}.pcapng", [lab_frame(seq) for seq in seqs], times_ns=times, interface="tap")
    found = analyze_run(run)
    ledger = found.ledgers["udp"]
    reasons = {seq: ledger.explain(seq).reason.partition(":")[0] for seq in (100, 101, 110, 118)}
    assert reasons == {100: "purged", 101: "parked", 110: "parked", 118: reasons[118]}
    assert reasons[118].startswith("QEMU took it")
    assert (ledger.counts.lost_in_qemu, ledger.counts.stranded_at_source) == (4, 8)
    assert (found.result.figures["purged_frames"], found.result.figures["parked_frames"]) == (1, 2)


@pytest.mark.parametrize("mechanism", ["netpass", "redirect"])
def test_where_qemu_does_something_for_the_frames_none_is_called_parked_or_purged(tmp_path, mechanism):
    run = run_with(tmp_path, undelivered=range(100, 120), waiting=range(102, 120), taken=2, mechanism=mechanism)
    found = analyze_run(run)
    assert found.ledgers["udp"].explain(100).reason.startswith("QEMU took it")
    assert "purged_frames" not in found.result.figures


BY_THE_RING = CounterFacts(name="QEMU (by the receive ring)", place="source-tap", direction="to-guest", count=20, fate="lost_in_qemu")


@pytest.mark.parametrize("mode", ["background-snapshot", "precopy", "stop-cont"])
@pytest.mark.parametrize(
    ("counters", "lost_in_qemu", "unexplained"),
    [((BY_THE_RING,), 20, 0), ((msgspec.structs.replace(BY_THE_RING, count=15),), 15, 5), ((msgspec.structs.replace(BY_THE_RING, count=0),), 0, 20), ((), 0, 20)],
    ids=["all", "some", "nothing was missing", "not counted"],
)
def test_what_a_source_that_runs_on_lost_is_known_by_the_rings_count_alone(tmp_path, mode, counters, lost_in_qemu, unexplained):
    """The guest stays: no queue is read back. 20 packets were seen at its TAP and never came to it."""
    stayed = MigrationFacts(
        mode=mode, mechanism="none", status="cancelled" if mode == "precopy" else "completed", moved=False, stop_ns=START + 100 * STEP - 1000,
        resume_ns=START + 120 * STEP - 1000, survivor="source",
        undelivered_reason="" if counters else "what QEMU lost can't be counted: two queues",
    )  # fmt: skip
    captures = {name: point for name, point in facts_of().captures.items() if name != "destination"}
    found = analyze_run(make_run(tmp_path, migrations=(stayed,), captures=captures, counters=counters))
    counts = found.ledgers["udp"].counts
    assert (counts.lost, counts.lost_in_qemu, counts.unexplained) == (20, lost_in_qemu, unexplained)
    assert any("two queues" in note for note in found.result.notes) == (not counters)
    assert found.result.outcome is Outcome.INCONCLUSIVE if unexplained else found.result.outcome in (Outcome.COMPLETED, Outcome.CANCELLED)
