"""Waiting for events: a watch sees everything from its creation on, so that nothing is missed between two waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from harness.host.deadline import Deadline
from harness.model.events import Event, Timeline

__all__ = ["Watch"]


class Watch:
    """Events of a timeline from now on. Close it after use (it is a context manager)."""

    def __init__(self, timeline: Timeline) -> None:
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._last: Event | None = None
        self._unsubscribe = timeline.subscribe(self._record)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()

    def _record(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    async def next(self, wanted: Callable[[Event], bool], *, deadline: Deadline, awaited: str) -> Event:
        """The next event for which `wanted` holds; earlier ones are passed over for good."""
        while True:
            while self._events:
                event = self._last = self._events.popleft()
                if wanted(event):
                    return event
            self._arrived.clear()
            await deadline.wait(self._arrived.wait(), awaited=awaited, seen=self._seen)

    def _seen(self) -> str:
        return f"{self._last.source} {self._last.name} {self._last.data}" if self._last else "no event at all"
