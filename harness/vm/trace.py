"""QEMU's trace points on the timeline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from harness.model.events import Event
from harness.vm.machine import Machine

__all__ = ["parse_trace", "trace_events"]

# With `-msg timestamp=on` the log backend writes "thread@seconds.microseconds:event arguments" up to 10.x,
# and "2026-01-31T12:00:00.000000Z event arguments" from 11.0 on, as for any other message.
_EPOCH = re.compile(r"^\d+@(\d+)\.(\d{6}):(\w+) ?(.*)$")
_ISO = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{6})Z (\w+) ?(.*)$")


def parse_trace(text: str, *, source: str) -> Iterator[Event]:
    """The trace events in a machine's output; other lines are passed over."""
    for line in text.splitlines():
        if match := _EPOCH.match(line):
            seconds = int(match[1])
        elif match := _ISO.match(line):
            seconds = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())
        else:
            continue
        t_ns = seconds * 1_000_000_000 + int(match[2]) * 1000
        yield Event(t_ns=t_ns, source=source, name=f"trace:{match[3]}", data={"text": match[4]})


def trace_events(machine: Machine) -> list[Event]:
    """All trace events of a machine that was started."""
    return list(parse_trace(machine.process.read_output().decode(errors="replace"), source=machine.spec.name))
