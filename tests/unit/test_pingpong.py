"""What many migrations come to: distributions, growth, and what is no pass."""

from __future__ import annotations

import msgspec

from harness.host.learning import BridgeWatch
from harness.model.events import Event, Timeline
from harness.model.pingpong import PingPong, Round
from harness.report.pingpong import pingpong_table


def rounds(count: int, **changes) -> tuple[Round, ...]:
    plain = Round(
        number=1, run="r", outcome="completed", seconds=1.5, lost=3, duplicated=0, unexplained=0, compute_ms=10.0, network_ms=None,
        reported_ms=8.0, total_ms=200.0, memory_bytes=100, descriptors=20, threads=3, processes=2,
    )  # fmt: skip
    return tuple(msgspec.structs.replace(plain, number=n, run=f"r{n}", **{k: v[n - 1] for k, v in changes.items()}) for n in range(1, count + 1))


def test_nothing_wrong_nothing_said():
    found = PingPong(scenario="x", planned=8, rounds=rounds(8, descriptors=[10, 12, 20, 21, 22, 22, 21, 22]))
    assert list(found.problems()) == []
    assert found.growth() == {"memory_bytes": 0, "descriptors": 0, "threads": 0, "processes": 0}
    text = pingpong_table(found)
    assert "8 migrations, every packet accounted for, nothing grew" in text
    assert next(line for line in text.splitlines() if line.startswith("network_ms")).split() == ["network_ms", "0", "-", "-", "-", "-"]


def test_growth_after_the_fifth_is_seen_and_said():
    found = PingPong(scenario="x", planned=7, rounds=rounds(7, descriptors=[1, 2, 3, 4, 5, 6, 7], processes=[1, 1, 1, 1, 1, 1, 3]))
    assert list(found.problems()) == ["descriptors grew by 2", "processes grew by 2"]
    assert "descriptors grew by 2" in pingpong_table(found)


def test_unexplained_failed_and_missing_rounds_are_named():
    found = PingPong(scenario="x", planned=3, rounds=rounds(2, unexplained=[0, 4], outcome=["completed", "failed"]))
    assert list(found.problems()) == [
        "only 2 of 3 migrations were made", "migration 2 (r2): 4 packets unexplained", "migration 2 (r2): failed",
    ]  # fmt: skip


def test_a_timeline_forgets_what_is_over():
    timeline = Timeline(Event(t_ns=t, source="s", name="n") for t in range(5))
    timeline.forget(before_ns=3)
    assert [event.t_ns for event in timeline] == [3, 4]
    watch = BridgeWatch.__new__(BridgeWatch)
    watch.events = [Event(t_ns=t, source="bridge", name="FDB") for t in range(5)]
    watch.forget(before_ns=2)
    assert [event.t_ns for event in watch.events] == [2, 3, 4]
    watch.forget(before_ns=9)
    assert watch.events == []
