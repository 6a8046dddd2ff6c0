"""A machine: one QEMU process, its monitor, its console and the agent of the guest in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import ProcessError, TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import SCRATCH, Process, Warden
from harness.model.events import Event, Timeline
from harness.vm.agent import GuestAgent
from harness.vm.argv import Descriptor, MachineSpec, machine_argv, tap_descriptors
from harness.vm.console import Console
from harness.vm.qmp import Qmp

__all__ = ["Machine", "MachineLogs"]


@dataclass(frozen=True)
class MachineLogs:
    """Where a machine's records go; None discards them."""

    qmp: IO[str] | None = None
    agent: IO[str] | None = None
    console: IO[bytes] | None = None
    argv: IO[str] | None = None


class Machine:
    """Starts QEMU in a lab and talks to it. `role` names it on the timeline ("source", "destination", "peer")."""

    def __init__(
        self, spec: MachineSpec, *, role: str, warden: Warden, timeline: Timeline, logs: MachineLogs | None = None, netns: str = "lab"
    ) -> None:
        self.spec = spec
        self.role = role
        self._warden = warden
        self._timeline = timeline
        self._logs = logs or MachineLogs()
        self._netns = netns
        self.qmp = Qmp(role, transcript=self._logs.qmp, on_event=self._event)
        self.agent = GuestAgent(role, transcript=self._logs.agent)
        self.console: Console | None = None
        self._process: Process | None = None
        self._ends: dict[Descriptor, socket.socket] = {}  # our ends of its sockets that were not connected to yet

    def __repr__(self) -> str:
        return f"Machine({self.spec.name!r}, {self.role})"

    def _event(self, event: Event) -> None:
        # The role may change in the machine's life (a destination becomes the source of the next migration).
        self._timeline.record(Event(t_ns=event.t_ns, source=self.role, name=event.name, data=event.data))

    @property
    def process(self) -> Process:
        if self._process is None:
            raise TestbedError(f"{self.spec.name} was not started")
        return self._process

    @property
    def started(self) -> bool:
        """Whether it ever ran."""
        return self._process is not None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def argv(self) -> list[str]:
        return machine_argv(self.spec)

    async def start(
        self, taps: Mapping[str, Sequence[int]], *, deadline: Deadline, state: Path | None = None, packet: socket.socket | None = None
    ) -> None:
        """Start QEMU with the given TAP queues (NIC id -> descriptors) and connect to it.

        `state`: the file that the machine begins with, read through the descriptor `STATE`. `packet`: what it finds as `PACKET`.

        `ProcessError` with QEMU's own words when it doesn't come up.
        """
        await self.spawn(taps, state=state, packet=packet)
        await self.connect(deadline=deadline)

    async def spawn(
        self, taps: Mapping[str, Sequence[int]], *, state: Path | None = None, packet: socket.socket | None = None
    ) -> None:
        """The first half of `start`: QEMU runs; nothing was said to it yet."""
        ours = self._ends
        passed: dict[int, int] = {}
        theirs: list[socket.socket] = []
        for number in (Descriptor.QMP, Descriptor.CONSOLE, Descriptor.AGENT):
            ours[number], end = socket.socketpair()
            theirs.append(end)
            passed[int(number)] = end.fileno()
        for nic, numbers in tap_descriptors(self.spec).items():
            passed.update(zip(numbers, taps.get(nic, ()), strict=True))
        try:
            with contextlib.ExitStack() as files:
                if packet is not None:
                    passed[int(Descriptor.PACKET)] = packet.fileno()
                if state is not None:
                    passed[int(Descriptor.STATE)] = files.enter_context(state.open("rb")).fileno()
                if self._logs.argv is not None:
                    self._logs.argv.write(json.dumps(self.argv, indent=1) + "\n")
                    self._logs.argv.flush()
                self._process = await self._warden.spawn(self.spec.name, self.argv, netns=self._netns, fds=passed)
        finally:
            for end in theirs:
                end.close()
        self.qmp.belongs_to(self._process)
        self.agent.belongs_to(self._process)
        self.console = Console(ours.pop(Descriptor.CONSOLE), self._logs.console)

    async def connect(self, *, deadline: Deadline) -> None:
        """The second half of `start`: connect to monitor and agent."""
        await self.unless_ended(self.qmp.attach(self._ends.pop(Descriptor.QMP), deadline=deadline), what="did not start")
        await self.agent.attach(self._ends.pop(Descriptor.AGENT), deadline=deadline)

    async def unless_ended(self, work: Any, *, what: str) -> Any:
        """Await `work`, but raise `ProcessError` as soon as QEMU is gone."""
        task = asyncio.ensure_future(work)
        ended = asyncio.ensure_future(asyncio.shield(self.process.ended))
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.process.error(what)
            try:
                return task.result()
            except ProcessError:
                raise  # this one's last words, or another's
            except TestbedError as error:
                # A connection that broke because QEMU is about to be seen as gone tells less than QEMU's last words.
                await asyncio.wait({ended}, timeout=0.5)
                if ended.done():
                    raise self.process.error(what) from error
                raise
        finally:
            for leftover in (task, ended):
                leftover.cancel()
                await asyncio.gather(leftover, return_exceptions=True)

    async def close(self) -> None:
        """End QEMU at once."""
        if self._process is not None and self._process.returncode is None:
            await self._process.kill()
        await self.qmp.detach()
        await self.agent.detach()
        if self.console is not None:
            self.console.close()
        while self._ends:
            self._ends.popitem()[1].close()

    def forget(self) -> None:
        """Close the records of a machine that has ended."""
        for file in (self._logs.qmp, self._logs.agent, self._logs.console, self._logs.argv):
            if file is not None:
                file.close()

    async def guest_memory(self, address: int, size_bytes: int) -> bytes:
        """Guest physical memory; consistent while the machine is stopped."""
        path = SCRATCH / f"{self.spec.name}-memory"
        await self.qmp.command("pmemsave", val=address, size=size_bytes, filename=str(path))
        with await self._warden.open(path) as file:
            content = file.read()
        await self._warden.unlink(path)
        return content

    def scratch(self, name: str) -> Path:
        """A path in the lab's private folder."""
        return SCRATCH / name
