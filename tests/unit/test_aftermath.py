"""What a run that broke off leaves, with machines that are none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.aftermath import keep_what_there_is, kept_on_failure
from harness.errors import DeadlineError, FeatureLackError, TestbedError
from harness.host.deadline import Deadline
from harness.model.events import Event, Timeline
from harness.plugin import pair as plugin_pair
from harness.plugin.loop import LoopThread
from harness.plugin.pair import GuestPair, Settings
from harness.store.rundir import RunDirectory
from harness.vm.logs import LabLogs

TRACED = b"2026-01-31T12:00:00.000000Z virtio_net_handle_rx n 3\nqemu: a word of its own\n"


class Monitor:
    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def command(self, command: str, *, deadline: Deadline) -> dict[str, Any]:
        self.asked.append(command)
        if not self.answers:
            await deadline.wait(asyncio.Event().wait(), awaited="an answer")
        return {}


def machine(name: str, logs: LabLogs | None, *, started: bool = True, alive: bool = True, answers: bool = True) -> Any:
    if logs is not None:
        kept = logs.of(name)
        for file, words in ((kept.qmp, "{}\n"), (kept.agent, ""), (kept.console, b"login: "), (kept.argv, '["qemu"]\n')):
            assert file is not None
            file.write(words)  # type: ignore[arg-type]
    return SimpleNamespace(
        spec=SimpleNamespace(name=name), started=started, alive=alive, qmp=Monitor(answers=answers), process=SimpleNamespace(read_output=lambda: TRACED)
    )


def lab(*, logs: LabLogs | None, **more: Any) -> Any:
    timeline = Timeline([Event(t_ns=2, source="source", name="STOP"), Event(t_ns=1, source="harness", name="ready")])
    learning = SimpleNamespace(events=[Event(t_ns=3, source="bridge", name="learned")])
    return SimpleNamespace(timeline=timeline, learning=learning, machines=(machine("m0", logs, **more),), logs=logs)


@pytest.fixture
def logs():
    """Makes records in unnamed files."""
    made: list[LabLogs] = []

    def make() -> LabLogs:
        made.append(LabLogs())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "broken")


def test_everything_known_is_written_and_the_error_names_the_folder(run, directory, logs):
    error = DeadlineError("the migration did not go on", hint="look")
    broken = lab(logs=logs())
    run(keep_what_there_is(broken, directory, error=error))
    assert str(error) == f"the migration did not go on\n  mend: look\n  kept: {directory.path}"
    assert {path.name for path in directory.path.iterdir()} == {
        "error.txt", "events.jsonl", "trace-m0.jsonl", "output-m0.log", "qmp-m0.jsonl", "agent-m0.jsonl", "console-m0.log", "argv-m0.json", "host.json",
        "capture", "traffic",
    }  # fmt: skip
    names = [event.name for event in directory.events()]
    assert names == ["ready", "STOP", "learned", "trace:virtio_net_handle_rx"]
    assert (directory.path / "console-m0.log").read_bytes() == b"login: "
    assert json.loads((directory.path / "argv-m0.json").read_text()) == ["qemu"]
    assert (directory.path / "output-m0.log").read_bytes() == TRACED
    assert "DeadlineError: the migration did not go on" in (directory.path / "error.txt").read_text()
    assert broken.machines[0].qmp.asked == ["query-status", "query-migrate"]


def test_a_machine_that_does_not_answer_or_never_ran_is_no_hindrance(run, directory, logs):
    silent, unborn = lab(logs=logs(), answers=False), lab(logs=logs(), started=False, alive=False)
    run(keep_what_there_is(silent, directory, error=TestbedError("x")))
    assert silent.machines[0].qmp.asked == ["query-status"]
    run(keep_what_there_is(unborn, directory, error=TestbedError("x")))
    assert unborn.machines[0].qmp.asked == []
    assert "could not be kept" not in (directory.path / "error.txt").read_text()


def test_what_can_not_be_kept_is_said_and_the_rest_is_kept(run, directory, logs):
    broken = lab(logs=logs())
    (directory.path / "events.jsonl").mkdir()
    error = ValueError("a defect")
    run(keep_what_there_is(broken, directory, error=error))
    assert "the timeline could not be kept: IsADirectoryError" in (directory.path / "error.txt").read_text()
    assert (directory.path / "qmp-m0.jsonl").exists()
    assert error.__notes__ == [f"what there is of the run lies in {directory.path}"]


def test_who_interrupts_does_not_wait_for_answers_and_a_lack_is_no_failure(run, directory, logs):
    interrupted = lab(logs=None, answers=False)
    run(keep_what_there_is(interrupted, directory, error=KeyboardInterrupt()))
    assert interrupted.machines[0].qmp.asked == []
    lack = FeatureLackError("no netpass")
    run(keep_what_there_is(lab(logs=None), directory, error=lack))
    assert str(lack) == "no netpass"


def test_it_is_kept_once_where_it_failed_first(run, directory, logs):
    async def work() -> None:
        async with kept_on_failure(lab(logs=None), directory):
            try:
                raise TestbedError("the first")
            except TestbedError as error:
                await keep_what_there_is(lab(logs=None), directory, error=error)
            raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        run(work())
    assert "the first" in (directory.path / "error.txt").read_text()


def test_records_in_a_folder_are_flushed_and_those_of_machines_forgotten_are_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    logs = LabLogs(folder)
    kept = logs.of("m0")
    assert kept.qmp is not None
    kept.qmp.write("said\n")
    logs.write(folder)
    assert (folder / "qmp-m0.jsonl").read_text() == "said\n"
    unnamed = LabLogs()
    for file in vars(unnamed.of("m0")).values():
        file.close()
    unnamed.of("m1")
    copy = tmp_path / "copy"
    copy.mkdir()
    unnamed.write(copy)
    assert {path.name for path in copy.iterdir()} == {"qmp-m1.jsonl", "agent-m1.jsonl", "console-m1.log", "argv-m1.json"}
    logs.close()
    unnamed.close()


def test_a_pair_that_does_not_come_up_leaves_what_there_is_of_it(tmp_path, monkeypatch):
    class Unstartable:
        def __init__(self, settings: Any, *, logs: LabLogs, progress: Any) -> None:
            vars(self).update(vars(lab(logs=logs)))

        async def start(self) -> None:
            raise DeadlineError("the guest in m0 was not ready within 60 s")

        async def close(self) -> None:
            self.logs.close()

    async def prepared(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(source=None, destination=None)

    async def features(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(plugin_pair, "Lab", Unstartable)
    monkeypatch.setattr(plugin_pair, "prepare", prepared)
    monkeypatch.setattr(plugin_pair, "discover", features)
    monkeypatch.setattr(plugin_pair, "_require", lambda *_: None)
    settings = Settings(qemu=None, qemu_destination=None, kernel=None, image=None, accel="auto", results=tmp_path / "results", name="test_it")
    with LoopThread() as loop, pytest.raises(DeadlineError) as caught, GuestPair.open(settings, loop=loop):
        pass
    (folder,) = (tmp_path / "results").iterdir()
    assert caught.value.kept == str(folder)
    assert {"error.txt", "events.jsonl", "console-m0.log", "scenario.toml"} <= {path.name for path in folder.iterdir()}
