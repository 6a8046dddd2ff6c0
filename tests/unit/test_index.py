"""The index of runs: what it finds, that it can be made anew, and that no kill at any moment loses a finished run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from harness.errors import TestbedError
from harness.model.example import make_result
from harness.model.result import Verdict
from harness.model.scenario import Scenario, TrafficSection
from harness.store.identity import run_key
from harness.store.index import FILE, Index, results_folder
from harness.store.rundir import RunDirectory


def finished(results: Path, name: str, **more: object) -> Path:
    """A run directory as far as the index looks at it."""
    run = results / name
    run.mkdir(parents=True)
    found = make_result(run_id=run.name, **more)  # type: ignore[arg-type]
    (run / "result.json").write_bytes(msgspec.json.encode(found))
    return run


def names(index: Index, **more: object) -> list[str]:
    return [entry.path for entry in index.entries(**more)]  # type: ignore[arg-type]


def test_what_ended_is_found_in_order_of_time_and_what_is_gone_forgotten(tmp_path):
    late = finished(tmp_path, "20260103T000000Z-udp-none-000003", lost=3)
    finished(tmp_path, "20260101T000000Z-udp-none-000001")
    (tmp_path / "20260102T000000Z-udp-none-000002.partial").mkdir()
    (tmp_path / "20260102T000000Z-udp-none-000002.partial" / "result.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    with Index(tmp_path) as index:
        assert index.sync() == 2
        assert names(index) == ["20260101T000000Z-udp-none-000001", "20260103T000000Z-udp-none-000003"]
        assert index.sync() == 0
        (late / "result.json").unlink()
        late.rmdir()
        assert index.sync() == 0
        assert names(index) == ["20260101T000000Z-udp-none-000001"]


def test_runs_of_campaigns_are_found_with_their_campaign(tmp_path):
    run = finished(tmp_path / "20260101T000000Z-campaign-abcdef", "20260101T000001Z-udp-none-000001")
    assert results_folder(run) == tmp_path
    with Index(tmp_path) as index:
        index.sync()
        (entry,) = index.entries()
    assert (entry.campaign, entry.run_id) == ("20260101T000000Z-campaign-abcdef", run.name)


def test_runs_are_filtered_by_any_column_and_by_time(tmp_path):
    finished(tmp_path, "20260101T000000Z-a-000001", scenario="udp-none", verdict=Verdict.PASS)
    finished(tmp_path, "20260102T000000Z-b-000002", scenario="udp-netpass", accelerator="kvm")
    finished(tmp_path, "20260103T000000Z-c-000003", scenario="tcp-none")
    with Index(tmp_path) as index:
        index.sync()
        assert [e.scenario for e in index.entries(where={"scenario": "udp-*"})] == ["udp-none", "udp-netpass"]
        assert [e.scenario for e in index.entries(where={"accelerator": "kvm"})] == ["udp-netpass"]
        assert [e.scenario for e in index.entries(since="2026-01-02", until="2026-01-03")] == ["udp-netpass"]
        assert [e.scenario for e in index.entries(latest=1)] == ["tcp-none"]
        with pytest.raises(ValueError, match="no column"):
            index.entries(where={"nonsense": "x"})


def test_readings_are_those_of_the_results(tmp_path):
    finished(tmp_path, "20260101T000000Z-a-000001", lost=7, compute_ms=None)
    finished(tmp_path, "20260102T000000Z-a-000002", lost=9, compute_ms=151.5)
    with Index(tmp_path) as index:
        index.sync()
        assert [value for _, value in index.values("lost")] == [7, 9]
        assert [value for _, value in index.values("compute_ms")] == [None, 151.5]
        (first, second) = index.readings_of(names(index)).values()
        assert first["lost"] == (7, 0, "packets")
        assert second["compute_ms"] == (151.5, 0.25, "ms")
        assert index.key_of(names(index)[0]) == run_key(make_result())


def test_a_result_that_was_written_anew_is_read_again(tmp_path):
    run = finished(tmp_path, "20260101T000000Z-a-000001", lost=7)
    with Index(tmp_path) as index:
        index.add(run)
        (run / "result.json").write_bytes(msgspec.json.encode(make_result(run_id=run.name, lost=12345)))
        assert index.sync() == 1
        assert [value for _, value in index.values("lost")] == [12345]


def test_a_damaged_result_is_named_and_costs_no_other(tmp_path):
    run = finished(tmp_path, "20260101T000000Z-a-000001")
    (run / "result.json").write_text('{"schema_version": 1, "run_id": ')
    finished(tmp_path, "20260102T000000Z-a-000002")
    with Index(tmp_path) as index:
        index.sync()
        assert names(index) == ["20260102T000000Z-a-000002"]
        assert list(index.damaged()) == [run.name]
        assert index.sync() == 0
        (run / "result.json").write_bytes(msgspec.json.encode(make_result(run_id=run.name)))
        index.sync()
        assert not index.damaged()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_index_is_made_anew(tmp_path, content):
    finished(tmp_path, "20260101T000000Z-a-000001")
    (tmp_path / FILE).write_bytes(content)
    with Index(tmp_path) as index:
        assert index.sync() == 1


def test_an_index_of_another_version_is_made_anew(tmp_path):
    finished(tmp_path, "20260101T000000Z-a-000001")
    with Index(tmp_path) as index:
        index.sync()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("ALTER TABLE runs RENAME COLUMN scenario TO something")
    db.close()
    with Index(tmp_path) as index:
        assert index.sync() == 1
        assert names(index) == ["20260101T000000Z-a-000001"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with Index(tmp_path / "nowhere") as index:
        assert index.entries() == []
    with pytest.raises(TestbedError, match="not in the index"), Index(tmp_path) as index:
        index.key_of("x")


def _write_runs(results: str, number: int) -> None:
    """A runner that finishes one run after the other, until it is killed."""
    count = 0
    while True:
        count += 1
        directory = RunDirectory.create(Path(results), f"udp-{number}-{count}")
        directory.write_json("run.json", {})
        directory.write_json("result.json", make_result(f"udp-{number}", run_id=directory.run_id, lost=count))
        directory.finish()
        with Index(Path(results)) as index:
            index.add(directory.path)
            if count % 5 == 0:
                index.sync()


def test_twenty_writers_that_are_killed_lose_no_finished_run(tmp_path):
    context = multiprocessing.get_context("fork")
    dice = random.Random(7)
    writers = [context.Process(target=_write_runs, args=(str(tmp_path), number)) for number in range(20)]
    for writer in writers:
        writer.start()
    try:
        deadline = time.monotonic() + 60
        # Every writer is killed at a moment of its own, after all of them together have finished some runs.
        while sum(1 for path in tmp_path.glob("2*") if path.suffix != ".partial") < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        for writer in dice.sample(writers, len(writers)):
            time.sleep(dice.random() * 0.03)
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    whole = sorted(path.name for path in tmp_path.glob("2*") if path.suffix != ".partial")
    assert len(whole) >= 40
    with Index(tmp_path) as index:
        index.sync()
        assert sorted(names(index)) == whole
        assert not index.damaged()
        assert len(index.values("lost")) == len(whole)
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


# -- what may be compared


def test_a_key_tells_apart_what_can_not_be_compared():
    one = make_result()
    assert run_key(one) == run_key(make_result(lost=5, build="another", run_id="x"))
    others = [
        make_result(accelerator="kvm"), make_result("udp-netpass"), make_result(host={"cpu_model": "y"}),
        make_result(Scenario(name="udp-none", traffic=(TrafficSection(rate_pps=5),))),
    ]  # fmt: skip
    assert len({run_key(each) for each in [one, *others]}) == 5
    assert run_key(one).differences(run_key(others[0])) == ("accelerator",)
    assert run_key(one).digest(without=["accelerator"]) == run_key(others[0]).digest(without=["accelerator"])


def test_what_changes_nothing_of_a_run_is_no_part_of_its_key():
    plain = Scenario(name="udp-none")
    said = msgspec.structs.replace(plain, description="words", expect={"lost": 0})
    assert run_key(make_result(plain)) == run_key(make_result(said))
