"""The parts of a network downtime: source stopped, device state, destination start, relearning.

The boundaries come from the one timeline: QEMU's events, its trace points where it has them, and the bridge's learning
events. A part for which a QEMU tells no boundary falls to the part before it; the evidence of each boundary is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from harness.analysis.outages import Outage
from harness.model.events import Event

__all__ = ["Mark", "MarkName", "Part", "marks_of", "split_downtime"]

_LOADED = ("dst-precopy-loadvm-completed", "dst-precopy-bh-enter", "dst-postcopy-bh-enter")
_STARTED = ("dst-precopy-bh-vm-started", "dst-postcopy-bh-vm-started")
_STOPPING = re.compile(r"new_state \d+ \((finish-migrate|paused)\)")


class MarkName(StrEnum):
    STOPPED = "stopped"
    STATE = "state"
    """The source begins to send what is left: the dirty memory and the devices."""
    LOADED = "loaded"
    """The destination has loaded it."""
    RUNNING = "running"
    RELEARNED = "relearned"
    """The bridge forwards to the destination's port."""


class Part(StrEnum):
    BEFORE_STOP = "before-stop"
    """From the last delivery to the stop: up to one sending interval."""
    SOURCE_STOPPED = "source-stopped"
    DEVICE_STATE = "device-state"
    DESTINATION_START = "destination-start"
    RELEARNING = "relearning"
    FIRST_DELIVERY = "first-delivery"
    """From there to the first delivery."""


_ENDS = {
    Part.BEFORE_STOP: MarkName.STOPPED, Part.SOURCE_STOPPED: MarkName.STATE, Part.DEVICE_STATE: MarkName.LOADED,
    Part.DESTINATION_START: MarkName.RUNNING, Part.RELEARNING: MarkName.RELEARNED,
}  # fmt: skip


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    name: MarkName
    time_ns: int
    evidence: str


def marks_of(
    events: Sequence[Event], *, stop_ns: int, resume_ns: int, mac: str, destination: str | None, first_frame_ns: int | None
) -> tuple[Mark, ...]:
    """The boundaries of one switchover, in order of time.

    `destination` is the name of the destination's bridge port, None where the guest stayed (or came back); the guest
    then has nothing to be relearned, and no state is loaded. `first_frame_ns` is the guest's first frame there: a bridge has
    learned an address at the latest with the frame that taught it, while its event is read a little later.
    """
    stopped = _stopped(events, stop_ns)
    found: list[Mark | None] = [stopped]
    if destination is not None:
        inside = [event for event in events if stop_ns <= event.t_ns <= resume_ns]
        found.append(_status(inside, ("device",), MarkName.STATE) or _continued(inside, stopped))
        found.append(
            _checkpoint(inside, _LOADED, MarkName.LOADED)
            or _status(inside, ("completed", "postcopy-active"), MarkName.LOADED)
        )
        started = _checkpoint([event for event in events if event.t_ns >= resume_ns], _STARTED, MarkName.RUNNING)
    else:
        started = None
    found.append(started or Mark(name=MarkName.RUNNING, time_ns=resume_ns, evidence="RESUME"))
    if destination is not None:
        found.append(_relearned(events, mac, destination, stop_ns, first_frame_ns))
    return tuple(sorted((mark for mark in found if mark is not None), key=lambda mark: mark.time_ns))


def split_downtime(outage: Outage, *, marks: Sequence[Mark]) -> dict[Part, int]:
    """Nanoseconds of each part, from the last delivery before the outage to the first one after it; they add up to that."""
    times = {mark.name: mark.time_ns for mark in marks}
    parts: dict[Part, int] = {}
    here = outage.start_ns
    for part, name in _ENDS.items():
        if name in times:
            there = min(max(times[name], here), outage.end_ns)
            parts[part] = there - here
            here = there
    parts[Part.FIRST_DELIVERY] = outage.end_ns - here
    return _named(parts, times)


def _named(parts: dict[Part, int], times: dict[MarkName, int]) -> dict[Part, int]:
    """Where no state was sent, the time to the next boundary is that of the stopped guest."""
    if MarkName.STATE in times or MarkName.LOADED in times or Part.DESTINATION_START not in parts:
        return parts
    renamed = dict(parts)
    stopped = renamed.pop(Part.DESTINATION_START)
    order = [Part.BEFORE_STOP, Part.SOURCE_STOPPED, Part.RELEARNING, Part.FIRST_DELIVERY]
    renamed[Part.SOURCE_STOPPED] = stopped
    return {part: renamed[part] for part in order if part in renamed}


def _stopped(events: Sequence[Event], stop_ns: int) -> Mark:
    """The run state's change, where it is traced: it comes before the STOP event, which waits for the vCPUs."""
    for event in events:
        near = stop_ns - 100_000_000 <= event.t_ns <= stop_ns
        if near and event.name == "trace:runstate_set" and _STOPPING.search(str(event.data.get("text", ""))):
            return Mark(name=MarkName.STOPPED, time_ns=event.t_ns, evidence="trace runstate_set")
    return Mark(name=MarkName.STOPPED, time_ns=stop_ns, evidence="STOP")


def _status(events: Sequence[Event], statuses: Sequence[str], name: MarkName) -> Mark | None:
    for event in events:
        if event.name == "MIGRATION" and event.source == "source" and event.data.get("status") in statuses:
            return Mark(name=name, time_ns=event.t_ns, evidence=f"MIGRATION {event.data['status']} of the source")
    return None


def _continued(events: Sequence[Event], stopped: Mark) -> Mark:
    """When the source was told to go on; one that did not pause goes on as it stops."""
    for event in events:
        if event.name == "continue" and event.source == "harness":
            return Mark(name=MarkName.STATE, time_ns=event.t_ns, evidence="migrate-continue was asked for")
    return Mark(name=MarkName.STATE, time_ns=stopped.time_ns, evidence=f"{stopped.evidence} (no pause)")


def _checkpoint(events: Sequence[Event], points: Sequence[str], name: MarkName) -> Mark | None:
    for event in events:
        text = str(event.data.get("text", ""))
        if event.name == "trace:vmstate_downtime_checkpoint" and text in points:
            return Mark(name=name, time_ns=event.t_ns, evidence=f"trace {text}")
    return None


def _relearned(
    events: Sequence[Event], mac: str, port: str, stop_ns: int, first_frame_ns: int | None
) -> Mark | None:
    for event in events:
        if event.name == "FDB" and event.t_ns >= stop_ns and event.data == {"mac": mac, "port": port, "change": "learned"}:
            time_ns, evidence = event.t_ns, "RTM_NEWNEIGH of the bridge"
            if first_frame_ns is not None and first_frame_ns < time_ns:
                time_ns, evidence = first_frame_ns, f"{evidence}, taught by the guest's first frame at the port"
            return Mark(name=MarkName.RELEARNED, time_ns=time_ns, evidence=evidence)
    if first_frame_ns is None:
        return None
    return Mark(name=MarkName.RELEARNED, time_ns=first_frame_ns, evidence="the guest's first frame at the destination's port")
