"""A destination that ends without having run the guest: what it said, and whether the source can go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from harness.host.deadline import PATIENCE
from harness.vm.machine import Machine

__all__ = ["LEFT_ALONE", "continue_source", "last_words", "never_ran"]

LEFT_ALONE = frozenset({"completed", "postcopy-paused"})
"""Statuses of a source that has no more to say, whatever became of its destination."""
_LINES = 3
"""What refused, what that made of the section, and of the migration."""
_END_SEEN_S = 0.5
"""The end of a process, of its connection and of its migration are seen in any order, and within this time."""


async def last_words(destination: Machine) -> str:
    """What its QEMU said last, if it ended with the migration; empty if it lives on."""
    await asyncio.wait({destination.process.ended}, timeout=_END_SEEN_S * PATIENCE)
    if destination.process.returncode is None:
        return ""
    lines = destination.process.read_output().decode(errors="replace").splitlines()
    said = dict.fromkeys(line[line.index("qemu-system") :] for line in lines if "qemu-system" in line and ": warning: " not in line)
    return f"the destination ended with: {' / '.join([*said][-_LINES:])}" if said else "the destination ended without a word"


async def never_ran(destination: Machine, *, resumed: Callable[[], bool]) -> bool:
    """Whether it has ended and its guest never ran in it. `resumed`: whether its RESUME was seen; one may be on its way still."""
    if destination.process.returncode is None:
        return False
    lost = asyncio.ensure_future(destination.qmp.lost())
    try:
        await asyncio.wait({lost}, timeout=_END_SEEN_S * PATIENCE)
    finally:
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
    return not resumed()


async def continue_source(source: Machine, *, event: Callable[[str, dict[str, object]], None], note: Callable[[str], None]) -> None:
    """A source that completed, whose guest arrived nowhere: it goes on there, as whoever manages both would have it."""
    event("taken-back", {})
    await source.qmp.command("cont")
    note("the source had completed its migration, and was continued since its destination ended without the guest")
