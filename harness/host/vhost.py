"""Whether the host's kernel really works the rings: its vhost workers, by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["count_vhost_workers"]


def count_vhost_workers(*, proc: Path = Path("/proc")) -> int:
    """Kernel threads `vhost-PID` (until Linux 6.3), or threads of that name in a QEMU (since then)."""
    found = 0
    for comm in (*proc.glob("[0-9]*/comm"), *proc.glob("[0-9]*/task/[0-9]*/comm")):
        own_task = comm.parent.parent.name == "task" and comm.parent.name == comm.parents[2].name
        try:
            found += not own_task and comm.read_text().startswith("vhost-")
        except OSError:
            continue  # it has ended
    return found
