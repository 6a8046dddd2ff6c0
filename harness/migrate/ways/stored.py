"""Through a file: the source writes all of it, then the destination reads. Save and restore, cpr-reboot, and background snapshots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from harness.migrate.modes import Sides
from harness.migrate.ways.addresses import can_use_files, file_address, give_descriptor, stored_path
from harness.migrate.ways.base import WayContext, configure
from harness.vm.machine import Machine
from harness.vm.warm import state_loaded

__all__ = ["Snapshot", "Stored"]

_DIRECT_FOLDER = Path("/var/tmp")
"""A folder that is no tmpfs, as a rule: older ones refuse O_DIRECT."""


class Stored:
    """The state lies in a file between the two machines."""

    moves: ClassVar[bool] = True

    def __init__(self) -> None:
        self._direct: int | None = None
        self._path = ""

    async def listen(self, context: WayContext) -> None:
        await configure(context, context.source, Sides.SOURCE)
        await configure(context, context.destination, Sides.DESTINATION)

    async def begin(self, context: WayContext) -> None:
        await context.source.qmp.command("migrate", uri=await self._address(context, context.source, writes=True))

    async def status(self, context: WayContext, status: str) -> None:
        pass

    async def arrive(self, context: WayContext) -> None:
        try:
            uri = await self._address(context, context.destination, writes=False)
            await context.destination.qmp.command("migrate-incoming", uri=uri)
            await state_loaded(context.destination, deadline=context.deadline)
        finally:
            await self._clean_up(context)

    async def _address(self, context: WayContext, machine: Machine, *, writes: bool) -> str:
        if context.plan.parameters.get("direct-io"):
            return await self._direct_address(machine, os.O_WRONLY if writes else os.O_RDONLY)
        self._path = self._path or await stored_path(context)
        return await file_address(machine, self._path, writes=writes)

    async def _direct_address(self, machine: Machine, access: int) -> str:
        """An unnamed file on a disk, opened with and without O_DIRECT, as a set of descriptors: nothing is left however we end.

        QEMU picks the descriptor whose access is the one it would open the file with.
        """
        if self._direct is None:
            self._direct = os.open(_DIRECT_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fdset = 1
        for flags in (access, access | os.O_DIRECT):
            descriptor = os.open(f"/proc/self/fd/{self._direct}", flags | os.O_CLOEXEC)
            try:
                await give_descriptor(machine, descriptor, "add-fd", fdset_id=fdset)
            finally:
                os.close(descriptor)
        return f"file:/dev/fdset/{fdset}"

    async def _clean_up(self, context: WayContext) -> None:
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None
        if self._path:
            await context.warden.unlink(Path(self._path))


class Snapshot(Stored):
    """The guest is saved while it runs on where it is. That the file is good is shown by loading it, stopped, into the other machine."""

    moves: ClassVar[bool] = False

    async def listen(self, context: WayContext) -> None:
        await configure(context, context.source, Sides.SOURCE)

    async def arrive(self, context: WayContext) -> None:
        await super().arrive(context)
        context.event("snapshot-loaded", {"files": await can_use_files(context.destination)})
