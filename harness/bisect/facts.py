"""What a bisection knows: bisect.json in its folder, written anew after each commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from harness.analysis.sequential import Boundary
from harness.errors import TestbedError, UsageError
from harness.store.folders import fresh_folder, fresh_name

__all__ = ["BisectFacts", "BisectFolder", "CommitFacts"]

_FILE = "bisect.json"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CommitFacts(_Record, frozen=True, kw_only=True):
    """One commit that was looked at. `values`: a reading of each run; `runs`: their folders; `why`: what was wrong with a skipped one."""

    commit: str
    subject: str
    answer: Literal["good", "bad", "skip"]
    why: str = ""
    values: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()


class BisectFacts(_Record, frozen=True, kw_only=True):
    """The whole of bisect.json. `build` and `kernel`: the command and the file of a kernel tree, both None for a tree of QEMU.

    `culprits` are the commits that may be the first bad one, newest first: one, or several where those between could not be judged.
    """

    schema_version: Literal[1] = 1
    tree: str
    good: str
    bad: str
    scenario: str
    settings: tuple[str, ...] = ()
    metric: str
    repeat: int
    most: int
    threshold: float | None = None
    build: str | None = None
    kernel: str | None = None
    unit: str = ""
    boundary: Boundary | None = None
    commits: tuple[CommitFacts, ...] = ()
    culprits: tuple[str, ...] = ()
    error: str = ""

    def with_commit(self, found: CommitFacts) -> BisectFacts:
        return msgspec.structs.replace(self, commits=(*self.commits, found))

    def commit(self, name: str) -> CommitFacts | None:
        return next((each for each in self.commits if each.commit == name), None)


class BisectFolder:
    """The folder of one bisection: `bisect.json`, git's log, the runs, and while it goes on a clone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, results: Path) -> BisectFolder:
        return cls(fresh_folder(results, fresh_name("bisect")).resolve())

    @property
    def repository(self) -> Path:
        """The private clone in which git bisects; the user's tree is only read."""
        return self.path / "repository"

    @property
    def log(self) -> Path:
        """What `git bisect log` says, for `git bisect replay` in a tree of one's own."""
        return self.path / "git-bisect.log"

    def build_name(self, role: str) -> str:
        """What a build is called while the bisection goes on."""
        return f"bisect-{self.path.name.rpartition('-')[2]}-{role}"

    def save(self, facts: BisectFacts) -> None:
        target = self.path / _FILE
        fresh = target.with_name(f".{_FILE}.new")
        try:
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
            fresh.replace(target)
        except OSError as error:
            raise TestbedError(f"{target} can't be written: {error.strerror}") from error

    def load(self) -> BisectFacts:
        path = self.path / _FILE
        try:
            raw = path.read_bytes()
            version = msgspec.json.decode(raw, type=dict[str, Any]).get("schema_version")
            if version != 1:
                raise UsageError(f"{path} has schema version {version}, this program reads 1", hint="use the switchover that made it")
            return msgspec.json.decode(raw, type=BisectFacts)
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}", hint="give the folder of a bisection") from error
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path} is damaged: {error}") from error
