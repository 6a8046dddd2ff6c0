"""Where a traffic program runs: in a guest, or in the peer's namespace on the host. Both look alike from here."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from harness.errors import TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import SCRATCH, Process, Warden
from harness.vm.agent import GuestAgent

__all__ = ["Endpoint", "GuestEndpoint", "NamespaceEndpoint", "Output", "Program", "Running"]

GUEST_INTERFACE = "eth0"
"""The NIC under test, as the guest calls it."""


class Running(Protocol):
    """A generator that runs at an endpoint."""

    async def start_sending(self) -> None:
        """SIGUSR2: its receivers are up already."""

    async def stop_sending(self) -> None:
        """SIGUSR1: it goes on receiving."""

    async def stopped(self, *, deadline: Deadline) -> None:
        """Wait until nothing leaves any more and each of its TCP clients has had the other end's last word."""

    async def finish(self, folder: Path, *, deadline: Deadline) -> dict[str, Any]:
        """End it, fetch its record files into `folder`; returns its summary."""


@dataclass(frozen=True)
class Output:
    """What a program left behind."""

    content: bytes
    messages: str


class Program(Protocol):
    """Another program that runs at an endpoint."""

    async def end(self, number: int, *, deadline: Deadline) -> Output:
        """Send it a signal, wait for its end, fetch what it wrote. One that had ended by itself is as good."""


class Endpoint(Protocol):
    """One end of the traffic."""

    name: str

    async def launch(self, tag: str, argv: Sequence[str], *, output: str | None = None, deadline: Deadline) -> Program:
        """Run a program in a fresh folder. `output`: the file in it that the program writes, if not its standard output."""

    async def listens(self, port: int, *, udp: bool = False) -> bool:
        """Whether somebody at this end listens on a port."""

    async def start(self, tag: str, arguments: Sequence[str], *, deadline: Deadline) -> Running:
        """Run the generator with `arguments` (the output folder is the endpoint's business); it receives, and does not send yet."""


def _kept_name(name: str, endpoint: str) -> str:
    """The name of a record file in the run directory: both ends of a connection write one of the same name."""
    return name.replace(".tcp.rec", f".tcp-{endpoint}.rec")


