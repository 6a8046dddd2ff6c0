"""The guest's serial console: always drained into a log, and open to a conversation through pexpect."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import IO

from pexpect.socket_pexpect import SocketSpawn

__all__ = ["Console"]

_KEPT_BYTES = 1 << 20


class Console:
    """Reads the console socket for as long as the machine lives; a console that nobody reads would stall the guest."""

    def __init__(self, sock: socket.socket, log: IO[bytes] | None) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._log = log
        self._recent = bytearray()
        self._listener: socket.socket | None = None
        self._marks: list[tuple[bytes, asyncio.Future[None]]] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def tail(self, *, lines: int = 15) -> str:
        """The console's last lines."""
        return "\n".join(self.text.splitlines()[-lines:])

    @property
    def text(self) -> str:
        """What the console said, as far back as it is kept."""
        return self._recent.decode(errors="replace")

    def seen(self, text: bytes) -> asyncio.Future[None]:
        """Resolves when `text` has appeared on the console."""
        future: asyncio.Future[None] = self._loop.create_future()
        if text in self._recent:
            future.set_result(None)
        else:
            self._marks.append((text, future))
        return future

    @contextlib.contextmanager
    def spawn(self, *, timeout_s: float = 10.0) -> Iterator[SocketSpawn]:
        """A pexpect session on the console (bytes mode). Its calls block: use it from a thread other than the loop's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._listener = ours
        self._loop.call_soon_threadsafe(self._loop.add_reader, ours.fileno(), self._typed)
        try:
            yield SocketSpawn(theirs, timeout=timeout_s, maxread=65536, searchwindowsize=200)
        finally:
            self._listener = None
            done = asyncio.run_coroutine_threadsafe(self._forget(ours), self._loop)
            done.result(5.0)
            theirs.close()

    async def _forget(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock.fileno())
        sock.close()

    def _typed(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._sock.send(self._listener.recv(4096))

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._log is not None and not self._log.closed:
            self._log.write(data)
        self._recent += data
        del self._recent[:-_KEPT_BYTES]
        for mark in [m for m in self._marks if m[0] in self._recent]:
            self._marks.remove(mark)
            if not mark[1].done():
                mark[1].set_result(None)
        if self._listener is not None:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._listener.send(data)
