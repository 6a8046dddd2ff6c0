"""Ping-pong: one guest, migrated back and forth many times without a reboot, each time with the account of every packet.

What grows is seen: after each migration the harness's own memory, descriptors and threads are counted, and the lab's processes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from harness.errors import MigrationError, UsageError
from harness.host.deadline import Deadline
from harness.lab import Lab
from harness.model.pingpong import PingPong, Round
from harness.model.plan import MigrationPlan
from harness.model.result import RunResult
from harness.model.scenario import Scenario
from harness.model.streams import plan_traffic
from harness.recording import Recording
from harness.run import RunOptions, prepare
from harness.store.rundir import RunDirectory

__all__ = ["PINGPONG_FILE", "ping_pong", "read_ping_pong"]

PINGPONG_FILE = "ping-pong.json"
_SETTLE_S = 10.0


async def ping_pong(scenario: Scenario, *, times: int, options: RunOptions, progress: Callable[[str], None]) -> PingPong:
    """Migrate the scenario's guest `times` times, from machine to machine; each round leaves a run directory below `options.results`, and all `ping-pong.json`.

    A migration that ends in a way nobody asked for ends the rest: the guest may be gone.
    """
    settings = await prepare(scenario, options=options, progress=progress)
    options.results.mkdir(parents=True, exist_ok=True)
    rounds: list[Round] = []
    async with Lab(settings, progress=progress) as lab:
        await lab.start()
        for number in range(1, times + 1):
            progress(f"migration {number} of {times}")
            began, began_ns = time.monotonic(), time.time_ns()
            lab.timeline.forget(before_ns=began_ns)
            if lab.learning is not None:
                lab.learning.forget(before_ns=began_ns)
            result, failure = await _round(lab, scenario, folder=options.results)
            rounds.append(_seen(result, number=number, seconds=time.monotonic() - began))
            if failure:
                progress(failure)
                break
    found = PingPong(scenario=scenario.name, planned=times, rounds=tuple(rounds))
    (options.results / PINGPONG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return found


def read_ping_pong(folder: Path) -> PingPong:
    """What `ping_pong` left in a folder. `UsageError` where it left nothing, or what can't be read."""
    try:
        return msgspec.json.decode((folder / PINGPONG_FILE).read_bytes(), type=PingPong)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{folder / PINGPONG_FILE} can't be read: {error}") from error


async def _round(lab: Lab, scenario: Scenario, *, folder: Path) -> tuple[RunResult, str]:
    """One migration under the scenario's traffic: its result, and why it failed (empty if it did not)."""
    timing = scenario.timing
    await lab.settle(deadline=Deadline(_SETTLE_S))
    directory = RunDirectory.create(folder, scenario.name)
    # The machines' sides change with each migration; the scenario says what was asked for at the start.
    asked = msgspec.structs.replace(
        scenario, qemu=msgspec.structs.replace(scenario.qemu, source=lab.settings.source.name, destination=lab.settings.destination.name)
    )
    directory.write_scenario(asked)
    deadline = Deadline(timing.timeout_s)
    recording = await Recording.begin(lab, directory, scenario=asked)
    try:
        traffic = await recording.start_traffic(tuple(plan_traffic(scenario.traffic)), deadline=deadline)
        await asyncio.sleep(timing.settle_s)
        try:
            await recording.migrate(MigrationPlan.from_section(scenario.migration, mechanism=scenario.mechanism), deadline=deadline)
        except MigrationError as error:
            recording.failure = error.message
        await asyncio.sleep(timing.tail_s)
        await recording.stop_traffic(traffic, drain_s=timing.drain_s, deadline=deadline)
    except BaseException as error:
        await recording.abandon(error)
        raise
    result = (await recording.conclude()).result
    directory.finish()
    return result, recording.failure or ""


def _seen(result: RunResult, *, number: int, seconds: float) -> Round:
    process = psutil.Process()
    return Round(
        number=number, run=result.run_id, outcome=str(result.outcome), seconds=seconds,
        lost=sum(stream.lost for stream in result.streams), duplicated=sum(stream.duplicated for stream in result.streams),
        unexplained=sum(stream.ledger.unexplained for stream in result.streams),
        compute_ms=result.downtime.compute_ms.value, network_ms=result.downtime.network_ms.value,
        reported_ms=result.downtime.reported_ms.value,
        total_ms=result.migration.total_ms if result.migration is not None else None,
        memory_bytes=process.memory_info().rss, descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()), threads=threading.active_count(),
        processes=len(process.children(recursive=True)),
    )  # fmt: skip
