"""The runner's end of the warden: namespaces, sockets, TAPs and supervised processes of one lab.

What the warden makes dies with it, and it dies with its control socket: see `warden_process`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import EnvironmentLackError, ProcessError, TestbedError
from harness.host.deadline import Deadline

__all__ = ["SCRATCH", "Process", "Warden"]

SCRATCH = Path("/dev/shm")
"""The lab's private folder (a tmpfs that only its own processes see)."""

_MAX_MESSAGE = 1 << 18
_MAX_FDS = 250  # the kernel carries 253 in one message
_START_S = 20.0
_REQUEST_S = 30.0


@dataclass(eq=False)
class Process:
    """A program that runs in a lab.

    `output` is an unnamed temporary file with its standard output and error, unless the caller gave its own.
    """

    name: str
    argv: tuple[str, ...]
    pid: int
    warden: Warden
    output: IO[bytes] | None
    _ended: asyncio.Future[int] = field(repr=False)

    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self._ended.result() if self._ended.done() else None

    @property
    def command(self) -> str:
        """A command line one can paste."""
        return shlex.join(self.argv)

    async def wait(self, deadline: Deadline) -> int:
        return await deadline.wait(asyncio.shield(self._ended), awaited=f"{self.name} to end")

    @property
    def ended(self) -> asyncio.Future[int]:
        """Resolves to the exit status; to be shielded by those who wait."""
        return self._ended

    async def signal(self, number: int) -> None:
        if self.returncode is None:
            await self.warden.request("signal", pid=self.pid, signal=int(number))

    async def stop(self, *, grace_s: float = 2.0) -> int:
        """Ask it to end, then insist."""
        await self.signal(signal.SIGTERM)
        try:
            return await self.wait(Deadline(grace_s))
        except TestbedError:
            await self.signal(signal.SIGKILL)
            return await self.wait(Deadline(10.0))

    async def kill(self) -> int:
        await self.signal(signal.SIGKILL)
        return await self.wait(Deadline(10.0))

    def tail(self, *, max_bytes: int = 4096) -> str:
        """The end of what it printed."""
        if self.output is None or self.output.closed:
            return ""
        size = os.fstat(self.output.fileno()).st_size
        return os.pread(self.output.fileno(), max_bytes, max(0, size - max_bytes)).decode(errors="replace")

    def read_output(self) -> bytes:
        """All that it printed so far."""
        if self.output is None or self.output.closed:
            return b""
        return os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size, 0)

    def error(self, what: str) -> ProcessError:
        """The error for this process having failed: command, status, tail of its output."""
        status = self.returncode
        ended = "still runs" if status is None else f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        tail = self.tail().strip()
        shown = "\n".join(f"    {line}" for line in tail.splitlines()[-15:]) if tail else "    (it printed nothing)"
        return ProcessError(f"{self.name}: {what} ({ended})\n  command: {self.command}\n  output ends with:\n{shown}")


