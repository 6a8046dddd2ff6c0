"""QEMU's trace points on the timeline."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.model.events import Event
from harness.vm.machine import Machine

__all__ = ["parse_trace", "trace_events"]

# The log backend writes "pid@seconds.microseconds:event arguments".
_LINE = re.compile(r"^\d+@(\d+)\.(\d{6}):(\w+) ?(.*)$")


def parse_trace(text: str, *, source: str) -> Iterator[Event]:
    """The trace events in a machine's output; other lines are passed over."""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            t_ns = int(match[1]) * 1_000_000_000 + int(match[2]) * 1000
            yield Event(t_ns=t_ns, source=source, name=f"trace:{match[3]}", data={"text": match[4]})


def trace_events(machine: Machine) -> list[Event]:
    """All trace events of a machine that was started."""
    return list(parse_trace(machine.process.read_output().decode(errors="replace"), source=machine.spec.name))
