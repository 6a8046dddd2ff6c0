"""The QEMU part of the cache: where things lie, the locks, and how something finished gets its name.

::

    <cache>/qemu/
      sources/      tarballs as they were downloaded: what makes a rebuild work without a network
      repo.git      every source tree that was ever built from, as git objects
      slots/<slot>/ one working tree per origin, with its build folders (incremental)
      store/<id>/   finished installs, never changed after they appear
      names/<name>  links into the store
      apt/          private apt state

Whatever is unfinished lies in a folder whose name starts with a dot, or in a slot; neither is ever run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.builds._process import CommandError, Progress
from harness.errors import EnvironmentLackError, UsageError

__all__ = ["KEPT_UNNAMED", "Layout", "checked_name", "exclusive", "saying_disk_full"]

KEPT_UNNAMED = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ROOM_MEND = "free some space, or point SWITCHOVER_CACHE at a larger disk"
_RESERVED = frozenset({"system"})


@dataclass(frozen=True)
class Layout:
    """Paths below one cache folder; nothing is created before it is needed."""

    cache: Path

    @property
    def root(self) -> Path:
        return self.cache / "qemu"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def repository(self) -> Path:
        return self.root / "repo.git"

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def names(self) -> Path:
        return self.root / "names"

    @property
    def apt(self) -> Path:
        return self.root / "apt"

    @property
    def tools(self) -> Path:
        return self.root / "tools"

    def named(self, name: str) -> Path | None:
        """The store folder that `name` stands for, or None."""
        link = self.names / name
        return link.resolve() if link.is_dir() else None

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder in the cache's own file system that is gone afterwards, whatever happened."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, *, build_id: str, name: str) -> Path:
        """Make `folder` (complete, on this file system) the store's entry `build_id`, and let `name` stand for it.

        Both steps are renames: a reader sees the old state or the new one. An entry that exists stays.
        """
        entry = self.store / build_id
        self.store.mkdir(parents=True, exist_ok=True)
        if not entry.exists():
            folder.chmod(0o755)
            folder.rename(entry)
        self.name(name, entry)
        return entry

    def name(self, name: str, entry: Path) -> None:
        """Let `name` stand for the store folder `entry`, atomically."""
        self.names.mkdir(parents=True, exist_ok=True)
        link = self.names / f".{name}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(entry, self.names))
        link.rename(self.names / name)

    def trim(self) -> None:
        """Remove the oldest store entries that no name stands for, beyond the newest `KEPT_UNNAMED`.

        The newest stay, since a run that began before its name moved on may still start them.
        """
        named = {link.resolve() for link in self.names.glob("[!.]*")}
        unnamed = [entry for entry in self.store.glob("*") if entry.resolve() not in named]
        for entry in sorted(unnamed, key=lambda entry: entry.stat().st_mtime, reverse=True)[KEPT_UNNAMED:]:
            shutil.rmtree(entry, ignore_errors=True)

    def require_free(self, needed_bytes: int) -> None:
        """`EnvironmentLackError` when the cache's disk has less than `needed_bytes` free: better now than half-way."""
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes:
            raise EnvironmentLackError(
                f"{self.root} has {free >> 20} MiB free; {needed_bytes >> 20} MiB are needed", hint=_ROOM_MEND
            )

    def sweep(self) -> None:
        """Remove what killed runs left half done; only for the holder of the lock that covers them."""
        for folder in self.root.glob(".scratch-*"):
            shutil.rmtree(folder, ignore_errors=True)


def checked_name(name: str) -> str:
    """`name` when a build may be called so, else `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a name for a QEMU: {name!r}", hint="letters, digits, '.', '_', '+', '-'")
    if name in _RESERVED:
        raise UsageError(f"{name!r} always means the host's own QEMU", hint="choose another name")
    return name


@contextlib.contextmanager
def exclusive(layout: Layout, *, progress: Progress) -> Iterator[int]:
    """Hold the lock of everything that writes below `layout.root`; yields its descriptor, to be kept open by children.

    One lock, since a build takes every processor anyway. Waits for another holder, and says so once. The lock
    belongs to the open file: it is free only when the last child that inherited it has ended, so a builder that
    was killed outright can't share a tree with its own orphans.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(layout.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another build or fetch in {layout.root}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        layout.sweep()
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def saying_disk_full(folder: Path) -> Iterator[None]:
    """Turn "no space left" of this process or of a child into an `EnvironmentLackError` that names the disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder) from error
    except CommandError as error:
        if not error.disk_full:
            raise
        raise _full(folder) from error


def _full(folder: Path) -> EnvironmentLackError:
    free = shutil.disk_usage(folder).free // 2**20
    return EnvironmentLackError(
        f"the disk of {folder} is full ({free} MiB free now); nothing half-done was kept",
        hint=_ROOM_MEND,
    )
