"""A tree whose commits say in a file what they cost, and runs that read it: `python bisect_fakes.py FOLDER` is a step of `git bisect run`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from harness.bisect import BisectFolder, step
from harness.bisect.step import git
from harness.errors import BuildError, EnvironmentLackError, TestbedError
from harness.model.example import make_result
from harness.run import RunOptions


def silent(_text: str) -> None:
    pass


def candidate(facts: Any, folder: BisectFolder, commit: str, role: str, options: RunOptions, progress: Any) -> tuple[str, ...]:
    """What the commit costs goes into the scenario's description, which changes nothing of a run."""
    cost = git(folder.repository, "show", f"{commit}:cost")
    if cost == "broken":
        raise BuildError("net.c: error: expected ';'\n  more")
    return (f'description="{cost}"',)


class CostRunner:
    """A run reads its commit's cost, give or take a few."""

    def __init__(self) -> None:
        self._noise = itertools.cycle((0, 3, -4, 1, -2, 5, -1))
        self._count = itertools.count()

    async def prepare(self, scenario: Any, *, options: RunOptions, progress: Any) -> None:
        pass

    async def run(self, scenario: Any, *, options: RunOptions, progress: Any) -> Any:
        cost = scenario.description
        if cost == "crashes":
            raise TestbedError("QEMU was killed by SIGSEGV")
        if cost == "no disk":
            raise EnvironmentLackError("the disk is full")
        number = next(self._count)
        noise = next(self._noise)
        value = float(1000 if cost == "either" and number % 2 else 5000 if cost == "either" else cost)
        found = make_result(figures={"virtio_net_load_us": value + 10 * noise}, run_id=f"run-{number}")
        return found, options.results / found.run_id


if __name__ == "__main__":
    where = BisectFolder(Path(sys.argv[1]))
    options = RunOptions(results=where.path, cache=where.path)
    sys.exit(step(where, options=options, progress=silent, candidate=candidate, runner=CostRunner()))
