"""A destination that ends without the guest: the source is continued where it can be, and the record says what QEMU said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import ProcessError, TestbedError
from harness.host.deadline import Deadline
from harness.migrate import driver as driving
from harness.migrate.driver import MigrationDriver, MigrationRecord
from harness.migrate.mechanisms import make_mechanism
from harness.migrate.mechanisms.base import Side
from harness.model.events import Event, Timeline
from harness.model.plan import MigrationPlan
from harness.model.scenario import DestinationPort, MigrationMode
from harness.vm.machine import Machine

WORDS = (
    "qemu-system-x86_64: warning: trace event 'x' does not exist\n2026-01-01T00:00:00Z some_trace\nqemu-system-x86_64: VQ 0 vring.num 1024 exceeds allocated max 128\n"
    "2026-01-01T00:00:00Z qemu-system-x86_64: load of migration failed: Invalid argument\n"
    "2026-01-01T00:00:01Z qemu-system-x86_64: load of migration failed: Invalid argument\n"
)
SAID = "the destination ended with: qemu-system-x86_64: VQ 0 vring.num 1024 exceeds allocated max 128 / qemu-system-x86_64: load of migration failed: Invalid argument"


class FakeProcess:
    """A QEMU that ends when it is told to."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, status: int = 1) -> None:
        self.returncode = status
        self.ended.set_result(status)

    def read_output(self) -> bytes:
        return WORDS.encode()

    def error(self, what: str) -> ProcessError:
        return ProcessError(what)

    async def wait(self, deadline: Deadline) -> int:
        return await deadline.wait(asyncio.shield(self.ended), awaited="it to end")


class FakeMachine:
    """A machine of which only what a driver sees is there. Its monitor's connection ends with its process."""

    def __init__(self, role: str, timeline: Timeline) -> None:
        self.role, self.timeline = role, timeline
        self.spec = SimpleNamespace(name=role)
        self.process = FakeProcess()
        self.qmp = SimpleNamespace(command=self.command, lost=self.lost)
        self.asked: list[str] = []
        self.running = role == "source"

    async def command(self, name: str, **_: Any) -> dict[str, Any]:
        self.asked.append(name)
        if name == "cont":
            self.running = True
            self.say("RESUME")
        if name == "quit":
            self.process.end(0)
        return {"query-status": {"running": self.running}, "query-migrate": {"status": "completed", "total-time": 10}}.get(name, {})

    async def lost(self) -> None:
        await asyncio.shield(self.process.ended)

    async def unless_ended(self, work: Awaitable[Any], *, what: str) -> Any:
        return await Machine.unless_ended(self, work, what=what)  # type: ignore[arg-type]

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.end(-9)

    def say(self, name: str, **data: Any) -> None:
        self.timeline.record(Event(t_ns=len(self.timeline) + 1, source=self.role, name=name, data=data))

    def status(self, word: str) -> None:
        self.say("MIGRATION", status=word)


class FakeAccount:
    """Knows nothing of the guest's ring."""

    wants_marks = False

    async def look(self) -> None:
        pass

    async def at_stop(self, *, stop_ns: int) -> None:
        raise TestbedError("the ring was not watched")

    def suspend(self, reason: str) -> None:
        pass


Act = Callable[[FakeMachine, FakeMachine], Awaitable[None]]


