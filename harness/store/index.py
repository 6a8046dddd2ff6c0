"""An index of finished runs: SQLite beside the run directories, so that thousands are listed, filtered and compared at once.

The run directories are the truth; the index holds nothing that can't be read from them again, and is made anew when it is
damaged or of another version. `sync` brings it up to date: a run that ended while nobody indexed it, or whose writer was
killed between its last rename and the index, is found there. So no finished run is ever lost to it. Any number of processes may read and
write at once.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from harness.analysis.metrics import Unit, readings
from harness.errors import TestbedError
from harness.model.baseline import RunKey
from harness.model.result import RunResult
from harness.store.identity import run_key

__all__ = ["Entry", "Index", "results_folder"]

FILE = "index.sqlite3"
_VERSION = 1
_BUSY_S = 60.0
_BATCH = 200
_CAMPAIGN, _RESULT, _PARTIAL = "campaign.json", "result.json", ".partial"

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    path TEXT PRIMARY KEY, stamp TEXT NOT NULL, run_id TEXT NOT NULL, began TEXT NOT NULL, scenario TEXT NOT NULL,
    mechanism TEXT NOT NULL, outcome TEXT NOT NULL, verdict TEXT NOT NULL, accelerator TEXT NOT NULL, qemu TEXT NOT NULL,
    build TEXT NOT NULL, guest TEXT NOT NULL, host TEXT NOT NULL, campaign TEXT, loaded INTEGER NOT NULL, key TEXT NOT NULL, parts BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS readings (
    path TEXT NOT NULL, metric TEXT NOT NULL, value REAL, resolution REAL NOT NULL, unit TEXT NOT NULL, PRIMARY KEY (path, metric)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS damaged (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_by_key ON runs (key, began);
CREATE INDEX IF NOT EXISTS runs_by_scenario ON runs (scenario, began);
"""

