"""The guest agent: how the harness steers a guest without touching the network under test."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shlex
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from harness.errors import ProcessError, TestbedError
from harness.host.deadline import PATIENCE, Deadline
from harness.host.warden import Process
from harness.vm.qmp import Qmp

__all__ = ["CommandResult", "GuestAgent"]

_CHUNK_BYTES = 3 << 20
_FOLLOW_S = 0.005 * PATIENCE
_FIRST_LOOK_S, _LONGEST_PAUSE_S = 0.001 * PATIENCE, 0.05 * PATIENCE
"""How often a program's end is asked for: in a guest inside a guest the asking itself takes longer than on a plain host."""


@dataclass(frozen=True)
class CommandResult:
    """What a command in the guest came to."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class GuestAgent:
    """qemu-guest-agent over the virtio-serial port of one machine."""

    def __init__(self, who: str, *, transcript: IO[str] | None = None) -> None:
        self._who = who
        self._qmp = Qmp(f"{who}'s guest agent", transcript=transcript, agent=True)

    def belongs_to(self, process: Process) -> None:
        """A command fails at once when `process`, the machine that the guest is in, has ended."""
        self._qmp.belongs_to(process)

    async def attach(self, sock: socket.socket, *, deadline: Deadline) -> None:
        """Take over the socket; the agent itself may answer later (see `sync`)."""
        await self._qmp.attach(sock, deadline=deadline)

    async def detach(self) -> None:
        await self._qmp.detach()

    async def sync(self, *, deadline: Deadline) -> None:
        """Wait until the agent answers, and drop whatever older answers were on their way. `ProcessError` when its machine has ended."""
        while True:
            token = secrets.randbits(31)
            try:
                answer = await self._qmp.command("guest-sync", deadline=deadline.within(1.0), id=token)
            except ProcessError:
                raise  # nobody is left to answer
            except TestbedError as error:
                if deadline.expired:
                    raise deadline.error(f"the guest agent of {self._who}", seen=str(error)) from error
                await asyncio.sleep(0.02)
                continue
            if answer == token:
                return

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> CommandResult:
        """Run a program in the guest and wait for its end, whatever its status."""
        limit = deadline or Deadline(30.0)
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture_output": True}
        if stdin:
            arguments["input_data"] = base64.b64encode(stdin).decode()
        pid = (await self._qmp.command("guest-exec", deadline=limit, **arguments))["pid"]
        pause_s = _FIRST_LOOK_S
        while True:
            status = await self._qmp.command("guest-exec-status", deadline=limit, pid=pid)
            if status["exited"]:
                break
            if limit.expired:
                raise limit.error(f"{shlex.join(argv)} to end in {self._who}")
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
        return CommandResult(
            argv=tuple(argv),
            status=status.get("exitcode", -int(status.get("signal", 1))),
            stdout=base64.b64decode(status.get("out-data", "")),
            stderr=base64.b64decode(status.get("err-data", "")),
        )

    async def succeed(self, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None) -> str:
        """Like `run`; `TestbedError` with the program's own words when its status is not 0."""
        result = await self.run(argv, stdin=stdin, deadline=deadline)
        if result.status != 0:
            said = (result.stderr or result.stdout).decode(errors="replace").strip()[-2000:]
            raise TestbedError(f"{shlex.join(argv)} in {self._who} ended with status {result.status}: {said or 'no output'}")
        return result.text

    async def shell(self, script: str, *, deadline: Deadline | None = None) -> str:
        """Run a shell script in the guest; its output."""
        return await self.succeed(["/bin/sh", "-c", script], deadline=deadline)

    async def read_file(self, path: str, *, deadline: Deadline | None = None) -> bytes:
        """A whole file of the guest."""
        async with self._opened(path, "r", deadline or Deadline(120.0)) as handle:
            return await self._read(handle, deadline or Deadline(120.0))

    async def write_file(self, path: str, content: bytes, *, deadline: Deadline | None = None) -> None:
        """Write to a file of the guest, or into a FIFO that somebody reads: in milliseconds, where a program takes a tenth of a second."""
        limit = deadline or Deadline(30.0)
        async with self._opened(path, "w", limit) as handle:
            await self._qmp.command(
                "guest-file-write", deadline=limit, handle=handle, buf_b64=base64.b64encode(content).decode()
            )

    async def read_until(self, path: str, done: Callable[[bytes], bool], *, awaited: str, deadline: Deadline) -> bytes:
        """Follow a file that grows until its content is `done`; the content."""
        content = bytearray()
        async with self._opened(path, "r", deadline) as handle:
            while True:
                content += await self._read(handle, deadline)
                if done(bytes(content)):
                    return bytes(content)
                if deadline.expired:
                    raise deadline.error(awaited, seen=content.decode(errors="replace")[-500:])
                await asyncio.sleep(_FOLLOW_S)

    @contextlib.asynccontextmanager
    async def _opened(self, path: str, mode: str, deadline: Deadline) -> AsyncIterator[int]:
        handle = await self._qmp.command("guest-file-open", deadline=deadline, path=path, mode=mode)
        try:
            yield handle
        finally:
            await self._qmp.command("guest-file-close", handle=handle)

    async def _read(self, handle: int, deadline: Deadline) -> bytes:
        """From where the handle stands to the end."""
        content = bytearray()
        while True:
            part = await self._qmp.command("guest-file-read", deadline=deadline, handle=handle, count=_CHUNK_BYTES)
            content += base64.b64decode(part["buf-b64"])
            if part["eof"] or part["count"] == 0:
                return bytes(content)
