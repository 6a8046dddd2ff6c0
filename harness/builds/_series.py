"""Patch series: from what the user names to an ordered list of messages for ``git am``."""

from __future__ import annotations

import hashlib
import mailbox
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import msgspec

from harness.builds._process import CommandError, Progress, run
from harness.errors import EnvironmentLackError, UsageError

__all__ = ["Patch", "Series", "reference_series", "resolve"]

_SUFFIXES = (".patch", ".diff")
_DIFF = re.compile(rb"^(?:diff --git |--- \S+\n\+\+\+ \S)", re.MULTILINE)
_MAIL_HEADER = re.compile(rb"\A(?:From |[A-Za-z][A-Za-z0-9-]*: )")
_REPLY = re.compile(r"\s*(?:re|aw|fwd?)\s*:", re.IGNORECASE)


class _SeriesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``series.toml``; `devices` are lines that the series adds to the device list (``CONFIG_X=y``).

    With `in_reference` false the series is in a build only if it is asked for, or another needs it.
    """

    title: str = ""
    needs: list[str] = []
    in_reference: bool = True
    description: str = ""
    devices: list[str] = []


@dataclass(frozen=True)
class Patch:
    """One file for ``git am``: `label` is what an error calls it; a mailbox holds several messages."""

    label: str
    path: Path

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Series:
    """An ordered group of patches, and the lines its devices need in the device list."""

    name: str
    patches: tuple[Patch, ...]
    devices: tuple[str, ...] = field(default=())


def resolve(items: Iterable[Path | str], *, scratch: Path, progress: Progress) -> list[Series]:
    """The series that `items` stand for, in order, each once; prepared files go to `scratch`.

    An item is a patch file, a mailbox (replies, covers and old versions are sorted out by b4), a message id or its
    address on a list archive (b4 fetches it), a folder of patches (in the order of a quilt ``series`` file or by name;
    what its ``series.toml`` needs comes before it, from its neighbours), or a folder of such folders.
    """
    found: dict[str, Series] = {}
    for number, item in enumerate(items):
        path = Path(item).expanduser()
        if path.is_dir():
            if _is_series(path):
                for folder in _with_needs([path.resolve()]):
                    found.setdefault(str(folder), _folder(folder))
            else:
                for folder in reference_series(path):
                    found.setdefault(str(folder), _folder(folder))
        elif path.is_file():
            found.setdefault(str(path.resolve()), _file(path, scratch / f"series-{number}", progress=progress))
        elif "@" in str(item) or str(item).startswith(("http://", "https://")):
            found.setdefault(str(item), _from_archive(str(item), scratch / f"series-{number}", progress=progress))
        else:
            raise UsageError(f"no such series: {item}", hint="a patch file, a mailbox, a folder or a message id")
    return list(found.values())


def reference_series(folder: Path) -> list[Path]:
    """The series folders below `folder`, each after those its ``series.toml`` needs, otherwise by name.

    One that is not `in_reference` is among them only if another needs it.
    """
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    members = [each.resolve() for each in children if each.is_dir() and _is_series(each)]
    if not members:
        raise UsageError(f"{folder} has no patches and no series folders",
                         hint="a series is a folder with *.patch files")
    return _with_needs([each for each in members if _about(each).in_reference])


def _is_series(folder: Path) -> bool:
    return (folder / "series.toml").is_file() or any(_patch_files(folder))


def _with_needs(folders: Sequence[Path]) -> list[Path]:
    """`folders` and all they need, in a stable topological order (by name where the needs leave it open)."""
    graph: dict[Path, list[Path]] = {}
    pending = list(folders)
    while pending:
        folder = pending.pop()
        if folder in graph:
            continue
        graph[folder] = []
        for need in _about(folder).needs:
            other = folder.parent / need
            if not (other.is_dir() and _is_series(other)):
                raise UsageError(f"{folder / 'series.toml'} needs {need!r}, which is not in {folder.parent}")
            graph[folder].append(other)
            pending.append(other)
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        raise UsageError(f"series need each other: {' -> '.join(path.name for path in error.args[1])}") from error
    ordered: list[Path] = []
    ready = set(sorter.get_ready())
    while ready:
        folder = min(ready)
        ready.remove(folder)
        ordered.append(folder)
        sorter.done(folder)
        ready.update(sorter.get_ready())
    return ordered


def _about(folder: Path) -> _SeriesFile:
    path = folder / "series.toml"
    if not path.exists():
        return _SeriesFile()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_SeriesFile)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _patch_files(folder: Path) -> list[Path]:
    """The patches of a folder in order: a quilt ``series`` file's, else those named \\*.patch or \\*.diff by name."""
    listing = folder / "series"
    if listing.is_file():
        words = (line.split("#")[0].split() for line in listing.read_text().splitlines())
        return [folder / line[0] for line in words if line]
    return sorted(each for each in folder.iterdir() if each.suffix in _SUFFIXES and each.is_file())


