"""Faults on purpose: when they strike, what a scenario may say, and what the ledger makes of a death."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from types import SimpleNamespace

import msgspec
import pytest
from test_ledger import Truth, account, evidence_of, records_of

from harness.analysis.evidence import Death, Fate, Place
from harness.errors import TestbedError
from harness.migrate.faults import FaultInjector
from harness.model.fault import FaultAction, FaultPoint, FaultSection
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationSection

T0, MS = 1_700_000_000_000_000_000, 1_000_000


class FakeProcess:
    """Records what was done to it."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    async def kill(self) -> int:
        self.signals.append(signal.SIGKILL)
        return -signal.SIGKILL

    async def signal(self, number: int) -> None:
        self.signals.append(number)


def machine(name: str) -> SimpleNamespace:
    return SimpleNamespace(process=FakeProcess(), spec=SimpleNamespace(name=name))


def injector(fault: FaultSection | None):
    source, destination, events = machine("m0"), machine("m1"), []
    made = FaultInjector(fault, source=source, destination=destination, event=lambda name, data: events.append(name))
    return made, source.process.signals, destination.process.signals, events


def test_the_victim_is_struck_once_at_its_point_and_not_before():
    async def work() -> None:
        faults, source, destination, events = injector(FaultSection(action=FaultAction.KILL_DESTINATION, at=FaultPoint.STOPPED))
        await faults.reached(FaultPoint.ACTIVE)
        assert destination == []
        await faults.reached(FaultPoint.STOPPED)
        await faults.reached(FaultPoint.STOPPED)
        await faults.finish()
        assert (source, destination, events) == ([], [signal.SIGKILL], ["fault"])
        assert faults.done_ns is not None

    asyncio.run(work())


def test_a_frozen_machine_goes_on_and_is_not_waited_for():
    async def work() -> None:
        faults, _, destination, events = injector(FaultSection(action=FaultAction.FREEZE_DESTINATION, at=FaultPoint.STOPPED, for_ms=20))
        await faults.reached(FaultPoint.STOPPED)
        assert signal.SIGCONT not in destination
        await faults.finish()
        assert destination == [signal.SIGSTOP, signal.SIGCONT]
        assert events == ["fault", "thaw"]

    asyncio.run(work())


def test_a_fault_whose_point_never_came_is_no_success():
    async def work() -> None:
        faults, *_ = injector(FaultSection(action=FaultAction.KILL_SOURCE, at=FaultPoint.STARTED))
        await faults.reached(FaultPoint.ACTIVE)
        with pytest.raises(TestbedError, match="never came"):
            await faults.finish()

    asyncio.run(work())


def test_without_a_fault_nothing_happens():
    async def work() -> None:
        faults, source, destination, events = injector(None)
        for point in FaultPoint:
            await faults.reached(point)
        await faults.finish()
        assert (source, destination, events, faults.planned, faults.kills) == ([], [], [], False, False)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("action", "at", "pauses"),
    [
        ("kill-source", "active", False), ("kill-source", "stopped", True), ("kill-source", "switchover", True),
        ("kill-source", "started", True),  # to be asked while it lives
        ("kill-destination", "started", False), ("freeze-destination", "stopped", True),
    ],
)  # fmt: skip
def test_a_point_in_the_pause_makes_the_migration_pause(action, at, pauses):
    section = msgspec.convert({"fault": {"action": action, "at": at}}, MigrationSection)
    plan = MigrationPlan.from_section(section, mechanism="none")
    assert plan.fault == section.fault
    assert plan.pauses is pauses


def test_a_death_explains_what_its_machine_had_taken_and_nothing_else():
    # 2 was lost while later ones came through, 7 waits in the TAP, 8 was sent to the TAP after the death.
    happened = ["delivered", "delivered", "nowhere", "delivered", "nowhere", "nowhere", "nowhere", "stranded", "nowhere"]
    truth = Truth(happened, [0, 1, 3])
    death = Death(place=Place.SOURCE_TAP, time_ns=T0 + 7 * MS)
    evidence = dataclasses.replace(evidence_of(truth), deaths=(death,))
    fates = account([records_of(truth)], evidence=evidence)["udp"].fate.tolist()
    expected = [Fate.DELIVERED, Fate.DELIVERED, Fate.UNEXPLAINED, Fate.DELIVERED, *[Fate.LOST_IN_QEMU] * 3, Fate.STRANDED_AT_SOURCE]
    assert fates == [*expected, Fate.UNEXPLAINED]


def test_with_its_guest_a_destination_has_what_the_source_took_before_the_stop():
    # The stop is at 20 ms: 18 and 19 were taken by then and not answered, 5 was lost in front of later ones, 21 was sent after the stop.
    happened = ["delivered"] * 18 + ["nowhere"] * 5
    happened[5] = "nowhere"
    truth = Truth(happened, [seq for seq, each in enumerate(happened) if each == "delivered"])
    death = Death(place=Place.DESTINATION_TAP, time_ns=T0 + 50 * MS)
    evidence = dataclasses.replace(evidence_of(truth), deaths=(death,))
    fates = account([records_of(truth)], evidence=evidence)["udp"].fate.tolist()
    assert fates[18:20] == [Fate.LOST_IN_QEMU] * 2
    assert [fates[5], *fates[21:]] == [Fate.UNEXPLAINED] * 3


def test_a_destination_that_died_before_it_had_the_guest_explains_nothing():
    truth = Truth(["delivered", "nowhere"], [0])
    death = Death(place=Place.DESTINATION_TAP, time_ns=T0 + 30 * MS)
    evidence = dataclasses.replace(evidence_of(truth), deaths=(death,))
    assert account([records_of(truth)], evidence=evidence)["udp"].fate.tolist() == [Fate.DELIVERED, Fate.UNEXPLAINED]