def _summary(output: str, who: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    try:
        summary = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise TestbedError(f"the generator at {who} ended without a summary: {output.strip()[-500:]!r}") from None
    if not isinstance(summary, dict):
        raise TestbedError(f"the generator at {who} ended with {lines[-1]!r} instead of a summary")
    return summary


def _records(summary: dict[str, Any]) -> list[str]:
    return [name for stream in summary["streams"] for name in stream["records"]]


class _InGuest:
    def __init__(self, endpoint: GuestEndpoint, folder: PurePosixPath) -> None:
        self._endpoint = endpoint
        self._folder = folder

    @property
    def _agent(self) -> GuestAgent:
        return self._endpoint.agent

    async def start_sending(self) -> None:
        await self._order("send")

    async def stop_sending(self) -> None:
        if not self._endpoint.gone:
            await self._order("stop")

    async def _order(self, word: str) -> None:
        await self._agent.write_file(f"{self._folder}/control", f"{word}\n".encode())

    async def _until(self, line_start: bytes, *, awaited: str, deadline: Deadline) -> str:
        def said(status: bytes) -> bool:
            return status.endswith(b"\n") and any(line.startswith(line_start) for line in status.splitlines())

        return (await self._agent.read_until(f"{self._folder}/status", said, awaited=awaited, deadline=deadline)).decode()

    async def stopped(self, *, deadline: Deadline) -> None:
        if self._endpoint.gone:
            return
        await self._until(b"stopped", awaited=f"the generator at {self._endpoint.name} to have stopped sending", deadline=deadline)

    async def finish(self, folder: Path, *, deadline: Deadline) -> dict[str, Any]:
        if self._endpoint.gone:
            return {"streams": []}
        await self._order("end")
        output = await self._until(b"{", awaited=f"the summary of the generator at {self._endpoint.name}", deadline=deadline)
        summary = _summary(output, self._endpoint.name)
        for name in _records(summary):
            content = await self._agent.read_file(f"{self._folder}/{name}", deadline=deadline)
            await asyncio.to_thread((folder / _kept_name(name, self._endpoint.name)).write_bytes, content)
        return summary


class GuestEndpoint:
    """A guest, reached through its agent. After a migration the agent is that of the machine the guest is in now.

    A guest that is `gone` (its machine died) is not asked any more; its records went with it.
    """

    def __init__(self, name: str, agent: GuestAgent) -> None:
        self.name = name
        self.agent = agent
        self.gone = False

    async def start(self, tag: str, arguments: Sequence[str], *, deadline: Deadline) -> Running:
        folder = PurePosixPath("/tmp") / f"traffic-{tag}"
        argv = ["swgen", "run", "--daemon", "--wait", "--queue", GUEST_INTERFACE, "--out", str(folder), *arguments]
        await self.agent.succeed(argv, deadline=deadline)
        return _InGuest(self, folder)

    async def launch(self, tag: str, argv: Sequence[str], *, output: str | None = None, deadline: Deadline) -> Program:
        folder = PurePosixPath("/tmp") / f"traffic-{tag}"
        script = f"mkdir -p {folder}; cd {folder}; {shlex.join(argv)} </dev/null >output 2>messages & echo $!"
        text = await self.agent.shell(script, deadline=deadline)
        return _ProgramInGuest(self, folder / (output or "output"), int(text))

    async def listens(self, port: int, *, udp: bool = False) -> bool:
        return bool((await self.agent.succeed(_listeners(port, udp=udp))).strip())


def _listeners(port: int, *, udp: bool) -> list[str]:
    return ["ss", "-Hnl" + ("u" if udp else "t"), f"sport = :{port}"]


@dataclass(frozen=True)
class _ProgramInGuest:
    endpoint: GuestEndpoint
    output: PurePosixPath
    pid: int

    async def end(self, number: int, *, deadline: Deadline) -> Output:
        limit = max(1, round(deadline.remaining_s / 0.005))
        script = (
            f"kill -{number} {self.pid} 2>/dev/null; n=0; while kill -0 {self.pid} 2>/dev/null; do n=$((n+1));"
            f" [ $n -lt {limit} ] || exit 1; usleep 5000; done; cd {self.output.parent}; touch {self.output.name}; cat messages"
        )
        messages = await self.endpoint.agent.shell(script, deadline=deadline)
        return Output(await self.endpoint.agent.read_file(str(self.output), deadline=deadline), messages)


class _InNamespace:
    def __init__(self, endpoint: NamespaceEndpoint, folder: Path, process: Process) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._process = process

    async def start_sending(self) -> None:
        await self._process.signal(signal.SIGUSR2)

    async def stop_sending(self) -> None:
        await self._process.signal(signal.SIGUSR1)

    async def stopped(self, *, deadline: Deadline) -> None:
        async def there() -> bool:
            if self._process.returncode is not None:
                raise self._process.error("the generator ended before it was told to")
            return b"stopped" in self._process.read_output()

        await deadline.poll(there, awaited=f"the generator at {self._endpoint.name} to have stopped sending", interval_s=0.01)

    async def finish(self, folder: Path, *, deadline: Deadline) -> dict[str, Any]:
        await self._process.signal(signal.SIGTERM)
        if await self._process.wait(deadline) != 0:
            raise self._process.error("the generator failed")
        summary = _summary(self._process.read_output().decode(), self._endpoint.name)
        for name in _records(summary):
            with await self._endpoint.warden.open(self._folder / name) as file:
                (folder / _kept_name(name, self._endpoint.name)).write_bytes(file.read())
            await self._endpoint.warden.unlink(self._folder / name)
        return summary


class NamespaceEndpoint:
    """A network namespace of the lab, with the same generator built for the host."""

    def __init__(self, name: str, *, warden: Warden, netns: str, generator: Path) -> None:
        self.name = name
        self.warden = warden
        self._netns = netns
        self._generator = generator

    async def start(self, tag: str, arguments: Sequence[str], *, deadline: Deadline) -> Running:
        folder = SCRATCH / f"traffic-{tag}"
        await self.warden.request("mkdir", path=str(folder))
        argv = [str(self._generator), "run", "--wait", "--out", str(folder), *arguments]
        process = await self.warden.spawn(f"generator at {self.name}", argv, netns=self._netns)

        async def ready() -> bool:
            if process.returncode is not None:
                raise process.error("the generator ended before it was ready")
            return b"ready" in process.read_output()

        await deadline.poll(ready, awaited=f"the generator at {self.name} to be ready", interval_s=0.002)
        return _InNamespace(self, folder, process)

    async def launch(self, tag: str, argv: Sequence[str], *, output: str | None = None, deadline: Deadline) -> Program:
        folder = SCRATCH / f"traffic-{tag}"
        await self.warden.request("mkdir", path=str(folder))
        content = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the program
        try:
            process = await self.warden.spawn(
                f"{argv[0]} at {self.name}", argv, netns=self._netns, stdout=content.fileno(), cwd=str(folder)
            )
        except BaseException:
            content.close()
            raise
        return _ProgramInNamespace(self, process, content, folder / output if output else None)

    async def listens(self, port: int, *, udp: bool = False) -> bool:
        process = await self.warden.spawn(f"ss at {self.name}", _listeners(port, udp=udp), netns=self._netns)
        await process.wait(Deadline(10.0))
        return bool(process.read_output().strip())


@dataclass(frozen=True)
class _ProgramInNamespace:
    endpoint: NamespaceEndpoint
    process: Process
    content: IO[bytes]
    output: Path | None

    async def end(self, number: int, *, deadline: Deadline) -> Output:
        await self.process.signal(number)
        await self.process.wait(deadline)
        with self.content as file:
            file.seek(0)
            content = file.read()
        if self.output is not None:
            try:
                with await self.endpoint.warden.open(self.output) as written:
                    content = written.read()
            except FileNotFoundError:
                content = b""
            else:
                await self.endpoint.warden.unlink(self.output)
        return Output(content, self.process.tail())
