"""Whether the guest's kernel is still the one that was booted: what its console says of its end, and what QEMU says of a reset."""

from __future__ import annotations

import re

from harness.model.defects import KERNEL_PANICKED
from harness.model.events import Timeline
from harness.vm.machine import Machine

__all__ = ["crash_in", "guest_crash"]

_PANIC = "Kernel panic - not syncing"
_STAMP = re.compile(r"^\[\s*\d+\.\d+\]\s*")
_CAUSE = re.compile(r"\bBUG: |kernel BUG at|\bOops: |general protection fault|double fault|stack segment: |Machine check")


def crash_in(console: str) -> str | None:
    """Why the kernel that wrote this panicked, in one line; `None` when it did not."""
    lines = [_STAMP.sub("", line.strip()) for line in console.splitlines()]
    panic = next((number for number, line in enumerate(lines) if line.startswith(_PANIC)), None)
    if panic is None:
        return None
    cause = next((line for line in lines[:panic] if _CAUSE.search(line)), None)
    return f"{cause}; {lines[panic]}" if cause else lines[panic]


def guest_crash(machine: Machine, timeline: Timeline, *, since_ns: int) -> str | None:
    """What ended the guest in `machine`, if anything did since then: its kernel's panic, or a reset that it did not ask us for."""
    said = crash_in(machine.console.text) if machine.console is not None else None
    if said is not None:
        return f"{KERNEL_PANICKED} in {machine.spec.name}: {said}"
    reset = timeline.find("RESET", source=machine.role, after_ns=since_ns)
    return None if reset is None else f"the guest in {machine.spec.name} was reset ({reset.data.get('reason', 'no reason given')})"
