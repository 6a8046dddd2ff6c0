"""What many migrations of one guest came to: a line for each, and what grew meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

__all__ = ["PingPong", "Round"]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One migration. The last four: of the harness (and of the lab: processes), after it."""

    number: int
    run: str
    outcome: str
    seconds: float
    lost: int
    duplicated: int
    unexplained: int
    compute_ms: float | None
    network_ms: float | None
    reported_ms: float | None
    total_ms: float | None
    memory_bytes: int
    descriptors: int
    threads: int
    processes: int


FIGURES: tuple[str, ...] = ("seconds", "lost", "duplicated", "unexplained", "compute_ms", "network_ms", "reported_ms", "total_ms")
RESOURCES = ("memory_bytes", "descriptors", "threads", "processes")
_SETTLED = 5
"""Rounds after which caches are warm."""


class PingPong(msgspec.Struct, frozen=True, kw_only=True):
    """Fewer rounds than `planned`: the last one failed."""

    schema_version: Literal[1] = 1
    scenario: str
    planned: int
    rounds: tuple[Round, ...]

    def column(self, name: str) -> list[float]:
        """A figure of every round that has it, in order."""
        return [float(value) for each in self.rounds if (value := getattr(each, name)) is not None]

    def growth(self) -> dict[str, float]:
        """What the harness holds after the last round beyond what it held when it had settled (its fifth round)."""
        settled = self.rounds[min(_SETTLED, len(self.rounds)) - 1]
        return {name: float(getattr(self.rounds[-1], name) - getattr(settled, name)) for name in RESOURCES}

    def problems(self) -> Iterator[str]:
        """Why it is no pass, a line each."""
        if len(self.rounds) < self.planned:
            yield f"only {len(self.rounds)} of {self.planned} migrations were made"
        for each in self.rounds:
            if each.unexplained:
                yield f"migration {each.number} ({each.run}): {each.unexplained} packets unexplained"
            if each.outcome != "completed":
                yield f"migration {each.number} ({each.run}): {each.outcome}"
        for name in ("descriptors", "threads", "processes"):
            if (grown := self.growth()[name]) > 0:
                yield f"{name} grew by {grown:g}"
