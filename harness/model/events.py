"""The timeline: what happened in a run, on the host's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

__all__ = ["HOST_CLOCK", "Event", "Timeline"]

HOST_CLOCK = "host-realtime"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `t_ns`: integer nanoseconds of `clock`; `source`: who saw it ("harness", "source", "destination", ...)."""

    t_ns: int
    source: str
    name: str
    data: dict[str, Any] = {}
    clock: str = HOST_CLOCK


class Timeline:
    """Events in the order in which they were recorded; subscribers are called at once."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events = list(events)
        self._subscribers: list[Callable[[Event], None]] = []

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def record(self, event: Event) -> None:
        self._events.append(event)
        for subscriber in tuple(self._subscribers):
            subscriber(event)

    def forget(self, *, before_ns: int) -> None:
        """Drop the events before that time."""
        self._events = [event for event in self._events if event.t_ns >= before_ns]

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with every further event; the returned function ends that."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def find(self, name: str, *, source: str | None = None, after_ns: int = 0) -> Event | None:
        """The first event of that name."""
        return next(
            (e for e in self._events if e.name == name and e.t_ns >= after_ns and source in (None, e.source)), None
        )

    def sorted(self) -> list[Event]:
        """All events by time (equal times keep the order of recording)."""
        return sorted(self._events, key=lambda event: event.t_ns)
