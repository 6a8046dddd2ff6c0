"""Whether the guest's memory arrived as it left: source and destination compared page by page, while both stand still."""

from __future__ import annotations

from harness.host.deadline import Deadline
from harness.vm.machine import Machine

__all__ = ["differing_pages", "memory_ranges"]

PAGE_BYTES = 4096
_CHUNK_BYTES = 64 << 20
_LOW_BYTES = 2 << 30
_ALL_LOW_BYTES = 2816 << 20
"""A q35 with less memory than this has all of it below 4 GiB; one with more has `_LOW_BYTES` there, and the rest above."""
_HIGH_ADDRESS = 4 << 30


async def differing_pages(source: Machine, destination: Machine, *, deadline: Deadline) -> list[int]:
    """The addresses of the pages that are not the same on both sides. The destination must be one that `-S` keeps from starting."""

    async def loaded() -> bool:
        return bool((await destination.qmp.command("query-status"))["status"] == "paused")

    await deadline.poll(loaded, awaited="the destination to have loaded the guest")
    found: list[int] = []
    for start, size in memory_ranges(source.spec.memory_mib):
        for address in range(start, start + size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, start + size - address)
            here = await source.guest_memory(address, count)
            there = await destination.guest_memory(address, count)
            if here != there:
                found += [
                    address + at for at in range(0, count, PAGE_BYTES) if here[at : at + PAGE_BYTES] != there[at : at + PAGE_BYTES]
                ]
    return found


def memory_ranges(memory_mib: int) -> list[tuple[int, int]]:
    """Guest physical address and size of each part of a q35's memory."""
    size = memory_mib << 20
    if size < _ALL_LOW_BYTES:
        return [(0, size)]
    return [(0, _LOW_BYTES), (_HIGH_ADDRESS, size - _LOW_BYTES)]
