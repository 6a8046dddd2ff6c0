"""Warm start: the state of a booted guest, saved once, from which later machines begin.

The state is QEMU's own migration stream in a file, taken from a guest that said it is ready and was then left alone. Its key
covers everything it depends on: QEMU build, accelerator, command line, kernel, image, CPU. It is never changed, only made again
under another key.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.vm.argv import Descriptor, MachineSpec, machine_argv
from harness.vm.discovery import Features
from harness.vm.machine import Machine

__all__ = ["save_state", "state_loaded", "state_uri", "warm_key", "warm_state"]

_LAYOUT_VERSION = 2


def warm_key(spec: MachineSpec, *, qemu_build: str, image_digest: str) -> str:
    """Digest of everything that the state of a booted guest depends on."""
    plain = msgspec.structs.replace(
        spec.of_the_guest(), name="warm", incoming=None, paused=False, traces=(), memory_file=None, aux_ram_share=False
    )
    cpu = platform.processor() or platform.machine()
    if spec.accelerator.startswith("kvm"):
        cpu = _host_cpu()
    text = "\n".join([str(_LAYOUT_VERSION), qemu_build, image_digest, cpu, shlex.join(machine_argv(plain))])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _host_cpu() -> str:
    """What tells one host CPU from another: under KVM a guest sees the host's own."""
    wanted = ("model name", "stepping", "microcode", "flags")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(wanted))
    return platform.machine()


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """One maker at a time; others wait for it, in a thread."""
    with path.open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def warm_state(
    spec: MachineSpec, *, cache: Path, qemu_build: str, image_digest: str, boot: Callable[[Path], Awaitable[None]]
) -> Path:
    """The file with the warm state for `spec`; `boot(path)` makes it where it is missing."""
    folder = cache / "warm"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"{warm_key(spec, qemu_build=qemu_build, image_digest=image_digest)}.state"
    if state.exists():
        return state
    async with _locked(state.with_suffix(".lock")):
        if not state.exists():
            fresh = state.with_suffix(".partial")
            fresh.unlink(missing_ok=True)
            try:
                await boot(fresh)
                fresh.replace(state)
            finally:
                fresh.unlink(missing_ok=True)
    return state


async def save_state(machine: Machine, path: Path, *, deadline: Deadline) -> None:
    """Write the running guest's state to `path`; the machine is stopped afterwards."""
    # exec: takes a path of any QEMU's choosing; file: came with 8.2.
    await machine.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
    await machine.qmp.command("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
    await _until_migrated(machine, deadline=deadline, what="the guest's state to be saved")
    if not path.exists() or path.stat().st_size < 1 << 20:
        raise TestbedError(f"the saved state of {machine.spec.name} is not there", hint=f"is the disk of {path.parent} full?")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def state_uri(features: Features) -> str:
    """How a QEMU takes its state from the descriptor that it inherits: `file:` where it is known, which newer ones insist on."""
    inherited = int(Descriptor.STATE)
    return f"file:/proc/self/fd/{inherited}" if features.has("capability:mapped-ram") else f"fd:{inherited}"


async def state_loaded(machine: Machine, *, deadline: Deadline) -> None:
    """Wait until a machine that was started with a state (and `-S`) has it; the guest does not run yet."""
    await _until_migrated(machine, deadline=deadline, what="the guest's state to be loaded")


async def _until_migrated(machine: Machine, *, deadline: Deadline, what: str) -> None:
    info: dict[str, object] = {}

    async def done() -> bool:
        nonlocal info
        info = await machine.qmp.command("query-migrate")
        if info.get("status") in ("failed", "cancelled"):
            raise TestbedError(f"{what}: {info.get('error-desc', info['status'])}")
        return info.get("status") == "completed"

    await machine.unless_ended(
        deadline.poll(done, awaited=what, interval_s=0.004, seen=lambda: str(info)), what=f"died while we waited for {what}"
    )
