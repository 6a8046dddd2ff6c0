"""What a bundle is: a tar of plain files below one folder, zstd-compressed, its manifest first.

::

    <run id>/manifest.json       schema version, every member with size and digest, what was left out and why
    <run id>/scenario.toml, result.json, run.json, host.json, argv-*.json, qmp-*.jsonl, ...
    <run id>/capture/*.pcapng, traffic/*.rec
    <run id>/patches/<digest>.patch        what was built in, by content
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from harness.builds import QemuRecipe

__all__ = [
    "BUNDLE_SCHEMA", "KIND", "MANIFEST", "MOST_BYTES", "MOST_MANIFEST_BYTES", "MOST_MEMBERS", "MOST_MEMBER_BYTES", "MOST_WINDOW_BYTES",
    "SUFFIX", "LeftOut", "Manifest", "Member", "Qemus", "is_member_name", "is_patch", "patch_member",
]  # fmt: skip

BUNDLE_SCHEMA = 1
KIND = "switchover-bundle"
MANIFEST = "manifest.json"
SUFFIX = ".tar.zst"

MOST_MEMBERS = 2000
MOST_MANIFEST_BYTES = 1 << 20
MOST_MEMBER_BYTES = 512 << 20
MOST_BYTES = 1 << 30
"""Of all members together, unpacked: more is refused by what the manifest declares, before anything is unpacked."""
MOST_WINDOW_BYTES = 64 << 20

_NAME = re.compile(r"(?:[a-z0-9][a-z0-9_-]{0,40}/){0,2}[A-Za-z0-9][A-Za-z0-9._+-]{0,90}\.(?:json|jsonl|log|txt|toml|csv|pcapng|rec|patch)")

_Size = Annotated[int, Meta(ge=0, le=MOST_MEMBER_BYTES)]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_Line = Annotated[str, Meta(max_length=500)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Member(_Record, frozen=True, kw_only=True):
    name: Annotated[str, Meta(max_length=200)]
    size: _Size
    sha256: _Digest


class LeftOut(_Record, frozen=True, kw_only=True):
    """A file of the run directory that the bundle doesn't have."""

    name: _Line
    size: Annotated[int, Meta(ge=0, le=1 << 50)]
    reason: _Line


class Qemus(_Record, frozen=True, kw_only=True):
    source: QemuRecipe
    destination: QemuRecipe


class Manifest(_Record, frozen=True, kw_only=True):
    """The whole of manifest.json. `seen_times` of `seen_runs` runs of this scenario on the sender's host showed the finding."""

    schema_version: Literal[1] = 1
    kind: Literal["switchover-bundle"] = "switchover-bundle"
    run_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]
    switchover: Annotated[str, Meta(max_length=60)]
    finding: Annotated[tuple[_Line, ...], Meta(max_length=50)] = ()
    seen_runs: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    seen_times: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    qemu: Qemus
    own_kernel: bool = False
    minimised_from: Annotated[str, Meta(max_length=120)] = ""
    scrubbed: dict[str, Annotated[int, Meta(ge=0, le=1 << 40)]] = {}
    left_out: Annotated[tuple[LeftOut, ...], Meta(max_length=MOST_MEMBERS)] = ()
    members: Annotated[tuple[Member, ...], Meta(max_length=MOST_MEMBERS)]


def is_member_name(name: str) -> bool:
    """Whether a bundle may hold a file of that name: relative, plain, shallow, of a kind that is known."""
    return name != MANIFEST and ".." not in name and _NAME.fullmatch(name) is not None


def is_patch(name: str) -> bool:
    return name.startswith("patches/")


def patch_member(sha256: str) -> str:
    """The name of the member that holds the patch of that content."""
    return f"patches/{sha256}.patch"
