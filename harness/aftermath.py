"""What a run that broke off leaves: everything that is known at that moment, beside what was captured.

The folder keeps its partial name. In it are, as far as each could be had:

    error.txt          what went wrong, with its traceback, and what could not be kept
    events.jsonl       the timeline up to then: QMP's events, what the harness did, what the bridges learned
    trace-NAME.jsonl   a machine's trace points; output-NAME.log: all that its QEMU printed
    qmp-NAME.jsonl     with what it said of itself when it was asked at the end (query-status, query-migrate);
                       agent-NAME.jsonl, console-NAME.log and argv-NAME.json are there too
    host.json          what this host is

A failure here hides nothing: it stands in error.txt, and the error that was the cause goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from harness.errors import EnvironmentLackError, SwitchoverError
from harness.host.deadline import Deadline
from harness.host.facts import host_facts
from harness.lab import Lab
from harness.store.rundir import RunDirectory
from harness.vm.machine import Machine
from harness.vm.trace import trace_events

__all__ = ["ERROR_FILE", "keep_what_there_is", "kept_on_failure", "write_timeline"]

ERROR_FILE = "error.txt"
_LAST_QUESTIONS = ("query-status", "query-migrate")
_ANSWER_S = 1.0


async def keep_what_there_is(lab: Lab, directory: RunDirectory, *, error: BaseException) -> None:
    """Write it into the folder, which the error then names. Raises nothing; takes a second at most when the machines answer no more."""
    lost: list[str] = []
    parts: dict[str, Callable[[Lab, RunDirectory], None]] = {"the timeline": write_timeline, "the machines' records": _records, "the host's facts": _host}
    if isinstance(error, Exception):  # who interrupts does not want to wait
        await asyncio.gather(*(_ask(machine) for machine in lab.machines), return_exceptions=True)
    for what, part in parts.items():
        try:
            part(lab, directory)
        except Exception as failure:
            lost.append(f"{what} could not be kept: {type(failure).__name__}: {failure}")
    with contextlib.suppress(OSError):
        said = "".join(traceback.format_exception(error))
        (directory.path / ERROR_FILE).write_text("\n".join([said, *lost, ""]), encoding="utf-8")
    _name(error, directory.path)


@contextlib.asynccontextmanager
async def kept_on_failure(lab: Lab, directory: RunDirectory) -> AsyncIterator[None]:
    """For a block of work with the lab: if it fails, what there is is kept, unless that was done where it failed."""
    try:
        yield
    except BaseException as error:
        if not (directory.path / ERROR_FILE).exists():
            await keep_what_there_is(lab, directory, error=error)
        raise


def _name(error: BaseException, path: Path) -> None:
    """The error says where it is; a lack, which is no failure, does not."""
    if isinstance(error, EnvironmentLackError):
        return
    if isinstance(error, SwitchoverError):
        error.kept = str(path)
    else:
        error.add_note(f"what there is of the run lies in {path}")


async def _ask(machine: Machine) -> None:
    """What it says stands in its transcript."""
    if machine.alive:
        with contextlib.suppress(SwitchoverError):
            deadline = Deadline(_ANSWER_S)
            for question in _LAST_QUESTIONS:
                await machine.qmp.command(question, deadline=deadline)


def write_timeline(lab: Lab, directory: RunDirectory, *, end_ns: int | None = None) -> None:
    """Each machine's trace, and the merged timeline up to `end_ns`: of the harness, the machines, what they traced, and what the bridges learned."""
    merged = list(lab.timeline) + (lab.learning.events if lab.learning is not None else [])
    for machine in lab.machines:
        if machine.started:
            traced = trace_events(machine)
            directory.write_events(traced, name=f"trace-{machine.spec.name}.jsonl")
            merged += traced
    directory.write_events(sorted((e for e in merged if end_ns is None or e.t_ns <= end_ns), key=lambda e: e.t_ns))


def _records(lab: Lab, directory: RunDirectory) -> None:
    for machine in lab.machines:
        if machine.started:
            (directory.path / f"output-{machine.spec.name}.log").write_bytes(machine.process.read_output())
    if lab.logs is not None:
        lab.logs.write(directory.path)


def _host(lab: Lab, directory: RunDirectory) -> None:  # noqa: ARG001 one signature for all parts
    directory.write_json("host.json", host_facts())
