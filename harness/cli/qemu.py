"""The table of `switchover qemu list`."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from harness.builds import QemuInstall

__all__ = ["qemu_table"]


def qemu_table(found: Sequence[QemuInstall]) -> str:
    rows = [[q.name, q.version, q.build_id, q.origin] for q in found]
    return str(tabulate(rows, headers=["name", "version", "build", "origin"], tablefmt="simple", disable_numparse=True))
