"""Whether the guest's memory arrived as it left: source and destination compared page by page, while both stand still."""

from __future__ import annotations

from harness.host.deadline import Deadline
from harness.vm.machine import Machine

__all__ = ["differing_pages", "memory_ranges"]

PAGE_BYTES = 4096
_CHUNK_BYTES = 64 << 20
_MIB = 1 << 20
_SPLITS = {True: (2816 * _MIB, 2048 * _MIB), False: (3584 * _MIB, 3072 * _MIB)}
"""By whether it is a q35: a guest with less memory than the first has all of it below 4 GiB; one with more has the second there, the rest above."""
_HIGH_ADDRESS = 4 << 30


async def differing_pages(source: Machine, destination: Machine, *, deadline: Deadline) -> list[int]:
    """The addresses of the pages that are not the same on both sides. The destination must be one that `-S` keeps from starting."""

    async def loaded() -> bool:
        return bool((await destination.qmp.command("query-status"))["status"] == "paused")

    await deadline.poll(loaded, awaited="the destination to have loaded the guest")
    found: list[int] = []
    for start, size in memory_ranges(source.spec.memory_mib, q35="q35" in source.spec.machine):
        for address in range(start, start + size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, start + size - address)
            here = await source.guest_memory(address, count)
            there = await destination.guest_memory(address, count)
            if here != there:
                found += [
                    address + at for at in range(0, count, PAGE_BYTES) if here[at : at + PAGE_BYTES] != there[at : at + PAGE_BYTES]
                ]
    return found


def memory_ranges(memory_mib: int, *, q35: bool) -> list[tuple[int, int]]:
    """Guest physical address and size in bytes of each part of a PC's memory, q35 or i440fx."""
    size = memory_mib * _MIB
    all_low, low = _SPLITS[q35]
    return [(0, size)] if size < all_low else [(0, low), (_HIGH_ADDRESS, size - low)]
