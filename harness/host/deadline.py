"""Deadlines: one object is handed down, and says what was awaited when it ends."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from harness.errors import DeadlineError

__all__ = ["Deadline"]

T = TypeVar("T")

PATIENCE = float(os.environ.get("SWITCHOVER_PATIENCE", "1"))
"""How many times longer every deadline is: for a lab inside a guest, where all is slower."""


class Deadline:
    """A point in monotonic time by which work must have ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds * PATIENCE
        self._end = time.monotonic() + self.seconds

    def __repr__(self) -> str:
        return f"Deadline({self.remaining_s:.3f} s of {self.seconds:g} s left)"

    @property
    def remaining_s(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.remaining_s <= 0.0

    def within(self, seconds: float) -> Deadline:
        """A deadline of `seconds` that does not outlive this one."""
        return Deadline(min(seconds, self.remaining_s / PATIENCE))

    def error(self, awaited: str, *, seen: str = "") -> DeadlineError:
        """The error for a wait that this deadline ended."""
        last = f"; seen last: {seen}" if seen else ""
        return DeadlineError(f"timed out after {self.seconds:g} s waiting for {awaited}{last}")

    async def wait(self, awaitable: Awaitable[T], *, awaited: str, seen: Callable[[], str] | None = None) -> T:
        """Await `awaitable`; raise `DeadlineError` naming `awaited` when time is up (the awaitable is cancelled)."""
        # Not wait_for: Python 3.11's forgets a cancellation that comes in the moment in which the awaitable is done.
        try:
            async with asyncio.timeout(self.remaining_s) as limit:
                return await awaitable
        except TimeoutError as error:
            if not limit.expired():
                raise  # a TimeoutError of the awaitable's own
            raise self.error(awaited, seen=seen() if seen else "") from error

    async def poll(
        self, condition: Callable[[], Awaitable[bool]], *, awaited: str, interval_s: float = 0.005,
        seen: Callable[[], str] | None = None,
    ) -> None:
        """Ask `condition` every `interval_s` until it holds (for facts that announce themselves by no event)."""
        while not await condition():
            if self.expired:
                raise self.error(awaited, seen=seen() if seen else "")
            await asyncio.sleep(min(interval_s, self.remaining_s))
