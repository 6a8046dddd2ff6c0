"""A switchover at a glance: frames at each port, phases, what was lost, late or twice, QMP events, announcements and TCP stalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness.analysis.columns import Capture
from harness.analysis.evidence import Fate
from harness.analysis.ledger import Ledger
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.sightings import NEVER
from harness.analysis.tcp import find_connections
from harness.model.events import Event
from harness.model.result import RunResult
from harness.report.html.chart import LEFT, RIGHT, Scale, bars, figure, line, path, rect, text, ticks

__all__ = ["Span", "bin_ns_of", "span_of", "timeline"]

MS = 1_000_000
_MOST_BINS = 1200
_ROW, _MARKS, _EVENTS = 54.0, 22.0, 13.0
_STALL_NS = 40 * MS
"""A pause of acknowledgements that is drawn; shorter ones are a busy machine's."""
_SHOWN_EVENTS = ("STOP", "RESUME", "MIGRATION", "VM_STARTED", "SUSPEND", "WAKEUP", "BLOCK_IO_ERROR", "GUEST_PANICKED")


@dataclass(frozen=True)
class Span:
    """What is drawn, on the host's clock, and where 0 ms stands."""

    start_ns: int
    end_ns: int
    zero_ns: int
    zero: str

    def ms(self, t_ns: int) -> float:
        return (t_ns - self.zero_ns) / MS


