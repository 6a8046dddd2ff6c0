"""One scenario from end to end.

Check what was asked for; boot a pair in a lab of its own; capture at the peer's port and at both TAPs; let the
traffic run; migrate the mobile guest; let the traffic run on; bring in every record; account for every packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from harness.aftermath import kept_on_failure
from harness.builds import resolve_qemu
from harness.errors import MigrationError, SwitchoverError, TestbedError
from harness.host.accel import choose_accelerator
from harness.host.deadline import Deadline
from harness.host.facts import host_facts, require_vhost
from harness.host.migration_link import LinkShape
from harness.lab import Lab, LabSettings
from harness.migrate.checks import check_host, check_plan
from harness.model.calibration import CalibrationResult
from harness.model.plan import MigrationPlan
from harness.model.result import RunResult
from harness.model.scenario import MigrationMode, Root, Scenario
from harness.model.streams import plan_traffic
from harness.recording import Recording
from harness.store.index import Index, results_folder
from harness.store.rundir import RunDirectory
from harness.traffic.witness import require_programs
from harness.vm.board import common_machine
from harness.vm.discovery import discover
from harness.vm.image import GuestImage, build_image, load_image
from harness.vm.logs import LabLogs
from harness.vm.migration_devices import nic_properties, slow_device
from harness.vm.nic import guest_nic_properties
from harness.vm.root_disk import RootDisk, root_disk
from harness.vm.warm import state_uri

__all__ = ["RunOptions", "prepare", "run_scenario"]

Progress = Callable[[str], None]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are and go. `cold` boots guests for real instead of starting them from a saved state; `calibration` is what
    the campaign showed before, and says what the run's figures are worth."""

    results: Path
    cache: Path
    cold: bool = False
    calibration: CalibrationResult | None = None


async def prepare(scenario: Scenario, *, options: RunOptions, progress: Progress) -> LabSettings:
    """Find or build everything a scenario needs, and refuse what can't work before anything boots."""
    source = await asyncio.to_thread(resolve_qemu, scenario.qemu.source, options.cache)
    destination = await asyncio.to_thread(resolve_qemu, scenario.qemu.destination, options.cache)
    features = [await discover(qemu, cache=options.cache) for qemu in dict.fromkeys((source, destination))]
    plan = MigrationPlan.from_section(scenario.migration, mechanism=scenario.mechanism)
    machine, notes = common_machine(scenario.guest.machine, source=features[0], destination=features[-1])
    check_plan(plan, scenario=scenario, source=features[0], destination=features[-1])
    check_host(plan)
    require_programs(scenario.traffic, peer=scenario.network.peer)
    if scenario.network.vhost:
        require_vhost()
    accelerator, reason = await choose_accelerator(
        scenario.accelerator, argv_prefix=source.argv_prefix, cache=options.cache
    )
    check_plan(plan, scenario=scenario, source=features[0], destination=features[-1], accelerator=accelerator)
    image = await _image(scenario, options, progress)
    root = await _root(scenario, image, options, progress) if scenario.guest.root is Root.DISK else None
    return LabSettings(
        source=source, destination=destination, accelerator=accelerator, accelerator_reason=reason, image=image, cache=options.cache,
        memory=scenario.guest.memory, vcpus=scenario.guest.vcpus, machine=machine, notes=notes,
        cpu=scenario.guest.cpu, peer=scenario.network.peer, mtu=scenario.network.mtu, queues=scenario.network.queues,
        vhost=scenario.network.vhost, management=scenario.guest.management,
        shared_memory=scenario.guest.shared_memory, aux_ram_share=all(side.has("cpr-transfer") for side in features), disk=scenario.guest.disk,
        root=root, dirty_mib_s=scenario.guest.dirty_mib_s, dirty_mib=scenario.guest.dirty_mib,
        static_neighbours=scenario.network.static_neighbours, destination_port=scenario.network.destination_port,
        enabled_queues=scenario.network.enabled_queues, nic_properties=nic_properties(scenario.network)[0],
        guest_nic_properties=guest_nic_properties(scenario.network), topology=scenario.network.topology, extra_nics=scenario.network.extra_nics,
        link=LinkShape(
            mbit_s=scenario.network.link_mbit_s, delay_ms=scenario.network.link_delay_ms, loss_percent=scenario.network.link_loss_percent
        ),
        destination_nic_properties=nic_properties(scenario.network)[1], migration_devices=slow_device(scenario.guest.slow_device),
        cold=options.cold, state_uri=state_uri(features[0]), migration_properties=scenario.qemu.migration_properties,
    )  # fmt: skip


