"""Where the migration stream goes: the address of each transport, as QEMU is told it."""

from __future__ import annotations

import shlex
import socket
from typing import Any

from harness.host.network import MANAGEMENT_HOST6
from harness.host.warden import SCRATCH
from harness.migrate.obstacles import SMALL_DISK_BYTES
from harness.migrate.ways.base import WayContext
from harness.model.scenario import Obstacle, Transport
from harness.vm.machine import Machine

__all__ = ["address", "can_use_files", "file_address", "hand_over_sockets", "stored_path"]

PORT = 4444
HOST6 = MANAGEMENT_HOST6
"""Not the loopback's: the resolver refuses IPv6 where no interface but that one has it."""
_FD_NAME = "migration"


def address(context: WayContext, *, attempt: int = 0) -> str:
    """The destination's address for a live transport; the same words serve both sides. `attempt` tells a recovery's from the first."""
    name = context.destination.spec.name + (f"-{attempt}" if attempt else "")
    port = PORT + attempt
    match context.plan.transport:
        case Transport.TCP:
            return f"tcp:{context.host or '127.0.0.1'}:{port}"
        case Transport.TCP6:
            return f"tcp:[{context.host or HOST6}]:{port}"
        case Transport.FD:
            return f"fd:{_FD_NAME}"
        case _:
            return f"unix:{SCRATCH / f'{name}.migrate'}"


def exec_addresses(context: WayContext) -> tuple[str, str]:
    """Commands of source and destination, joined by a named pipe that whoever comes first makes."""
    pipe = shlex.quote(str(SCRATCH / f"{context.destination.spec.name}.pipe"))
    make = f"mkfifo -m 600 {pipe} 2>/dev/null"
    return f"exec:{make}; exec cat >{pipe}", f"exec:{make}; exec cat <{pipe}"


async def hand_over_sockets(context: WayContext) -> None:
    """Give each machine one end of a socket pair, under a name."""
    for machine, end in zip((context.source, context.destination), socket.socketpair(), strict=True):
        with end:
            await give_descriptor(machine, end.fileno(), "getfd", fdname=_FD_NAME)


async def give_descriptor(machine: Machine, descriptor: int, command: str, **arguments: Any) -> Any:
    """Pass a descriptor along with a monitor command that takes one."""
    machine.qmp.send_fd_scm(descriptor)
    return await machine.qmp.command(command, **arguments)


async def can_use_files(machine: Machine) -> bool:
    """Whether this QEMU knows `file:` (it came with 8.2; mapped-ram, which is listed, a little later)."""
    listed = await machine.qmp.command("query-migrate-capabilities")
    return any(entry["capability"] == "mapped-ram" for entry in listed)


async def stored_path(context: WayContext) -> str:
    """The file that a stored migration goes through."""
    name = context.destination.spec.name
    if context.plan.obstacle is Obstacle.FULL_DISK:
        small = SCRATCH / f"{name}.small"
        await context.warden.request("mkdir", path=str(small), disk_bytes=SMALL_DISK_BYTES)
        return str(small / f"{name}.state")
    return str(SCRATCH / f"{name}.state")


async def file_address(machine: Machine, path: str, *, writes: bool) -> str:
    """`file:` where this QEMU has it, else a command that does the same."""
    if await can_use_files(machine):
        return f"file:{path}"
    return f"exec:exec cat {'>' if writes else '<'}{shlex.quote(path)}"