def _folder(folder: Path) -> Series:
    files = _patch_files(folder)
    if not files:
        raise UsageError(f"series {folder.name} has no patches ({folder})")
    for file in files:
        if not file.is_file():
            raise UsageError(f"{folder / 'series'} names {file.name}, which is not there")
        if not _DIFF.search(file.read_bytes()):
            raise UsageError(f"{file} has no diff in it")
    patches = tuple(Patch(f"{folder.name}/{file.name}", file) for file in files)
    return Series(folder.name, patches, tuple(_about(folder).devices))


def _file(path: Path, scratch: Path, *, progress: Progress) -> Series:
    content = path.read_bytes()
    if not _DIFF.search(content):
        raise UsageError(f"{path} has no diff in it", hint="a patch as `git format-patch` makes it, or a mailbox")
    if not _MAIL_HEADER.match(content):
        # git am takes messages only: a bare diff gets the least of a header
        scratch.mkdir()
        message = scratch / f"{path.stem}.patch"
        message.write_bytes(f"From: nobody <nobody@localhost>\nSubject: {path.name}\n\n---\n".encode() + content)
        return Series(path.stem, (Patch(path.name, message),))
    if _wants_sorting(path):
        progress(f"sorting the mailbox {path.name} with b4")
        return _b4(["-m", str(path.absolute())], path.name, scratch, offline=True)
    return Series(path.stem, (Patch(path.name, path),))


def _wants_sorting(path: Path) -> bool:
    """Whether a mailbox is a thread as an archive gives it, rather than patches one after the other."""
    with path.open("rb") as file:
        if file.read(5) != b"From ":
            return False
    box = mailbox.mbox(path, create=False)
    try:
        return any(_REPLY.match(str(message["Subject"])) or not _DIFF.search(message.as_bytes()) for message in box)
    finally:
        box.close()


def _from_archive(address: str, scratch: Path, *, progress: Progress) -> Series:
    progress(f"fetching {address} with b4")
    return _b4([address], address, scratch, offline=False)


def _b4(source: Sequence[str], label: str, scratch: Path, *, offline: bool) -> Series:
    """The newest version of one thread's patches, in order, with the trailers that replies gave."""
    beside = Path(sys.executable).with_name("b4")
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which("b4")
    if program is None:
        raise EnvironmentLackError(f"{label} needs b4, which is not installed",
                                   hint="pip install b4 (or give the patches alone, in order)")
    scratch.mkdir()
    run(["git", "init", "--quiet", scratch])  # b4 wants a repository for its settings; the user's is not asked
    quiet = ["--offline-mode"] if offline else []
    out = scratch / "out"
    try:
        run([program, "--no-stdin", *quiet, "-n", "am", "-C", "--no-parent", "--no-cover", "-o", out, *source],
            cwd=scratch,
            env={"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "b4.attestation-policy", "GIT_CONFIG_VALUE_0": "off"})
    except CommandError as error:
        raise UsageError(f"b4 makes no series of {label}: {error.message}") from error
    boxes = sorted(out.glob("*.mbx"))
    if not boxes:
        raise UsageError(f"b4 found no patches in {label}")
    return Series(label, tuple(Patch(label, box) for box in boxes))