async def _image(scenario: Scenario, options: RunOptions, progress: Progress) -> GuestImage:
    if scenario.guest.image is not None:
        return load_image(Path(scenario.guest.image))
    kernel = Path(scenario.guest.kernel) if scenario.guest.kernel else None
    modules = Path(scenario.guest.modules) if scenario.guest.modules else None
    return await build_image(cache=options.cache, kernel=kernel, modules=modules, progress=progress)


async def _root(scenario: Scenario, image: GuestImage, options: RunOptions, progress: Progress) -> RootDisk:
    kernel, modules = (Path(name) if name else None for name in (scenario.guest.kernel, scenario.guest.modules))
    return await root_disk(image, cache=options.cache, kernel=kernel, modules=modules, progress=progress)


async def run_scenario(scenario: Scenario, *, options: RunOptions, progress: Progress) -> tuple[RunResult, Path]:
    """Run a scenario once; its result and its run directory.

    A migration that ends in a way nobody asked for is a result too (`failed`); whatever keeps the run from being made is
    raised, and the directory keeps its partial name and its log.
    """
    settings = await prepare(scenario, options=options, progress=progress)
    directory = RunDirectory.create(options.results, scenario.name)
    try:
        with _host_lock(options.cache) as alone:
            result = await _execute(scenario, settings, directory, progress, alone=alone, calibration=options.calibration)
    except BaseException as error:
        with contextlib.suppress(SwitchoverError, OSError):
            directory.log(f"ended by {type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TestbedError(
                f"the run can't be written to {directory.path}: {error.strerror}", hint="free some space, or choose another folder with --results"
            ) from error
        raise
    directory.finish()
    # what goes wrong here is of no account: the next reader finds the run anyway
    with contextlib.suppress(SwitchoverError, sqlite3.Error, OSError), Index(results_folder(directory.path)) as index:
        index.add(directory.path)
    return result, directory.path


async def _execute(
    scenario: Scenario, settings: LabSettings, directory: RunDirectory, progress: Progress, *, alone: bool,
    calibration: CalibrationResult | None,
) -> RunResult:
    timing, plan = scenario.timing, MigrationPlan.from_section(scenario.migration, mechanism=scenario.mechanism)

    def say(text: str) -> None:
        directory.log(text)
        progress(text)

    began = time.monotonic()
    directory.write_scenario(scenario)
    directory.write_json("host.json", host_facts())
    sides = {"source": settings.source, "destination": settings.destination}
    features = {side: await discover(qemu, cache=settings.cache) for side, qemu in sides.items()}
    directory.write_json("features.json", features)
    async with Lab(settings, logs=LabLogs(directory.path), progress=say) as lab, kept_on_failure(lab, directory):
        say("starting the pair" + (" cold" if settings.cold else ""))
        await lab.start()
        deadline = Deadline(timing.timeout_s)
        recording = await Recording.begin(lab, directory, scenario=scenario)
        recording.calibration = calibration
        try:
            if not alone:
                recording.notes.append("another run was under way on this host: timings are not to be compared")
            planned = tuple(plan_traffic(scenario.traffic))
            if scenario.inject.drop_packets:
                await recording.drop_on_purpose(scenario.inject, planned)
            traffic = await recording.start_traffic(planned, deadline=deadline)
            say(f"{len(planned)} streams, {timing.settle_s:g} s before, {timing.tail_s:g} s after")
            await asyncio.sleep(timing.settle_s)
            if plan.mode is not MigrationMode.NONE:
                say(f"migrating: {plan.mode}, mechanism {plan.mechanism}")
                try:
                    await recording.migrate(plan, deadline=deadline)
                except MigrationError as error:
                    recording.failure = error.message
                    recording.notes.insert(0, error.message)
            await asyncio.sleep(timing.tail_s)
            say("bringing in the records")
            await recording.stop_traffic(traffic, drain_s=timing.drain_s, deadline=deadline)
        except BaseException as error:
            await recording.abandon(error)
            raise
        waited_s = timing.settle_s + timing.tail_s + timing.drain_s
        figures = recording.figures
        figures["planned_s"] = figures["ready_s"] + waited_s + figures.get("migration_s", 0.0)
        figures["before_analysis_s"] = time.monotonic() - began
        say("accounting for every packet")
        return (await recording.conclude()).result


@contextlib.contextmanager
def _host_lock(cache: Path) -> Iterator[bool]:
    """Whether this is the only timed run on the host; a second one goes on, but is marked."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "timed-run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
