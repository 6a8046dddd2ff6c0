"""A command to a machine that ends: who is told what, and that nobody waits for the dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from harness.errors import ProcessError, TestbedError
from harness.host.deadline import Deadline
from harness.host.warden import Process, Warden
from harness.vm.agent import GuestAgent
from harness.vm.qmp import CommandRefusedError, Qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": ""}, "capabilities": []}}


class FakeMachine:
    """The far end of a monitor, in the test's own hands, and the process it belongs to."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self.process = Process("m0", ("qemu",), 1, Warden(), None, asyncio.get_running_loop().create_future())

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self._far)

    async def greet(self) -> None:
        self.say(GREETING)
        await self.asked("qmp_capabilities")
        self.say({"return": {}})

    def say(self, message: dict[str, Any]) -> None:
        self.writer.write(json.dumps(message).encode() + b"\r\n")

    async def asked(self, command: str) -> str:
        """Wait for `command`, which comes alone; the id to answer with."""
        heard = b""
        while part := await self.reader.read(1 << 16):
            heard += part
            with contextlib.suppress(ValueError):  # no line ends here
                message = json.loads(heard)
                assert message["execute"] == command
                return str(message.get("id"))
        raise AssertionError("the client hung up")

    def end(self) -> None:
        self.process.ended.set_result(-signal.SIGKILL)

    def close(self) -> None:
        self.writer.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to come may take its time."""
    monkeypatch.setattr("harness.vm.qmp._LAST_WORDS_S", 600.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what will never come."""
    monkeypatch.setattr("harness.vm.qmp._LAST_WORDS_S", 0.01)


def with_machine(script: Callable[[Qmp, FakeMachine], Awaitable[None]]) -> None:
    """Run `script` with a connected monitor of a fake machine."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        machine, qmp = FakeMachine(theirs), Qmp("source")
        await machine.open()
        qmp.belongs_to(machine.process)
        greeted = asyncio.ensure_future(machine.greet())
        try:
            await qmp.attach(ours, deadline=Deadline(60.0))
            await greeted
            await script(qmp, machine)
        finally:
            machine.close()
            await qmp.detach()

    asyncio.run(run())


async def call(qmp: Qmp, machine: FakeMachine, command: str = "query-status") -> tuple[asyncio.Task[Any], str]:
    """A command that has reached the machine, and the id that its answer must have."""
    task = asyncio.ensure_future(qmp.command(command, deadline=Deadline(600.0)))
    return task, await machine.asked(command)


@pytest.mark.usefixtures("impatient")
def test_a_command_ends_with_the_process_though_somebody_holds_its_connection() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, _ = await call(qmp, machine)
        machine.end()
        with pytest.raises(ProcessError, match=r"m0: it ended before it answered query-status \(ended by signal 9\)"):
            await task
        with pytest.raises(ProcessError, match="before it answered stop"):
            await qmp.command("stop", deadline=Deadline(600.0))

    with_machine(script)


def test_an_answer_that_was_given_before_the_end_counts() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, number = await call(qmp, machine, "quit")
        machine.say({"return": {}, "id": number})
        machine.end()
        assert await task == {}

    with_machine(script)


def test_the_end_of_the_connection_waits_for_that_of_the_process_to_say_more() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, _ = await call(qmp, machine)
        lost = asyncio.ensure_future(qmp.lost())
        machine.close()
        await lost
        machine.end()
        with pytest.raises(ProcessError, match="ended by signal 9"):
            await task

    with_machine(script)


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_its_process_outlives_is_said_to_be_lost() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, _ = await call(qmp, machine)
        machine.close()
        with pytest.raises(TestbedError, match=r"^source can't be asked query-status|closed the connection") as caught:
            await task
        assert not isinstance(caught.value, ProcessError)

    with_machine(script)


def test_a_refusal_is_what_it_is() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, number = await call(qmp, machine)
        machine.say({"error": {"class": "GenericError", "desc": "not now"}, "id": number})
        machine.end()
        with pytest.raises(CommandRefusedError, match="not now"):
            await task

    with_machine(script)


def test_a_command_that_is_cancelled_is_cancelled() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        task, number = await call(qmp, machine)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        machine.say({"return": {"late": True}, "id": number})
        again, number = await call(qmp, machine, "query-name")
        machine.say({"return": {"name": "m0"}, "id": number})
        assert await again == {"name": "m0"}
        assert not machine.process.ended.done()

    with_machine(script)


def test_a_successor_greets_on_the_same_connection_and_is_spoken_to_there() -> None:
    async def script(qmp: Qmp, machine: FakeMachine) -> None:
        greeted = qmp.next_greeting()
        machine.say({"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}})
        task, number = await call(qmp, machine)
        machine.say({"return": {"running": False}, "id": number})
        await task
        assert not greeted.done()
        machine.say(GREETING)
        await greeted
        task, number = await call(qmp, machine, "qmp_capabilities")
        machine.say({"return": {}, "id": number})
        assert await task == {}

    with_machine(script)


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_the_agent_of_a_machine_that_ended() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        machine, agent = FakeMachine(theirs), GuestAgent("source")
        await machine.open()
        agent.belongs_to(machine.process)
        await agent.attach(ours, deadline=Deadline(60.0))
        task = asyncio.ensure_future(agent.sync(deadline=Deadline(600.0)))
        await machine.asked("guest-sync")
        machine.end()
        with pytest.raises(ProcessError, match="before it answered guest-sync"):
            await task
        machine.close()
        await agent.detach()

    asyncio.run(run())
