"""The run directory: raw data, complete and immutable.

While a run goes on its folder is called `<run id>.partial`; it gets its name when everything is in it. So a folder
without that ending is whole, and one with it is a run that died.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import TestbedError, UsageError
from harness.model.events import Event
from harness.model.facts import RunFacts
from harness.model.load import dump_scenario
from harness.model.result import RunResult
from harness.model.scenario import Scenario
from harness.store.folders import fresh_folder, fresh_name

__all__ = ["RunDirectory"]

_PARTIAL = ".partial"


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


class RunDirectory:
    """One run's folder, for writing (`create`) or reading (`open`)."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id

    @classmethod
    def create(cls, results: Path, scenario: str) -> RunDirectory:
        """A fresh partial folder below `results`. `TestbedError` when it can't be written."""
        run_id = fresh_name(scenario)
        return cls(fresh_folder(results, f"{run_id}{_PARTIAL}", inner=("capture", "traffic")), run_id)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A finished run. `UsageError` for anything else, with what it is instead."""
        if not path.is_dir():
            raise UsageError(f"{path} is no run directory", hint="give a folder that `switchover run` left below results/")
        if path.name.endswith(_PARTIAL):
            raise UsageError(f"{path} is a run that did not end; it has no result", hint="its error.txt says why, its log.txt how far it came")
        if not (path / "run.json").is_file():
            raise UsageError(f"{path} is no run directory: it has no run.json")
        return cls(path, path.name)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, atomically."""
        target = self.path / name
        fresh = target.with_name(f".{target.name}.new")
        try:
            fresh.write_bytes(_json(value))
            fresh.replace(target)
        except OSError as error:
            raise TestbedError(f"{target} can't be written: {error.strerror}") from error

    def write_scenario(self, scenario: Scenario) -> None:
        """The scenario as it was resolved, in the form that can be run again."""
        (self.path / "scenario.toml").write_text(dump_scenario(scenario))

    def log(self, text: str) -> None:
        """A line of log.txt, with the time."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError), (self.path / "log.txt").open("a") as file:
            file.write(f"{stamp} {text}\n")

    def write_events(self, events: Iterable[Event], *, name: str = "events.jsonl") -> None:
        """Events, one a line; `events.jsonl` is the merged timeline."""
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        (self.path / name).write_bytes(lines)

    def finish(self) -> None:
        """Give the folder its name: the run is whole."""
        whole = self.path.with_name(self.run_id)
        self.path.rename(whole)
        self.path = whole

    def discard(self) -> None:
        """Remove a folder that never came to hold a run."""
        shutil.rmtree(self.path, ignore_errors=True)

    def facts(self) -> RunFacts:
        """run.json; `UsageError` for a newer schema or a broken file."""
        facts: RunFacts = self._read("run.json", RunFacts)
        return facts

    def result(self) -> RunResult:
        """result.json as it stands."""
        result: RunResult = self._read("result.json", RunResult)
        return result

    def _read(self, name: str, kind: type[Any]) -> Any:
        path = self.path / name
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from error
        try:
            version = msgspec.json.decode(raw).get("schema_version")
            if version != 1:
                raise UsageError(
                    f"{path} has schema version {version}, this program reads 1", hint="use the switchover that made it"
                )
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is damaged: {error}") from error

    def events(self, *, name: str = "events.jsonl") -> list[Event]:
        """The merged timeline, or the trace of one machine (`trace-NAME.jsonl`)."""
        path = self.path / name
        try:
            return [msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()]
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is damaged: {error}") from error
