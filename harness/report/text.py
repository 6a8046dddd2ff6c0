"""One run's whole report as plain text: for a terminal, a mail or a bug tracker."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness.model.events import Event
from harness.model.result import QemuIdentity, RunResult, StreamResult
from harness.report.table import run_table

__all__ = ["run_report"]

_TELLING = frozenset(("STOP", "RESUME", "MIGRATION", "SHUTDOWN", "GUEST_PANICKED", "FAILOVER_NEGOTIATED", "UNPLUG_PRIMARY", "FDB"))
"""QMP events, and the bridge's, that say where a switchover stands."""
_MOST_EVENTS = 60
_MOST_OUTAGES = 4


def run_report(result: RunResult, events: Sequence[Event] = ()) -> str:
    """The run's table, then what was run on what, the phases, what was lost in each, the migration's course, announcements and captures.

    Times are milliseconds of the host's clock since the traffic began. A section without anything in it is left out.
    """
    start_ns = result.phases[0].start_ns if result.phases else (events[0].t_ns if events else 0)
    sections = {
        "": run_table(result),
        "What was run": _setting(result),
        "Phases": _phases(result, start_ns),
        "Outages": _outages(result, start_ns),
        "Migration": _migration(result, start_ns),
        "Events": _events(events, start_ns),
        "Announcements": _announcements(result, start_ns),
        "Captures": _captures(result),
    }
    parts = [text if not title else f"{title}\n{'-' * len(title)}\n{text}" for title, text in sections.items() if text]
    return "\n\n".join("\n".join(line.rstrip() for line in part.splitlines()) for part in parts)


def _pairs(rows: dict[str, Any]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items() if text not in ("", None))


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], *, left: int = 1) -> str:
    if not rows:
        return ""
    align = ["left"] * left + ["right"] * (len(headers) - left)
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _at(t_ns: int, start_ns: int) -> str:
    return f"{(t_ns - start_ns) / 1e6:.3f}"


def _setting(result: RunResult) -> str:
    scenario, host = result.scenario, result.host
    migration, guest, network = scenario.migration, scenario.guest, scenario.network

    def build(identity: QemuIdentity) -> str:
        return f"{identity.version} ({identity.name}, build {identity.build})"

    return _pairs({
        "description": textwrap.shorten(scenario.description, 160),
        "migration": f"{migration.mode} over {migration.transport}, mechanism {result.mechanism}, held for {migration.hold_ms:g} ms",
        "capabilities": ", ".join(migration.capabilities),
        "parameters": ", ".join(f"{name} = {value}" for name, value in migration.parameters.items()),
        "source": build(result.qemu.source),
        "destination": build(result.qemu.destination),
        "guest": f"Linux {result.guest.kernel}, {guest.machine}, {guest.memory}, {guest.vcpus} vCPU, image {result.guest.image[:12]}",
        "network": f"{network.topology}, peer {network.peer}, {network.queues} queue pair{'s' * (network.queues > 1)}, vhost {'on' if network.vhost else 'off'}",
        "host": ", ".join(str(host[key]) for key in ("distribution", "kernel", "cpu_model", "cores_usable") if host.get(key)),
        "accelerator": result.accelerator,
    })  # fmt: skip


def _phases(result: RunResult, start_ns: int) -> str:
    def lost(stream: StreamResult, phase: str) -> str:
        count = stream.lost_by_phase.get(phase, 0)
        sent = stream.sent_by_phase.get(phase)
        return "" if not count and not sent else f"{count}" if sent is None else f"{count} / {sent}"

    rows = [
        [phase.name, _at(phase.start_ns, start_ns), f"{(phase.end_ns - phase.start_ns) / 1e6:.3f}", *(lost(stream, phase.name) for stream in result.streams)]
        for phase in result.phases
    ]
    headers = ["phase", "from ms", "length ms", *(f"{stream.name}: lost / sent" for stream in result.streams)]
    return _table(rows, headers)


def _outages(result: RunResult, start_ns: int) -> str:
    """The longest of each stream, in the order of time."""
    rows = []
    for stream in result.streams:
        longest = sorted(stream.outages, key=lambda outage: -outage.duration_ms)[:_MOST_OUTAGES]
        for outage in sorted(longest, key=lambda outage: outage.start_ns):
            rows.append([stream.name, _at(outage.start_ns, start_ns), f"{outage.duration_ms:.1f}", "yes" if outage.recovered else "NO"])
        if rest := len(stream.outages) - len(longest):
            rows.append([stream.name, "", f"{rest} shorter", ""])
    return _table(rows, ["stream", "from ms", "length ms", "recovered"])


def _migration(result: RunResult, start_ns: int) -> str:
    found = result.migration
    if found is None:
        return ""
    rows = {
        "status": found.status,
        "total": "" if found.total_ms is None else f"{found.total_ms:g} ms",
        "setup": "" if found.setup_ms is None else f"{found.setup_ms:g} ms",
        "RAM": ", ".join(f"{name} {value}" for name, value in found.ram.items() if isinstance(value, int | float) and value),
        "course": ", ".join(f"{name} at {_at(t_ns, start_ns)} ms" for name, t_ns in found.statuses),
    }
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 8) for line in _pairs(rows).splitlines())


def _events(events: Sequence[Event], start_ns: int) -> str:
    shown = [event for event in events if event.source == "harness" or event.name in _TELLING or _is_error(event)]
    lines = [f"{_at(event.t_ns, start_ns):>12}  {event.source:<11}  {'says' if _is_error(event) else event.name}  {_data(event)}" for event in shown[:_MOST_EVENTS]]
    if len(shown) > _MOST_EVENTS:
        lines.append(f"{'':>12}  ... and {len(shown) - _MOST_EVENTS} more")
    return "\n".join(lines)


def _is_error(event: Event) -> bool:
    """A line that a QEMU put on its error output, which the timeline has beside the trace points."""
    return event.name == "trace:qemu" and "warning: " not in str(event.data.get("text", ""))


def _data(event: Event) -> str:
    if _is_error(event):
        return textwrap.shorten(str(event.data.get("text", "")).partition(": ")[2], 120)
    return textwrap.shorten(", ".join(f"{name} = {value}" for name, value in event.data.items()), 80)


def _announcements(result: RunResult, start_ns: int) -> str:
    return _table([[a.kind, a.interface, _at(a.t_ns, start_ns)] for a in result.announcements], ["kind", "seen at", "ms"], left=2)


def _captures(result: RunResult) -> str:
    return _table([[name, str(c.packets), str(c.dropped)] for name, c in result.captures.items()], ["capture", "packets", "dropped"])