_COLUMNS = (
    "path", "run_id", "began", "scenario", "mechanism", "outcome", "verdict", "accelerator", "qemu", "build", "guest", "host",
    "campaign", "loaded", "key",
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the index has it. `path` is relative to the results folder; `began` is ISO 8601, UTC; `build` is that of source and
    destination; `loaded`: it shared the host with another run, so its timings say little; `key`: what it may be compared with."""

    path: str
    run_id: str
    began: str
    scenario: str
    mechanism: str
    outcome: str
    verdict: str
    accelerator: str
    qemu: str
    build: str
    guest: str
    host: str
    campaign: str | None
    loaded: bool
    key: str


class Index:
    """The index of one results folder; a context manager. Every call may be made while other processes write."""

    def __init__(self, results: Path) -> None:
        self.results = results
        try:
            self._db = self._open()
        except sqlite3.OperationalError as error:
            raise TestbedError(
                f"{results / FILE} can't be opened: {error}", hint="the folder of results must exist and be writable"
            ) from error

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        """An open index of our version; a damaged or older one is begun anew. Where none can be written it is in memory."""
        path = self.results / FILE
        if not os.access(self.results, os.W_OK):
            return self._prepare(sqlite3.connect(":memory:", isolation_level=None))
        deadline = time.monotonic() + _BUSY_S
        while True:
            # autocommit: transactions are begun by name, for writing at once, so that two writers never wait for each other in a circle
            db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            try:
                return self._prepare(db)
            except sqlite3.OperationalError as error:
                db.close()
                # the change to WAL by another process refuses at once, whatever the timeout
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            except sqlite3.DatabaseError:
                db.close()
                for ending in ("", "-wal", "-shm"):
                    path.with_name(FILE + ending).unlink(missing_ok=True)

    def _prepare(self, db: sqlite3.Connection) -> sqlite3.Connection:
        db.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        # WAL lets readers go on while one writes; a file system without shared memory refuses, and gets the old way
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            with self._writing(db):
                # another process may have been here first
                if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                    for table in ("runs", "readings", "damaged"):
                        db.execute(f"DROP TABLE IF EXISTS {table}")
                    for statement in _TABLES.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("SELECT count(*) FROM damaged").fetchone()
        return db

    @contextlib.contextmanager
    def _writing(self, db: sqlite3.Connection) -> Iterator[None]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    # -- writing

    def sync(self) -> int:
        """Take in what ended since, forget what is gone; how many runs were read. Cheap where nothing changed."""
        known = dict(self._db.execute("SELECT path, stamp FROM runs UNION ALL SELECT path, stamp FROM damaged"))
        there = dict(_finished(self.results))
        fresh = sorted(path for path, stamp in there.items() if known.get(path) != stamp)
        gone = [path for path in known if path not in there]
        for start in range(0, len(fresh), _BATCH):
            rows = [(path, there[path], _read(self.results / path)) for path in fresh[start : start + _BATCH]]
            with self._writing(self._db):
                for path, stamp, found in rows:
                    self._put(path, stamp, found)
        if gone:
            with self._writing(self._db):
                for path in gone:
                    self._forget(path)
        return len(fresh)

    def add(self, directory: Path) -> None:
        """Take in one finished run at once (what `sync` would do later)."""
        path = directory.resolve().relative_to(self.results.resolve()).as_posix()
        stamp = _stamp(directory / _RESULT)
        if stamp is not None:
            found = _read(directory)
            with self._writing(self._db):
                self._put(path, stamp, found)

    def _forget(self, path: str) -> None:
        for table in ("runs", "readings", "damaged"):
            self._db.execute(f"DELETE FROM {table} WHERE path = ?", (path,))

    def _put(self, path: str, stamp: str, found: RunResult | str) -> None:
        self._forget(path)
        if isinstance(found, str):
            self._db.execute("INSERT INTO damaged VALUES (?, ?, ?)", (path, stamp, found))
            return
        parts = run_key(found)
        qemu = found.qemu
        campaign, _, _ = path.rpartition("/")
        row = (
            path, stamp, found.run_id, _began(found), found.scenario.name, found.mechanism, str(found.outcome), str(found.verdict),
            found.accelerator, _pair(qemu.source.version, qemu.destination.version), _pair(qemu.source.build, qemu.destination.build),
            found.guest.kernel, parts.host, campaign or None,
            any("another run was under way" in note for note in found.notes), parts.digest(), msgspec.json.encode(parts),
        )  # fmt: skip
        self._db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(row))})", row)
        self._db.executemany(
            "INSERT INTO readings VALUES (?, ?, ?, ?, ?)",
            [(path, name, each.value, each.resolution, str(each.unit)) for name, each in readings(found).items()],
        )

    # -- reading

    def entries(
        self, *, where: Mapping[str, str] | None = None, since: str | None = None, until: str | None = None, latest: int | None = None
    ) -> list[Entry]:
        """Runs in order of their beginning. `where` compares columns with a GLOB pattern (`{"scenario": "udp-*"}`)."""
        tests, values = _conditions(where, since, until)
        text = f"SELECT {', '.join(_COLUMNS)} FROM runs {tests} ORDER BY began DESC, path DESC"
        if latest is not None:
            text += f" LIMIT {int(latest)}"
        rows = self._db.execute(text, values).fetchall()
        return [_entry(row) for row in reversed(rows)]

    def values(self, metric: str, *, where: Mapping[str, str] | None = None, since: str | None = None) -> list[tuple[Entry, float | None]]:
        """One reading of each run that has it."""
        tests, values = _conditions(where, since, None)
        columns = ", ".join(f"runs.{name}" for name in _COLUMNS)
        text = f"SELECT {columns}, value FROM runs JOIN readings ON readings.path = runs.path AND metric = ? {tests} ORDER BY began, runs.path"
        return [(_entry(row), row[-1]) for row in self._db.execute(text, [metric, *values])]

    def readings_of(self, paths: Sequence[str]) -> dict[str, dict[str, tuple[float | None, float, Unit]]]:
        """All readings of some runs: value, resolution and unit by metric, by path."""
        found: dict[str, dict[str, tuple[float | None, float, Unit]]] = {path: {} for path in paths}
        for start in range(0, len(paths), 500):
            some = list(paths[start : start + 500])
            marks = ", ".join("?" * len(some))
            rows = self._db.execute(f"SELECT path, metric, value, resolution, unit FROM readings WHERE path IN ({marks})", some)
            for path, metric, value, resolution, unit in rows:
                found[path][metric] = (value, resolution, Unit(unit))
        return found

    def key_of(self, path: str) -> RunKey:
        """What a run may be compared with, part by part."""
        row = self._db.execute("SELECT parts FROM runs WHERE path = ?", (path,)).fetchone()
        if row is None:
            raise TestbedError(f"{path} is not in the index")
        return msgspec.json.decode(row[0], type=RunKey)

    def damaged(self) -> dict[str, str]:
        """Finished runs that can't be read, and why."""
        return dict(self._db.execute("SELECT path, reason FROM damaged ORDER BY path"))


def _entry(row: Sequence[Any]) -> Entry:
    path, run_id, began, scenario, mechanism, outcome, verdict, accelerator, qemu, build, guest, host, campaign, loaded, key = row[:15]
    return Entry(
        path=path, run_id=run_id, began=began, scenario=scenario, mechanism=mechanism, outcome=outcome, verdict=verdict,
        accelerator=accelerator, qemu=qemu, build=build, guest=guest, host=host, campaign=campaign, loaded=bool(loaded), key=key,
    )  # fmt: skip


def results_folder(run: Path) -> Path:
    """The results folder that a run directory belongs to: a campaign's runs lie in its folder, one below."""
    parent = run.resolve().parent
    in_campaign = (parent / _CAMPAIGN).is_file() or "-campaign-" in parent.name
    return parent.parent if in_campaign else parent


def _conditions(where: Mapping[str, str] | None, since: str | None, until: str | None) -> tuple[str, list[str]]:
    tests, values = [], []
    for column, pattern in (where or {}).items():
        if column not in _COLUMNS:
            raise ValueError(f"the index has no column {column!r}")
        tests.append(f"runs.{column} GLOB ?")
        values.append(pattern)
    for sign, limit in ((">=", since), ("<", until)):
        if limit is not None:
            tests.append(f"began {sign} ?")
            values.append(limit)
    return (f"WHERE {' AND '.join(tests)}" if tests else ""), values


def _finished(results: Path) -> Iterator[tuple[str, str]]:
    """Finished runs and when their result was written, those of campaigns too."""
    for entry in _folders(results):
        stamp = _stamp(f"{entry.path}/{_RESULT}")
        if stamp is not None:
            yield entry.name, stamp
        elif "-campaign-" in entry.name or os.path.exists(f"{entry.path}/{_CAMPAIGN}"):
            for run in _folders(Path(entry.path)):
                stamp = _stamp(f"{run.path}/{_RESULT}")
                if stamp is not None:
                    yield f"{entry.name}/{run.name}", stamp


def _folders(parent: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
        yield from (entry for entry in entries if not entry.name.endswith(_PARTIAL) and entry.is_dir())


def _stamp(file: Path | str) -> str | None:
    """Changes when the result is written anew (`switchover analyze`)."""
    try:
        found = os.stat(file)  # noqa: PTH116 -- ten thousand of them
    except OSError:
        return None
    return f"{found.st_mtime_ns}.{found.st_size}"


def _read(directory: Path) -> RunResult | str:
    """A run's result, or why it can't be read."""
    try:
        return msgspec.json.decode((directory / _RESULT).read_bytes(), type=RunResult)
    except (OSError, msgspec.MsgspecError) as error:
        return str(error)


def _began(found: RunResult) -> str:
    """From the run's name, which begins with it: 20261121T113046Z."""
    stamp = found.run_id[:16]
    if len(stamp) == 16 and stamp[8] == "T" and stamp[-1] == "Z":
        return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[9:11]}:{stamp[11:13]}:{stamp[13:15]}Z"
    return ""


def _pair(source: str, destination: str) -> str:
    return source if source == destination else f"{source} -> {destination}"
