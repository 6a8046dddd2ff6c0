"""Guest memory compared page by page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import ScenarioError
from harness.host.deadline import Deadline
from harness.migrate.memory import differing_pages, memory_ranges
from harness.model.load import load_scenario

MIB = 1 << 20


class Guest:
    """A machine with 65 MiB of zeros (one more than is read at once) but for what is said; not loaded at the first question."""

    def __init__(self, *, other: tuple[int, ...] = ()) -> None:
        self.spec = SimpleNamespace(memory_mib=65, machine="pc-q35-10.0")
        self.qmp = self
        self._memory = bytearray(65 * MIB)
        for address in other:
            self._memory[address] = 1
        self._asked = 0

    async def command(self, name: str) -> dict[str, Any]:
        assert name == "query-status"
        self._asked += 1
        return {"status": "inmigrate" if self._asked == 1 else "paused"}

    async def guest_memory(self, address: int, size_bytes: int) -> bytes:
        assert self is not DESTINATION or self._asked > 1, "read before it had loaded"
        return bytes(self._memory[address : address + size_bytes])


DESTINATION = Guest(other=(4095, 4096, 64 * MIB, 65 * MIB - 1))


def test_differing_pages_are_named_once_each(run):
    found = run(differing_pages(Guest(other=(4095,)), DESTINATION, deadline=Deadline(10.0)))
    assert found == [4096, 64 * MIB, 65 * MIB - 4096]


@pytest.mark.parametrize(("mib", "q35", "parts"), [
    (256, True, [(0, 256 * MIB)]),
    (2815, True, [(0, 2815 * MIB)]),
    (2816, True, [(0, 2048 * MIB), (4096 * MIB, 768 * MIB)]),
    (3583, False, [(0, 3583 * MIB)]),
    (3584, False, [(0, 3072 * MIB), (4096 * MIB, 512 * MIB)]),
])
def test_parts_of_memory(mib, q35, parts):
    assert memory_ranges(mib, q35=q35) == parts


@pytest.mark.parametrize("settings", [
    ("migration.mode=stop-cont",),
    ("migration.mode=postcopy",),
    ("migration.cancel_at_switchover=true",),
    ('migration.capabilities=["release-ram"]',),
])
def test_memory_is_not_compared_where_the_source_has_none_to_compare(settings):
    with pytest.raises(ScenarioError, match="compare_memory"):
        load_scenario("udp-none", settings=[*settings, "migration.compare_memory=true"])