class Warden:
    """One lab's namespaces. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._helper: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._processes: dict[int, Process] = {}
        self._early_exits: dict[int, int] = {}
        self._next_id = 0

    async def __aenter__(self) -> Warden:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the namespaces; `EnvironmentLackError` where the host does not allow it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MAX_MESSAGE)
        ours.setblocking(False)
        self._control, self._loop = ours, asyncio.get_running_loop()
        ready = self._expect(0)
        script = Path(__file__).with_name("warden_process.py")
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/",
            )
        self._loop.add_reader(ours.fileno(), self._readable)
        try:
            await Deadline(_START_S).wait(ready, awaited="the lab's namespaces")
        except OSError as error:
            await self.close()
            raise EnvironmentLackError(
                f"this host does not allow private namespaces: {error}",
                hint="run as root, or allow user namespaces: sysctl -w user.max_user_namespaces=10000"
                " (and kernel.unprivileged_userns_clone=1 or apparmor_restrict_unprivileged_userns=0 where those exist)",
            ) from error

    async def close(self) -> None:
        """End the lab: every process, namespace, device and mount of it. Never raises, may be called again."""
        control, self._control = self._control, None
        if control is not None and self._loop is not None:
            self._loop.remove_reader(control.fileno())
            control.close()
        self._fail_pending("the lab was closed")
        helper, self._helper = self._helper, None
        if helper is not None:
            try:
                async with asyncio.timeout(10.0):
                    await asyncio.to_thread(helper.wait)
            except TimeoutError:
                helper.kill()
                helper.wait()
        for process in self._processes.values():
            if not process.ended.done():
                process.ended.set_result(-signal.SIGKILL)
            if process.output is not None:
                process.output.close()

    # -- what it gives

    async def request(self, op: str, *, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """One request to the warden; `OSError` where the kernel refused."""
        if self._control is None:
            raise TestbedError("the lab is closed")
        self._next_id += 1
        answer = self._expect(self._next_id)
        message = json.dumps({"id": self._next_id, "op": op, **fields}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([message], rights)
        return await Deadline(_REQUEST_S).wait(answer, awaited=f"the warden's answer to {op!r}")

    async def netns(self, name: str) -> None:
        """Make a further network namespace of the lab ("lab" itself is there from the start)."""
        await self.request("netns", name=name)

    async def socket(
        self, *, netns: str = "lab", family: int, type: int, proto: int = 0, connect: tuple[str, int] | None = None
    ) -> socket.socket:
        """A socket that lives in `netns`."""
        _, (fd,) = await self.request(
            "socket", netns=netns, family=int(family), type=int(type), proto=proto, connect=connect
        )
        return socket.socket(fileno=fd)

    async def tap(self, name: str, *, netns: str = "lab", queues: int = 1, vnet_hdr_bytes: int = 12) -> list[int]:
        """A TAP; one descriptor per queue, owned by the caller. The TAP goes when the last one is closed."""
        try:
            _, fds = await self.request("tap", name=name, netns=netns, queues=queues, vnet_hdr_bytes=vnet_hdr_bytes)
        except OSError as error:
            raise EnvironmentLackError(
                f"no TAP could be made: {error}",
                hint="load the tun module and give yourself read and write permission on /dev/net/tun"
                " (modprobe tun; chmod 666 /dev/net/tun)",
            ) from error
        return fds

    async def sysctl(self, values: Mapping[str, int | str], *, netns: str = "lab") -> None:
        """Set network sysctls of a namespace; keys are paths below /proc/sys/net."""
        await self.request("sysctl", netns=netns, values=dict(values))

    async def open(self, path: Path, *, flags: int = os.O_RDONLY) -> IO[bytes]:
        """A file of the lab's scratch folder."""
        _, (fd,) = await self.request("open", path=str(path), flags=flags)
        return os.fdopen(fd, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b" if flags & os.O_RDWR else "wb")

    async def exists(self, path: Path) -> bool:
        """Whether something of that name is in the lab's scratch folder."""
        try:
            await self.request("stat", path=str(path))
        except FileNotFoundError:
            return False
        return True

    async def unlink(self, path: Path) -> None:
        await self.request("unlink", path=str(path))

    async def spawn(
        self, name: str, argv: Sequence[str], *, netns: str = "lab", fds: Mapping[int, int] | None = None,
        stdin: int | None = None, stdout: int | None = None, stderr: int | None = None,
        env: Mapping[str, str] | None = None, cwd: str = "/",
    ) -> Process:
        """Run `argv` in the lab. `fds` maps a descriptor number in the program to one of ours.

        Standard output and error go to an unnamed file (`Process.output`) unless given.
        """
        output: IO[bytes] | None = None
        if stdout is None or stderr is None:
            output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with Path(os.devnull).open("rb") as null:
            passed = {0: stdin if stdin is not None else null.fileno()}
            for number, given in ((1, stdout), (2, stderr)):
                passed[number] = given if given is not None else output.fileno()  # type: ignore[union-attr]  # made above
            passed.update(fds or {})
            try:
                result, _ = await self.request(
                    "spawn", argv=list(argv), netns=netns, cwd=cwd, env=dict(env if env is not None else os.environ),
                    targets=list(passed), fds=list(passed.values()),
                )
            except OSError as error:
                if output is not None:
                    output.close()
                raise ProcessError(f"{name}: {argv[0]} could not be started: {error.strerror or error}") from error
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        process = Process(name, tuple(argv), result["pid"], self, output, ended)
        self._processes[process.pid] = process
        if process.pid in self._early_exits:
            ended.set_result(self._early_exits.pop(process.pid))
        return process

    def forget_ended(self) -> None:
        """Close what programs wrote that have ended: nobody will ask for it any more."""
        for pid, process in tuple(self._processes.items()):
            if process.ended.done():
                if process.output is not None:
                    process.output.close()
                del self._processes[pid]

    # -- plumbing

    def _expect(self, number: int) -> asyncio.Future[tuple[dict[str, Any], list[int]]]:
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        return future

    def _fail_pending(self, why: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(TestbedError(why))
                future.exception()  # retrieved: nobody may be left to wait for it
        self._pending.clear()

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data, rights, _, _ = self._control.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(4 * _MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, rights = b"", []
        if not data:
            with contextlib.suppress(ValueError):
                asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._fail_pending("the lab's warden ended")
            return
        fds = array.array("i")
        for _, _, payload in rights:
            fds.frombytes(payload)
        message = json.loads(data)
        if "exit" in message:
            process = self._processes.get(message["exit"])
            if process is None:
                self._early_exits[message["exit"]] = message["status"]
            elif not process.ended.done():
                process.ended.set_result(message["status"])
            return
        future = self._pending.pop(message["id"], None)
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif "error" in message:
            future.set_exception(OSError(message["error"]["errno"], message["error"]["message"]))
        else:
            future.set_result((message["result"], list(fds)))
