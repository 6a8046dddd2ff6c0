"""Timelines, watches, deadlines: nothing is missed between two waits, and a wait that ends says what it awaited."""

from __future__ import annotations

import asyncio

import pytest

from harness.errors import DeadlineError
from harness.host.deadline import Deadline
from harness.migrate.watch import Watch
from harness.model.events import Event, Timeline
from harness.vm.trace import parse_trace


def event(name: str, t_ns: int = 0, source: str = "source") -> Event:
    return Event(t_ns=t_ns, source=source, name=name)


def test_a_watch_sees_events_from_its_creation_on(run):
    async def body():
        timeline = Timeline([event("OLD")])
        with Watch(timeline) as watch:
            timeline.record(event("STOP"))
            timeline.record(event("RESUME"))
            stop = await watch.next(lambda e: e.name == "STOP", deadline=Deadline(1), awaited="STOP")
            resume = await watch.next(lambda e: e.name == "RESUME", deadline=Deadline(1), awaited="RESUME")
        timeline.record(event("LATER"))
        return stop.name, resume.name

    assert run(body()) == ("STOP", "RESUME")


def test_a_wait_in_vain_says_what_was_awaited_and_seen(run):
    async def body():
        timeline = Timeline()
        with Watch(timeline) as watch:
            timeline.record(event("MIGRATION"))
            await watch.next(lambda e: e.name == "RESUME", deadline=Deadline(0.05), awaited="the destination to resume")

    with pytest.raises(DeadlineError, match=r"0.05 s waiting for the destination to resume; seen last: source MIGRATION"):
        run(body())


def test_a_deadline_within_another_ends_no_later():
    assert Deadline(0.01).within(10).remaining_s <= 0.01


def test_a_time_out_of_the_work_itself_is_not_taken_for_the_deadline(run):
    async def work():
        raise TimeoutError("the work's own")

    async def body():
        await Deadline(10).wait(work(), awaited="work")

    with pytest.raises(TimeoutError, match="the work's own"):
        run(body())


def test_poll_asks_until_it_holds(run):
    asked = []

    async def condition():
        asked.append(1)
        return len(asked) == 3

    run(Deadline(5).poll(condition, awaited="three questions", interval_s=0.001))
    assert len(asked) == 3


def test_the_timeline_is_sorted_by_time_and_finds_after():
    timeline = Timeline([event("B", 5), event("A", 3), event("A", 9)])
    assert [e.name for e in timeline.sorted()] == ["A", "B", "A"]
    found = timeline.find("A", after_ns=4)
    assert found is not None
    assert found.t_ns == 9


def test_trace_lines_become_events_and_others_are_passed_over():
    text = "qemu: warning\n123@1700000000.000250:vmstate_downtime_load type=iterable idstr=ram downtime=7\nno trace\n"
    (only,) = parse_trace(text, source="m1")
    assert (only.t_ns, only.name) == (1_700_000_000_000_250_000, "trace:vmstate_downtime_load")
    assert only.data["text"].startswith("type=iterable")


def test_trace_lines_of_qemu_11_become_events_too():
    text = "2026-11-21T12:14:10.084229Z runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n"
    (only,) = parse_trace(text, source="m1")
    assert (only.t_ns, only.name) == (1_795_263_250_084_229_000, "trace:runstate_set")
    assert only.data["text"] == "current_run_state 6 (prelaunch) new_state 9 (running)"


def test_asyncio_is_left_clean(run):
    async def body():
        return len(asyncio.all_tasks())

    assert run(body()) == 1
