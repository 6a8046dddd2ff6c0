"""The parts of a network downtime, and what the bridge's learning looks like on the wire."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.outages import Outage
from harness.analysis.split import Mark, MarkName, Part, marks_of, split_downtime
from harness.host.learning import parse_learning
from harness.model.events import Event

MS = 1_000_000
T0 = 1_700_000_000_000_000_000
MAC, PORT = "52:54:00:77:00:02", "sw-m1"


def event(at_ms: float, source: str, name: str, **data: Any) -> Event:
    return Event(t_ns=T0 + round(at_ms * MS), source=source, name=name, data=data)


STOCK = [
    event(-600, "source", "MIGRATION", status="active"),
    event(0, "source", "STOP"),
    event(1, "source", "MIGRATION", status="pre-switchover"),
    event(150, "harness", "continue"),
    event(151, "source", "MIGRATION", status="device"),
    event(240, "source", "MIGRATION", status="completed"),
    event(250, "destination", "RESUME"),
    event(253, "bridge", "FDB", mac=MAC, port=PORT, change="learned"),
]
TRACED = [
    event(-0.5, "m0", "trace:runstate_set", text="current_run_state 9 (running) new_state 7 (finish-migrate)"),
    *STOCK,
    event(249, "m1", "trace:vmstate_downtime_checkpoint", text="dst-precopy-loadvm-completed"),
    event(256, "m1", "trace:vmstate_downtime_checkpoint", text="dst-precopy-bh-vm-started"),
]


def marks(events: list[Event], **more: Any) -> tuple[Mark, ...]:
    values: dict[str, Any] = {
        "stop_ns": T0, "resume_ns": T0 + 250 * MS, "mac": MAC, "destination": PORT, "first_frame_ns": T0 + 252 * MS,
    } | more  # fmt: skip
    return marks_of(events, **values)


def in_ms(found: tuple[Mark, ...]) -> dict[str, float]:
    return {mark.name: (mark.time_ns - T0) / MS for mark in found}


def test_a_stock_qemu_tells_its_boundaries_by_events():
    assert in_ms(marks(STOCK)) == {"stopped": 0, "state": 151, "loaded": 240, "running": 250, "relearned": 252}


def test_trace_points_are_nearer_than_events():
    found = marks(sorted(TRACED, key=lambda e: e.t_ns))
    assert in_ms(found) == {"stopped": -0.5, "state": 151, "loaded": 249, "running": 256, "relearned": 252}
    assert {mark.name: mark.evidence for mark in found}["loaded"] == "trace dst-precopy-loadvm-completed"


def test_learning_is_as_late_as_its_event_without_a_frame_before_it():
    assert in_ms(marks(STOCK, first_frame_ns=None))["relearned"] == 253
    assert "RTM_NEWNEIGH" in {mark.name: mark.evidence for mark in marks(STOCK)}["relearned"]


def test_without_an_event_of_the_bridge_the_first_frame_tells():
    found = marks([e for e in STOCK if e.name != "FDB"])
    assert {mark.name: mark.evidence for mark in found}["relearned"].startswith("the guest's first frame")


def test_another_guest_or_another_port_is_not_ours():
    others = [e for e in STOCK if e.name != "FDB"]
    others += [event(251, "bridge", "FDB", mac="52:54:00:77:00:01", port=PORT, change="learned")]
    others += [event(251, "bridge", "FDB", mac=MAC, port="sw-m0", change="learned")]
    others += [event(251, "bridge", "FDB", mac=MAC, port=PORT, change="forgotten")]
    assert "relearned" not in in_ms(marks(others, first_frame_ns=None))


def test_a_postcopy_without_the_status_device_goes_on_when_it_is_told_to():
    events = [e for e in STOCK if e.data.get("status") not in ("device", "completed")]
    events.insert(4, event(155, "source", "MIGRATION", status="postcopy-active"))
    assert in_ms(marks(events)) == {"stopped": 0, "state": 150, "loaded": 155, "running": 250, "relearned": 252}


def test_a_guest_that_stayed_has_nothing_to_load_or_relearn():
    found = marks(STOCK, destination=None)
    assert in_ms(found) == {"stopped": 0, "running": 250}
    outage = Outage(start_ns=T0 - 2 * MS, end_ns=T0 + 260 * MS, duration_ns=261 * MS, recovered=True)
    assert split_downtime(outage, marks=found) == {
        Part.BEFORE_STOP: 2 * MS, Part.SOURCE_STOPPED: 250 * MS, Part.FIRST_DELIVERY: 10 * MS,
    }  # fmt: skip


def test_the_parts_of_a_switchover():
    outage = Outage(start_ns=T0 - MS, end_ns=T0 + 260 * MS, duration_ns=260 * MS, recovered=True)
    assert {part: length / MS for part, length in split_downtime(outage, marks=marks(STOCK)).items()} == {
        "before-stop": 1, "source-stopped": 151, "device-state": 89, "destination-start": 10, "relearning": 2, "first-delivery": 8,
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(list(MarkName)), st.integers(-500, 500)), unique_by=lambda each: each[0]), st.integers(0, 400))
def test_the_parts_add_up_whatever_the_marks_say(drawn, length):
    found = [Mark(name=name, time_ns=T0 + at * MS, evidence="drawn") for name, at in drawn]
    outage = Outage(start_ns=T0, end_ns=T0 + length * MS, duration_ns=length * MS, recovered=True)
    parts = split_downtime(outage, marks=found)
    assert sum(parts.values()) == length * MS
    assert all(part >= 0 for part in parts.values())


# -- netlink


def neighbour(*, kind: int = 28, family: int = 7, state: int = 2, flags: int = 4, mac: bytes = bytes(range(6))) -> bytes:
    body = struct.pack("=BxxxiHBB", family, 17, state, flags, 0) + struct.pack("=HH", 10, 2) + mac + bytes(2)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_what_a_bridge_learns_and_forgets():
    data = neighbour() + neighbour(kind=29)
    assert parse_learning(data) == [("learned", "00:01:02:03:04:05", 17), ("forgotten", "00:01:02:03:04:05", 17)]


@pytest.mark.parametrize("other", [{"family": 2}, {"state": 0x80}, {"flags": 2}, {"kind": 16}, {"mac": b""}])
def test_other_entries_are_passed_over(other):
    assert parse_learning(neighbour(**other)) == []


@given(st.binary(max_size=200))
def test_garbage_is_no_learning(data):
    parse_learning(data)


@given(st.integers(0, 39))
def test_a_message_that_was_cut_off_is_passed_over(length):
    assert parse_learning(neighbour()[:length]) == []
