"""Whether the host's kernel really works the rings: its vhost workers, whose they are, and what they did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VhostWatch", "VhostWorker", "vhost_workers"]

_PREFIX = "vhost-"


@dataclass(frozen=True)
class VhostWorker:
    """One of the kernel's workers: a kernel thread (until Linux 6.3), or a thread of the QEMU it works for (since then).

    `owner`: process id of that QEMU, as the worker's name has it; `machine`: what follows that QEMU's `-name`, empty when it is gone.
    `idle`: it sleeps, and so has finished what it was woken for. `wakeups`: how often it has gone to sleep so far.
    """

    task: int
    owner: int
    machine: str
    idle: bool
    wakeups: int

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.owner}"


def vhost_workers(*, proc: Path = Path("/proc")) -> list[VhostWorker]:
    """All workers that can be seen, in the order of their task ids."""
    found = []
    for folder in _tasks(proc):
        try:
            name = (folder / "comm").read_text().strip()
            if not name.startswith(_PREFIX) or not name[len(_PREFIX) :].isdigit():
                continue
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has ended
        owner = int(name[len(_PREFIX) :])
        found.append(
            VhostWorker(
                task=int(folder.name), owner=owner, machine=_machine(proc / str(owner)), idle=status.get("State", "").strip().startswith(("S", "I")),
                wakeups=int(status.get("voluntary_ctxt_switches", "0")),
            )
        )
    return sorted(found, key=lambda worker: worker.task)


def _tasks(proc: Path) -> Iterator[Path]:
    """Every process, and every thread that is not its process's first."""
    for process in proc.glob("[0-9]*"):
        yield process
        yield from (task for task in (process / "task").glob("[0-9]*") if task.name != process.name)


def _machine(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[words.index("-name") + 1]
    except (OSError, ValueError, IndexError):
        return ""


class VhostWatch:
    """Which workers were there since it was made, and how often each woke since then."""

    def __init__(self, *, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._first: dict[int, VhostWorker] = {}  # when a machine's name could still be read
        self._last: dict[int, VhostWorker] = {}
        self._before = {worker.task: worker.wakeups for worker in vhost_workers(proc=proc)}
        self.look()

    def look(self) -> None:
        """Take in what there is now; to be called while the machines still run."""
        for worker in vhost_workers(proc=self._proc):
            self._first.setdefault(worker.task, worker)
            self._last[worker.task] = worker

    def _machine_of(self, task: int) -> str:
        return self._last[task].machine or self._first[task].machine

    @property
    def woken(self) -> dict[str, int]:
        """For each machine, how often its workers had woken at the last look that saw them; machines whose did not are left out."""
        total: dict[str, int] = {}
        for task, last in self._last.items():
            machine = self._machine_of(task)
            total[machine] = total.get(machine, 0) + last.wakeups - self._before.get(task, 0)
        return {machine: count for machine, count in total.items() if machine and count > 0}

    @property
    def figures(self) -> dict[str, float]:
        """`vhost_workers`: how many were seen; `vhost_woken_NAME`: how often those of a machine woke."""
        return {"vhost_workers": float(len(self._last)), **{f"vhost_woken_{machine}": float(count) for machine, count in self.woken.items()}}

    @property
    def note(self) -> str:
        """The evidence in words."""
        names = {self._machine_of(task): worker.name for task, worker in self._last.items()}
        if not self.woken:
            return "vhost: no worker of the kernel was seen at work"
        return "vhost: " + ", ".join(f"{names[machine]} ({machine}) woke {count} times" for machine, count in self.woken.items())