def span_of(result: RunResult) -> Span:
    """The switchover with what lies around it; all of the traffic where nothing stopped."""
    first, last = result.phases[0].start_ns, result.phases[-1].end_ns
    stopped = next((phase for phase in result.phases if phase.name == "stopped"), None)
    if stopped is None:
        return Span(first, last, first, "traffic began")
    length = stopped.end_ns - stopped.start_ns
    start = max(first, stopped.start_ns - max(100 * MS, length // 2))
    return Span(start, min(last, stopped.end_ns + max(250 * MS, length)), stopped.start_ns, "stop")


def bin_ns_of(span: Span) -> int:
    """A millisecond, or as many as keep the bars apart."""
    return max(MS, -(-(span.end_ns - span.start_ns) // _MOST_BINS // MS) * MS)


def timeline(
    result: RunResult, span: Span, *, captures: dict[str, Capture], ledgers: dict[str, Ledger], events: Sequence[Event]
) -> Markup:
    """The chart; every row says in words what it is."""
    scale = Scale(span.ms(span.start_ns), span.ms(span.end_ns))
    bin_ns = bin_ns_of(span)
    parts: list[Markup] = []
    top = 26.0
    y = top
    rows = _port_rows(captures, ledgers, span, bin_ns)
    most = _full_height(rows)
    for name, to_guest, from_guest in rows:
        middle = y + _ROW / 2
        half = _ROW / 2 - 3
        parts += [
            text(LEFT - 8, middle + 4, name, kind="label", anchor="end"), line(LEFT, middle, RIGHT, middle, kind="base"),
            bars(np.minimum(to_guest, most), base=middle, height=half, most=most, kind="to-guest", title=f"{name}: {int(to_guest.sum())} frames to the guest"),
            bars(np.minimum(from_guest, most), base=middle, height=half, most=most, kind="from-guest", up=False, title=f"{name}: {int(from_guest.sum())} frames from the guest"),
        ]  # fmt: skip
        y += _ROW
    said = []
    for name, kind, times in _marks(ledgers):
        inside = times[(times >= span.start_ns) & (times < span.end_ns)]
        said.append(f"{times.size} {name}")
        commands = "".join(f"M{scale(span.ms(int(t))):.1f} {y + 4:.0f}v{_MARKS - 8:.0f}" for t in inside.tolist())
        parts += [
            text(LEFT - 8, y + 15, f"{name}: {times.size}", kind="label", anchor="end"), line(LEFT, y + _MARKS, RIGHT, y + _MARKS, kind="faint"),
            path(commands, kind=f"mark {kind}", title=f"{inside.size} of {times.size} {name} packets are within what is shown") if commands else Markup(""),
        ]  # fmt: skip
        y += _MARKS
    for name, stalls in _stalls(captures, result):
        parts.append(text(LEFT - 8, y + 15, name if len(name) <= 18 else f"…{name[-17:]}", kind="label", anchor="end"))
        parts.append(line(LEFT, y + _MARKS, RIGHT, y + _MARKS, kind="faint"))
        for begin, end in stalls:
            if end > span.start_ns and begin < span.end_ns:
                x, after = scale(span.ms(begin)), scale(span.ms(end))
                parts.append(rect(x, y + 5, after - x, _MARKS - 10, kind="stall", title=f"{name} stalls: nothing acknowledged for {(end - begin) / MS:.0f} ms"))
        y += _MARKS
    drawn, y = _events(result, events, span, scale, y + 6)
    parts += drawn
    bottom = y + 4
    shades = _phases(result, span, scale, top, bottom)
    axis = [line(scale(t), bottom, scale(t), bottom + 5, kind="base") for t in ticks(scale.low, scale.high, count=9)]
    axis += [text(scale(t), bottom + 18, f"{t:g}", kind="tick", anchor="middle") for t in ticks(scale.low, scale.high, count=9)]
    axis.append(text(LEFT - 8, bottom + 18, f"ms from {span.zero}", kind="tick", anchor="end"))
    said += [f"{len(stalls)} stalls of {name}" for name, stalls in _stalls(captures, result)]
    label = (
        f"Timeline from {scale.low:.0f} to {scale.high:.0f} ms around the {span.zero}: frames per {bin_ns // MS} ms at {len(rows)} places; "
        + (", ".join(said) or "no probes")
    )
    return figure([*shades, *parts, *axis], height=bottom + 26, label=label)


def _port_rows(
    captures: dict[str, Capture], ledgers: dict[str, Ledger], span: Span, bin_ns: int
) -> list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """Of each place: frames to the guest and from it, by bins. At the end what arrived for good: probes at their receivers."""
    count = -(-(span.end_ns - span.start_ns) // bin_ns)

    def binned(times: NDArray[np.int64]) -> NDArray[np.int64]:
        inside = times[(times >= span.start_ns) & (times < span.end_ns)]
        return np.bincount((inside - span.start_ns) // bin_ns, minlength=count)[:count].astype(np.int64)

    rows = []
    for name, place in (("peer", "peer's port"), ("source", "source's TAP"), ("destination", "destination's TAP")):
        if name in captures:
            columns = captures[name].columns
            # the peer's port is seen from the bridge's side: what the peer sends comes in there
            towards = INBOUND if name == "peer" else OUTBOUND
            rows.append((place, binned(columns.time_ns[columns.direction == towards]), binned(columns.time_ns[columns.direction != towards])))
    arrived: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
    for ledger in ledgers.values():
        arrived[ledger.direction != "from-guest"].append(ledger.delivered_ns[ledger.delivered_ns != NEVER])
    if ledgers:
        sums = [binned(np.concatenate(arrived[to]) if arrived[to] else np.empty(0, dtype=np.int64)) for to in (True, False)]
        rows.append(("delivered", sums[0], sums[1]))
    return rows


def _full_height(rows: list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]) -> int:
    """What fills a row: more than nearly all bins have. A burst that a busy machine made up for would press all others flat."""
    counts = np.concatenate([np.concatenate((a, b)) for _, a, b in rows]) if rows else np.empty(0, dtype=np.int64)
    busy = counts[counts > 0]
    return max(2, int(np.quantile(busy, 0.98))) if busy.size else 0


def _marks(ledgers: dict[str, Ledger]) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Lost ones when they were sent, the others when they were delivered."""
    if not ledgers:
        return []
    found: dict[str, list[NDArray[np.int64]]] = {"lost": [], "late": [], "duplicated": [], "reordered": []}
    for ledger in ledgers.values():
        lost = ledger.fate != Fate.DELIVERED
        found["lost"].append(np.where(ledger.host_sent_ns != NEVER, ledger.host_sent_ns, ledger.sent_ns)[lost])
        found["late"].append(ledger.delivered_ns[ledger.late])
        found["duplicated"].append(ledger.delivered_ns[ledger.deliveries > 1])
        found["reordered"].append(ledger.delivered_ns[ledger.reordered])
    return [(name, name, np.concatenate(times)) for name, times in found.items() if name != "reordered" or any(each.size for each in times)]


def _stalls(captures: dict[str, Capture], result: RunResult) -> list[tuple[str, list[tuple[int, int]]]]:
    """Of each connection that isn't idle: when nothing more was acknowledged."""
    if not result.tcp or "peer" not in captures:
        return []
    known = {connection.flows[way].sender: connection.acknowledged[way][0] for connection in find_connections(captures["peer"].columns) for way in (0, 1) if connection.acknowledged[way].size}
    rows = []
    for entry in result.tcp:
        times = known.get(entry.client)
        if times is None or entry.longest_stall_ms.value is None or times.size < 2:
            continue
        gaps = np.flatnonzero(np.diff(times) >= max(_STALL_NS, 3 * int(np.median(np.diff(times)))))
        rows.append((entry.name, [(int(times[at]), int(times[at + 1])) for at in gaps.tolist()]))
    return rows


def _events(result: RunResult, events: Sequence[Event], span: Span, scale: Scale, y: float) -> tuple[list[Markup], float]:
    """QMP events and announcements, each with its name; those that would overlap stand in further lines."""
    shown = [
        (event.t_ns, f"{event.name}{' ' + str(event.data['status']) if 'status' in event.data else ''} ({event.source})")
        for event in events
        if event.name in _SHOWN_EVENTS and event.source in ("source", "destination") and span.start_ns <= event.t_ns < span.end_ns
    ]
    parts: list[Markup] = []
    announced = [each for each in result.announcements if span.start_ns <= each.t_ns < span.end_ns]
    if announced:
        parts.append(text(LEFT - 8, y + 11, f"announced: {len(result.announcements)}", kind="label", anchor="end"))
        for each in announced:
            x = scale(span.ms(each.t_ns))
            parts.append(line(x, y, x, y + 14, kind="tick-announcement", title=f"{each.kind} at {span.ms(each.t_ns):.3f} ms"))
        y += _MARKS
    ends: list[float] = []
    for t_ns, words in sorted(shown):
        x = scale(span.ms(t_ns))
        width = 6.2 * len(words) + 10
        left = x + width > RIGHT
        begin = x - width if left else x
        row = next((k for k, end in enumerate(ends) if end <= begin), len(ends))
        if row == len(ends):
            ends.append(0.0)
        ends[row] = begin + width
        at = y + row * _EVENTS
        parts.append(line(x, at, x, at + 10, kind="tick-event", title=f"{words} at {span.ms(t_ns):.3f} ms"))
        parts.append(text(x - 4 if left else x + 4, at + 9, words, kind="small", anchor="end" if left else "start"))
    if shown:
        parts.append(text(LEFT - 8, y + 9, "events", kind="label", anchor="end"))
    return parts, y + len(ends) * _EVENTS


def _phases(result: RunResult, span: Span, scale: Scale, top: float, bottom: float) -> list[Markup]:
    parts = []
    free = 0.0
    for phase in result.phases:
        if phase.end_ns <= span.start_ns or phase.start_ns >= span.end_ns:
            continue
        x, end = scale(span.ms(phase.start_ns)), scale(span.ms(phase.end_ns))
        long_ms = (phase.end_ns - phase.start_ns) / MS
        parts.append(rect(x, top, end - x, bottom - top, kind=f"phase {phase.name}", title=f"{phase.name}: {long_ms:.1f} ms"))
        if end - x > 6.5 * len(phase.name) and x >= free:
            parts.append(text(x + 3, top - 8, phase.name, kind="small"))
            free = x + 6.5 * len(phase.name)
    return parts
