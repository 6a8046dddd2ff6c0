"""A migration that never ends: the test that waited for it says why it broke, and leaves all that is needed to see so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from harness.analysis.columns import read_capture
from harness.errors import DeadlineError, MigrationError
from harness.host.deadline import Deadline


def test_what_was_known_when_a_test_broke_is_in_the_folder_that_its_error_names(guest_pair, udp):
    with pytest.raises(DeadlineError) as caught, udp(rate_pps=200):
        guest_pair.migrate(parameters={"max-bandwidth": 16384}, deadline_s=2.0)
    (folder,) = guest_pair.broken
    assert folder.name.endswith(".partial")
    assert str(caught.value).endswith(f"\n  kept: {folder}")
    error = (folder / "error.txt").read_text()
    assert "in migrate" in error
    assert "DeadlineError" in error
    assert "could not be kept" not in error
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["t_ns"] for e in events] == sorted(e["t_ns"] for e in events)
    assert ("source", "active") in {(e["source"], e["data"].get("status")) for e in events if e["name"] == "MIGRATION"}
    # the source was asked for its last words
    said = [json.loads(line)["message"] for line in (folder / "qmp-m0.jsonl").read_text().splitlines()]
    assert [m["execute"] for m in said if "execute" in m][-2:] == ["query-status", "query-migrate"]
    for machine in ("m0", "m1"):
        assert "-netdev" in json.loads((folder / f"argv-{machine}.json").read_text())
        assert (folder / f"agent-{machine}.jsonl").exists()
        assert (folder / f"console-{machine}.log").exists()
        assert (folder / f"output-{machine}.log").exists()
    assert "defer" in json.loads((folder / "argv-m1.json").read_text())
    facts = json.loads((folder / "run.json").read_text())
    assert facts["failure"].startswith("DeadlineError")
    assert set(facts["captures"]) == {"peer", "source", "destination"}
    assert read_capture(folder / "capture" / "peer.pcapng").columns.time_ns.size > 0
    assert json.loads((folder / "host.json").read_text())["kernel"]


def test_a_test_that_fails_without_traffic_leaves_the_same(guest_pair, tmp_path):
    """`keep` is what the plugin does then."""
    broken = RuntimeError("the test's own error")
    folder = guest_pair.keep(broken)
    assert isinstance(folder, Path)
    assert folder.parent == tmp_path / "results"
    assert "the test's own error" in (folder / "error.txt").read_text()
    assert "-accel" in json.loads((folder / "argv-m0.json").read_text())
    assert broken.__notes__ == [f"what there is of the run lies in {folder}"]
    assert "query-status" in (folder / "qmp-m0.jsonl").read_text()


def migrate_and_panic(guest_pair):
    guest_pair.migrate()
    guest_pair.run(["sh", "-c", "(sleep 0.1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &"])
    console, deadline = guest_pair.lab.mobile.console, Deadline(30.0)
    while "Kernel panic" not in console.text:
        assert not deadline.expired, console.tail()
        time.sleep(0.05)


def test_a_guest_that_panics_after_its_migration_is_a_finding(guest_pair, udp):
    with pytest.raises(MigrationError, match=r"the guest's kernel panicked in m1: .*Kernel panic - not syncing"), udp(rate_pps=300) as stream:
        migrate_and_panic(guest_pair)
    result = stream.result
    assert result.outcome == "failed"
    assert any("panicked" in note for note in result.notes)
    assert stream.ledger.sent > 0
    assert {"peer", "source", "destination"} <= set(result.captures)
