"""Pairs that are used by more than one test, and the proof that the next one finds them as the first did."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from harness.errors import SwitchoverError
from harness.migrate.ways.base import as_before
from harness.plugin.loop import LoopThread

if TYPE_CHECKING:
    from harness.plugin.pair import GuestPair, Settings

__all__ = ["Pool", "differences", "state_of"]

log = logging.getLogger("switchover")

_USERLAND = (
    'found=$(for p in /proc/[0-9]*; do c=$(tr "\\0" " " 2>/dev/null < $p/cmdline); [ -n "$c" ] && echo "$c"; done); '
    'echo "$found" | grep -v "/cmdline" | grep -v "^tr " | sort'
)
"""The guest's programs; kernel threads have no command line, and this script's own processes are left out."""


def state_of(pair: GuestPair) -> dict[str, Any]:
    """What a test may leave changed: QEMU's run state, migration parameters and objects; the guest's boot, programs and interface.

    Capabilities are no part of it, nor are parameters that a migration of ours set: each migration sets the former anew, and takes the latter back.
    """
    parameters = as_before(pair.lab.mobile, pair.qmp("query-migrate-parameters"))
    return {
        "status": pair.qmp("query-status")["status"],
        "parameters": {name: parameters[name] for name in sorted(parameters)},
        "objects": sorted(entry["name"] for entry in pair.qmp("qom-list", {"path": "/objects"})),
        "boot": pair.succeed("cat /proc/sys/kernel/random/boot_id").strip(),
        "programs": pair.succeed(_USERLAND).split("\n"),
        "interface": pair.succeed("ip -br address show eth0; cat /sys/class/net/eth0/operstate /sys/class/net/eth0/mtu").split("\n"),
        "peer": None if pair.lab.peer_machine is None else pair.succeed(_USERLAND, on="peer").split("\n"),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    found = []
    for name, was in before.items():
        now = after[name]
        if was == now:
            continue
        if isinstance(was, dict):
            found += [f"{name}: {key} was {was.get(key)!r}, is {now.get(key)!r}" for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        else:
            found.append(f"{name}: was {was!r}, is {now!r}")
    return found


class Pool:
    """One pair for each kind of settings. A pair that a test left changed is closed, and the next test gets a fresh one."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._pairs: dict[str, tuple[contextlib.ExitStack, GuestPair, dict[str, Any]]] = {}

    def take(self, settings: Settings) -> GuestPair:
        """The pair of these settings, started if there is none."""
        from harness.plugin.pair import GuestPair

        known = self._pairs.get(settings.kind)
        if known is not None:
            known[1].lend(settings)
            return known[1]
        stack = contextlib.ExitStack()
        pair = stack.enter_context(GuestPair.open(settings, loop=self._loop))
        try:
            self._pairs[settings.kind] = (stack, pair, state_of(pair))
        except BaseException:
            stack.close()
            raise
        return pair

    def give_back(self, settings: Settings) -> list[str]:
        """What the test left changed; empty where the pair may be used again."""
        stack, pair, before = self._pairs[settings.kind]
        try:
            left = ["traffic was under way"] if pair.busy else differences(before, state_of(pair))
        except SwitchoverError as error:
            left = [f"the pair does not answer: {error.message}"]
        if left:
            log.info("the pair is not used again: %s", "; ".join(left))
            del self._pairs[settings.kind]
            stack.close()
        return left

    def close(self) -> None:
        with contextlib.ExitStack() as all_of_them:
            for stack, _, _ in self._pairs.values():
                all_of_them.push(stack)
            self._pairs.clear()
