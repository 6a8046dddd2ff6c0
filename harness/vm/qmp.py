"""QMP and the guest agent's protocol over sockets that we made ourselves, with a full transcript."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Coroutine, MutableMapping
from typing import IO, Any, cast

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from harness.errors import DeadlineError, TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import Process
from harness.model.events import Event
from harness.model.units import NS_PER_S

__all__ = ["CommandRefusedError", "Qmp"]

_LAST_WORDS_S = 0.5
"""How long the end of a connection and the end of its process may lie apart: each tells more when the other is known."""

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # its errors reach us as exceptions


class CommandRefusedError(TestbedError):
    """QEMU or the agent answered a command with an error; `reason` is its own description."""

    def __init__(self, command: str, arguments: MutableMapping[str, Any] | None, error: ExecuteError, who: str) -> None:
        shown = f" {json.dumps(arguments)}" if arguments else ""
        super().__init__(f"{who} refused {command}{shown}: {error.error.error.desc}")
        self.command = command
        self.reason = error.error.error.desc


class Qmp(QMPClient):
    """A QMP client of machine `who`. Every message goes to the transcript, every event to `on_event` at once.

    With `agent`, it speaks the guest agent's dialect (no greeting, no negotiation).
    """

    def __init__(
        self, who: str, *, transcript: IO[str] | None = None, on_event: Callable[[Event], None] | None = None,
        agent: bool = False,
    ) -> None:
        super().__init__(who)
        self.who = who
        self.await_greeting = self.negotiate = not agent
        self._transcript = transcript
        self._on_event = on_event
        self._process: Process | None = None
        self._greeted: asyncio.Future[None] | None = None

    def belongs_to(self, process: Process) -> None:
        """From now on a command that `process` can't answer any more, because it ended, fails at once and says how it ended."""
        self._process = process

    def next_greeting(self) -> asyncio.Future[None]:
        """Resolves when the other side greets once more on the same connection: another QEMU has taken it over."""
        self._greeted = asyncio.get_running_loop().create_future()
        return self._greeted

    def _cb_inbound(self, msg: Message) -> Message:
        self._log("<", msg)
        if "QMP" in msg and self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        if self._on_event is not None and "event" in msg:
            stamp = cast("dict[str, int]", msg["timestamp"])
            t_ns = stamp["seconds"] * NS_PER_S + stamp["microseconds"] * 1000
            self._on_event(Event(t_ns=t_ns, source=self.who, name=str(msg["event"]), data=dict(cast("dict[str, Any]", msg.get("data", {})))))
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        self._log(">", msg)
        return msg

    def _log(self, direction: str, msg: Message) -> None:
        if self._transcript is not None and not self._transcript.closed:
            record = {"t_ns": time.time_ns(), "direction": direction, "message": dict(msg)}
            self._transcript.write(json.dumps(record, separators=(",", ":")) + "\n")

    async def attach(self, sock: socket.socket, *, deadline: Deadline) -> None:
        """Speak over `sock` (which it then owns)."""
        try:
            await deadline.wait(self.connect(sock), awaited=f"the QMP greeting of {self.who}")
        except QMPError as error:
            raise TestbedError(f"{self.who} closed the connection before it greeted") from error

    async def command(self, command: str, *, deadline: Deadline | None = None, oob: bool = False, **arguments: Any) -> Any:
        """Execute a command; underscores in argument names stand for dashes. `oob`: out of band, even while QEMU's main loop waits.

        `CommandRefusedError` when it is answered with an error, `DeadlineError` when it isn't answered, `ProcessError` as soon as
        the process is known to have ended without an answer (see `belongs_to`), `TestbedError` when the connection is gone.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items() if value is not None}
        return await self.call(command, named, deadline=deadline, oob=oob)

    async def call(
        self, command: str, named: dict[str, Any] | None = None, *, deadline: Deadline | None = None, oob: bool = False
    ) -> Any:
        """As `command`, for arguments whose names QEMU spells with underscores."""
        limit = deadline or Deadline(30.0)
        try:
            answer = self._while_it_lives(self.execute(command, named or None, oob=oob), command=command)
            return await limit.wait(answer, awaited=f"{self.who}'s answer to {command}")
        except ExecuteError as error:
            raise CommandRefusedError(command, named, error, self.who) from error
        except DeadlineError:
            raise
        except (ConnectionError, EOFError, OSError) as error:
            await self._end_known(limit, command=command)
            raise TestbedError(f"{self.who} closed the connection while {command} was to be answered") from error
        except QMPError as error:
            await self._end_known(limit, command=command)
            raise TestbedError(f"{self.who} can't be asked {command}: {error}") from error

    async def _while_it_lives(self, work: Coroutine[Any, Any, Any], *, command: str) -> Any:
        """What `work` returns; `ProcessError` when the process has ended without it (its connection may outlive it: a child may hold it)."""
        if self._process is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            either: set[asyncio.Future[Any]] = {task, self._process.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)  # which leaves both as they are, whoever cancels it
            if not task.done():
                # What it had answered before it ended, the end of the connection for one, is still to be read.
                await asyncio.wait({task}, timeout=_LAST_WORDS_S)
            if not task.done():
                raise self._process.error(f"it ended before it answered {command}")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # also one that failed in the moment in which nobody waited any more

    async def _end_known(self, limit: Deadline, *, command: str) -> None:
        """After a lost connection: `ProcessError` with the process's last words if it has ended, or does so now."""
        if self._process is None:
            return
        await asyncio.wait({self._process.ended}, timeout=limit.within(_LAST_WORDS_S).remaining_s)
        if self._process.returncode is not None:
            raise self._process.error(f"it ended before it answered {command}")

    async def lost(self) -> None:
        """Returns when the connection, once made, is gone."""
        while self.runstate == Runstate.RUNNING:
            await self.runstate_changed()

    async def detach(self) -> None:
        """Close the connection; what happens to it then is of no interest any more."""
        if self.runstate != Runstate.IDLE:
            # After QEMU was killed, disconnect() raises what the reader saw.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5.0):
                    await self.disconnect()


