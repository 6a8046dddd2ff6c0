"""An empty disk for a guest, in the lab's private folder: raw, or qcow2 (whose few header clusters are written here)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from harness.host.warden import Warden

__all__ = ["empty_qcow2", "make_disk"]

_CLUSTER_BITS = 16
_CLUSTER_BYTES = 1 << _CLUSTER_BITS
_HEADER_BYTES = 104
_REFCOUNT_ORDER = 4  # 16 bits each
_LARGEST_BYTES = (_CLUSTER_BYTES // 8) * _CLUSTER_BYTES * (_CLUSTER_BYTES // 8)


def empty_qcow2(size_bytes: int) -> bytes:
    """A qcow2 image (version 3) of that virtual size with nothing in it.

    Clusters: header, refcount table, one refcount block, first-level table.
    """
    if not 0 < size_bytes <= _LARGEST_BYTES:
        raise ValueError(f"a disk of {size_bytes} bytes")
    per_entry = (_CLUSTER_BYTES // 8) * _CLUSTER_BYTES  # what one second-level table covers
    entries = -(-size_bytes // per_entry)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, size_bytes, 0, entries, 3 * _CLUSTER_BYTES, _CLUSTER_BYTES, 1, 0, 0,
        0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES,
    )  # fmt: skip
    table = struct.pack(">Q", 2 * _CLUSTER_BYTES)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(part.ljust(_CLUSTER_BYTES, b"\0") for part in (header, table, counts, b""))


async def make_disk(warden: Warden, path: Path, *, format: str, size_bytes: int) -> None:
    """An empty disk at `path` of the lab's scratch folder; `format` is "raw" or "qcow2"."""
    with await warden.open(path, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        if format == "qcow2":
            file.write(empty_qcow2(size_bytes))
        else:
            file.truncate(size_bytes)