def migrate(monkeypatch: pytest.MonkeyPatch, act: Act, *, mode: MigrationMode = MigrationMode.PRECOPY) -> tuple[MigrationRecord, list[str]]:
    """A migration in which `act` is what both QEMUs do from its begin on; the record, and what the source was asked."""

    class Way:
        moves = True

        async def listen(self, context: Any) -> None:
            pass

        async def begin(self, context: Any) -> None:
            self.acting = asyncio.ensure_future(act(context.source, context.destination))

        async def status(self, context: Any, status: str) -> None:
            pass

        async def arrive(self, context: Any) -> None:
            pass

    async def work() -> tuple[MigrationRecord, list[str]]:
        timeline = Timeline()
        source, destination = FakeMachine("source", timeline), FakeMachine("destination", timeline)
        sides = [Side(each, SimpleNamespace(ifindex=1, fds=()), None, FakeAccount()) for each in (source, destination)]  # type: ignore[arg-type]
        network = SimpleNamespace(
            warden=None, migration_address=lambda name: None, set_port=lambda port, flags: None, control=SimpleNamespace(apply=lambda moves: None)
        )
        driver = MigrationDriver(
            MigrationPlan(mode=mode), source=sides[0], destination=sides[1], network=network, timeline=timeline, nic="net0",  # type: ignore[arg-type]
            injector=None, destination_port=DestinationPort.AT_RESUME, deadline=Deadline(600), mechanism=make_mechanism("none"),  # type: ignore[arg-type]
            source_features=None,  # type: ignore[arg-type]
        )
        async with asyncio.timeout(60):
            return await driver.run(), source.asked

    monkeypatch.setattr(driving, "make_way", lambda plan: Way())
    monkeypatch.setattr(driving, "_SOURCES_WORD_S", 600.0)  # whoever waits for it is found out
    return asyncio.run(work())


async def refused_late(source: FakeMachine, destination: FakeMachine) -> None:
    source.status("active")
    source.running = False
    source.say("STOP")
    source.status("completed")
    await asyncio.sleep(0.01)
    destination.process.end()


async def refused_early(source: FakeMachine, destination: FakeMachine) -> None:
    """The destination is gone before the source says that it is done."""
    source.status("active")
    source.running = False
    source.say("STOP")
    destination.process.end()
    await asyncio.sleep(0.05)
    source.status("completed")


@pytest.mark.parametrize("act", [refused_late, refused_early])
def test_a_source_that_completed_goes_on_when_nobody_took_its_guest(monkeypatch, act):
    record, asked = migrate(monkeypatch, act)
    assert (record.status, record.survivor) == ("failed", "source")
    assert record.failure == f"the migration ended as 'failed', not 'completed': {SAID}"
    assert asked.count("cont") == 1
    assert record.resume_ns is not None  # the guest runs again, and it is known since when
    assert record.notes == ("the source had completed its migration, and was continued since its destination ended without the guest",)


def test_a_source_paused_in_postcopy_can_not_go_on_and_nobody_waits_for_it(monkeypatch):
    async def act(source: FakeMachine, destination: FakeMachine) -> None:
        source.running = False
        source.say("STOP")
        source.status("postcopy-active")
        destination.process.end()
        source.status("postcopy-paused")

    record, asked = migrate(monkeypatch, act, mode=MigrationMode.POSTCOPY)
    assert (record.status, record.survivor) == ("postcopy-paused", "")
    assert record.failure == f"the migration ended as 'postcopy-paused', not 'completed': {SAID}"
    assert "cont" not in asked
    assert [(ended.name, ended.died_ns is None) for ended in record.ended] == [("source", False), ("destination", True)]  # which the guest never was in


def test_a_guest_that_ran_at_the_destination_is_never_continued_at_the_source(monkeypatch):
    told: list[FakeMachine] = []

    async def act(source: FakeMachine, destination: FakeMachine) -> None:
        told.append(source)
        source.say("STOP")
        source.status("postcopy-active")
        destination.say("RESUME")
        destination.process.end()
        source.status("postcopy-paused")

    monkeypatch.setattr(driving, "Deadline", lambda seconds: Deadline(0.1))  # here the source's word is awaited, and does not come
    with pytest.raises(ProcessError, match="the destination died in the migration"):
        migrate(monkeypatch, act, mode=MigrationMode.POSTCOPY)
    assert "cont" not in told[0].asked


def test_a_source_that_says_that_it_failed_is_left_to_itself(monkeypatch):
    async def act(source: FakeMachine, destination: FakeMachine) -> None:
        source.status("active")
        destination.process.end()
        await asyncio.sleep(0.05)
        source.status("failed")

    record, asked = migrate(monkeypatch, act)
    assert (record.status, record.survivor) == ("failed", "source")
    assert SAID in record.failure
    assert "cont" not in asked
