"""Every packet of every migration is accounted for, and what is rare is found and named."""

from __future__ import annotations

import msgspec
import pytest

from harness.store.analyze import analyze_run
from harness.store.rundir import RunDirectory

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]

QUICK = ("--set", "timing.settle_s=0.3", "--set", "timing.tail_s=0.3")


def unexplained(results) -> dict[str, str]:
    """The runs that are not whole, with their notes."""
    return {
        each["run_id"]: "; ".join(each["notes"])
        for each in results
        if each["outcome"] not in ("completed", "cancelled") or any(stream["ledger"]["unexplained"] for stream in each["streams"])
    }


def survivors(runs) -> list[dict]:
    """Without the runs in which the guest's kernel panicked, which took its records along (docs/decisions/0005): they are named."""
    results = list(runs)
    panicked = {each["run_id"]: note for each in results for note in each["notes"] if each["outcome"] == "failed" and "panicked" in note}
    for run, note in panicked.items():
        print(f"{run}: {note}")
    return [each for each in results if each["run_id"] not in panicked]


ARMS = (
    (9, ("udp-none", "udp-tap-handover")),
    (8, ("postcopy-none", "postcopy-netpass")),
    (7, ("tcp-none", "tcp-tap-handover")),
    (5, ("tcp-none", "tcp-netpass", "--set", "migration.mode=postcopy")),
)
"""How often, and which: precopy and postcopy, with and without a mechanism, UDP both ways and TCP. Some more than 50."""


def test_fifty_migrations_and_no_packet_unexplained(switchover):
    results = survivors(each for count, words in ARMS for each in switchover("run", *words, "--repeat", str(count)))
    assert len(results) >= 50
    assert unexplained(results) == {}
    for each in results:
        assert all(connection["survived"] for connection in each["tcp"]), each["run_id"]
        if each["mechanism"] != "none":
            assert [stream["lost"] for stream in each["streams"]] == [0] * len(each["streams"]), each["run_id"]


def test_the_purged_frame_is_found_and_named(switchover, tmp_path):
    """A stock QEMU frees a frame in about one switchover of ten at 1000 packets a second."""
    words = ("udp-none", "--set", "migration.hold_ms=20", "--set", "traffic.0.rate_pps=2000", *QUICK)
    results = survivors(switchover("run", *words, "--repeat", "110"))
    assert len(results) >= 100
    assert unexplained(results) == {}
    purged = [each for each in results if each["figures"].get("purged_frames")]
    assert purged, "no frame was purged in 110 switchovers"
    for each in purged:
        ledger = next(iter(analyze_run(RunDirectory.open(tmp_path / each["run_id"])).ledgers.values()))
        told = [ledger.reasons[number] for number in ledger.reason_of if ledger.reasons[number].startswith("purged: ")]
        assert len(told) == each["figures"]["purged_frames"]


def test_a_cancelled_switchover_that_purged_a_frame_has_evidence_for_it(switchover):
    results = switchover("run", "udp-none", "--set", "migration.cancel_at_switchover=true", "--set", "traffic.0.rate_pps=2000", *QUICK, "--repeat", "40")
    assert unexplained(results) == {}
    for each in results:
        down = next(stream for stream in each["streams"] if stream["direction"] == "to-guest")
        assert down["lost"] == down["ledger"]["lost_in_qemu"] <= 2, each["run_id"]


def test_what_a_background_snapshots_stop_frees_is_known_by_the_rings_count_alone(switchover, tmp_path):
    """The stop path frees a frame in two of five; without that count its packet has no evidence."""
    words = ("udp-none", "--set", "migration.mode=background-snapshot", "--set", "migration.transport=file", "--set", "migration.hold_ms=0")
    results = switchover("run", *words, "--set", "traffic.0.rate_pps=2000", *QUICK, "--repeat", "20")
    assert unexplained(results) == {}
    freed = [each for each in results if any(stream["lost"] for stream in each["streams"])]
    assert freed, "no frame was freed in 20 snapshots"
    for each in freed:
        run = RunDirectory.open(tmp_path / each["run_id"])
        facts = run.facts()
        without = tuple(counter for counter in facts.counters if counter.fate is None)
        run.write_json("run.json", msgspec.structs.replace(facts, counters=without))
        for stream, less in zip(each["streams"], analyze_run(run).result.streams, strict=True):
            assert stream["ledger"]["lost_in_qemu"] == stream["lost"]
            assert less.ledger.unexplained == stream["lost"], each["run_id"]
