"""The guest agent: how the harness steers a guest without touching the network under test."""

from __future__ import annotations

import asyncio
import base64
import secrets
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.vm.qmp import Qmp

__all__ = ["CommandResult", "GuestAgent"]

_CHUNK_BYTES = 3 << 20


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

    async def attach(self, sock: socket.socket, *, deadline: Deadline) -> None:
        """Take over the socket; the agent itself may answer later (see `sync`)."""
        await self._qmp.attach(sock, deadline=deadline)

    async def detach(self) -> None:
        await self._qmp.detach()

    async def sync(self, *, deadline: Deadline) -> None:
        """Wait until the agent answers, and drop whatever older answers were on their way."""
        while True:
            token = secrets.randbits(31)
            try:
                answer = await self._qmp.command("guest-sync", deadline=deadline.within(1.0), id=token)
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
        pause_s = 0.001
        while True:
            status = await self._qmp.command("guest-exec-status", deadline=limit, pid=pid)
            if status["exited"]:
                break
            if limit.expired:
                raise limit.error(f"{shlex.join(argv)} to end in {self._who}")
            await asyncio.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)
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
        limit = deadline or Deadline(120.0)
        handle = await self._qmp.command("guest-file-open", deadline=limit, path=path, mode="r")
        content = bytearray()
        try:
            while True:
                part = await self._qmp.command("guest-file-read", deadline=limit, handle=handle, count=_CHUNK_BYTES)
                content += base64.b64decode(part["buf-b64"])
                if part["eof"] or part["count"] == 0:
                    return bytes(content)
        finally:
            await self._qmp.command("guest-file-close", handle=handle)
