"""Installs: a QEMU that can be started, and the record from which one is made again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

import msgspec

from harness.errors import TestbedError

__all__ = ["QemuInstall", "Record", "digest", "file_id", "load", "save"]

RECORD = "record.json"
_ID_CHARACTERS = 16


class QemuInstall(msgspec.Struct, frozen=True, kw_only=True):
    """One QEMU that can be started.

    ``[*argv_prefix, *("-L" and each of data_dirs), ...]`` starts ``qemu-system-x86_64``; `path` is that binary.
    `build_id` changes whenever the binary may behave differently: a digest of source, series and options for a
    build, of the package versions for a fetched one, of the file itself for a path.
    """

    name: str
    argv_prefix: tuple[str, ...]
    data_dirs: tuple[str, ...]
    version: str
    build_id: str
    origin: str
    path: str

    @property
    def start(self) -> list[str]:
        """`argv_prefix` with the ``-L`` options for `data_dirs`: what every command line begins with."""
        return [*self.argv_prefix, *(word for folder in self.data_dirs for word in ("-L", folder))]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a store folder says about itself (``record.json``); paths are relative to the folder, or absolute.

    With a `loader` the binary runs through that dynamic loader and the libraries in `library_dirs`, not the
    host's. `details` is for people: how this QEMU came about.
    """

    schema_version: Literal[1] = 1
    kind: Literal["fetched", "build", "tree"]
    build_id: str
    version: str
    origin: str
    binary: str
    data_dirs: tuple[str, ...] = ()
    loader: str = ""
    library_dirs: tuple[str, ...] = ()
    details: dict[str, str | list[str]] = {}  # msgspec copies mutable defaults

    def installed(self, folder: Path, *, name: str) -> QemuInstall:
        """The install that this record describes when it lies in `folder`; a `tree`'s id is its binary's now."""
        binary = folder / self.binary
        prefix = [str(binary)]
        if self.loader:
            libraries = ":".join(str(folder / directory) for directory in self.library_dirs)
            prefix = [str(folder / self.loader), "--library-path", libraries, *prefix]
        return QemuInstall(
            name=name,
            argv_prefix=tuple(prefix),
            data_dirs=tuple(str(folder / directory) for directory in self.data_dirs),
            version=self.version,
            build_id=file_id(binary) if self.kind == "tree" and binary.is_file() else self.build_id,
            origin=self.origin,
            path=str(binary),
        )


def save(record: Record, folder: Path) -> None:
    (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def load(folder: Path) -> Record:
    """The record of a store folder; raises `TestbedError` when it can't be read."""
    path = folder / RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError) as error:
        raise TestbedError(f"{path}: {error}", hint=f"remove {folder} and build or fetch it again") from error


def digest(*parts: object) -> str:
    """An identity over `parts` (anything JSON can say): 16 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_ID_CHARACTERS]


def file_id(path: Path) -> str:
    """An identity of a file's content: 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_ID_CHARACTERS]


def version_of(text: str) -> str:
    """The version in what ``qemu-system-x86_64 --version`` prints ("10.0.13"), or an empty string."""
    match = re.search(r"^QEMU emulator version (\S+)", text, re.MULTILINE)
    return match.group(1) if match else ""
