"""Run directories: whole, half-written, damaged, foreign."""

from __future__ import annotations

import pytest

from harness.errors import TestbedError, UsageError
from harness.model.events import Event
from harness.store.rundir import RunDirectory


def test_a_run_has_its_name_only_when_it_is_whole(tmp_path):
    run = RunDirectory.create(tmp_path, "demo")
    assert run.path.name == f"{run.run_id}.partial"
    with pytest.raises(UsageError, match="did not end"):
        RunDirectory.open(run.path)
    run.write_json("run.json", {"schema_version": 1})
    run.finish()
    assert RunDirectory.open(tmp_path / run.run_id).run_id == run.run_id


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path):
    with pytest.raises(UsageError, match="no run directory"):
        RunDirectory.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"no run\.json"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [('{"schema_version": 2}', "schema version 2"), ("{", "damaged"), ("[]", "damaged"), ('{"schema_version": 1}', "damaged")],
)
def test_a_newer_or_damaged_file_is_refused(tmp_path, content, complaint):
    run = RunDirectory.create(tmp_path, "demo")
    (run.path / "run.json").write_text(content)
    run.finish()
    with pytest.raises(UsageError, match=complaint):
        RunDirectory.open(run.path).facts()


def test_events_come_back_as_they_were(tmp_path):
    run = RunDirectory.create(tmp_path, "demo")
    events = [Event(t_ns=5, source="source", name="STOP", data={"a": [1, 2]}), Event(t_ns=6, source="harness", name="x")]
    run.write_events(events)
    assert run.events() == events


def test_a_results_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TestbedError, match="results can't be written"):
        RunDirectory.create(tmp_path / "file", "demo")
