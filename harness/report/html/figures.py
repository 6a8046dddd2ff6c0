"""The charts beside the timeline: latency, downtimes, the ledger as a flow, and a campaign's figures by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness.analysis.comparison import ArmSummary
from harness.analysis.ledger import Ledger
from harness.analysis.sightings import NEVER
from harness.model.result import RunResult, StreamResult
from harness.report.html.chart import (
    LEFT,
    RIGHT,
    Scale,
    columns,
    figure,
    line,
    log_ticks,
    number,
    path,
    rect,
    text,
    ticks,
)
from harness.report.html.timeline import MS, Span

__all__ = ["distribution", "downtimes", "latency", "ledger_flow", "multiple"]

_QUANTILES = 200
_SMALL_WIDTH, _SMALL_LEFT = 560.0, 180.0
_CLASSES = (
    ("delivered", "delivered"), ("stranded_at_source", "stranded at the source"), ("dropped_by_host", "dropped by the host"),
    ("lost_in_qemu", "lost in QEMU"), ("dropped_by_guest", "dropped by the guest"), ("lost_on_return", "lost on its return"),
    ("unexplained", "unexplained"),
)  # fmt: skip


def _delays_ms(ledger: Ledger) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    known = (ledger.host_sent_ns != NEVER) & (ledger.delivered_ns != NEVER)
    return ledger.host_sent_ns[known], np.maximum(ledger.delivered_ns[known] - ledger.host_sent_ns[known], 1000) / MS


def _latency_scale(ledgers: dict[str, Ledger], *, start: float, end: float) -> Scale | None:
    delays = [delay for ledger in ledgers.values() if (delay := _delays_ms(ledger)[1]).size]
    if not delays:
        return None
    low, high = min(float(d.min()) for d in delays), max(float(d.max()) for d in delays)
    return Scale(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high * 1.01)), start, end, log=True)


def _order(ledgers: dict[str, Ledger]) -> list[tuple[Ledger, str]]:
    """Each stream with its colour, that of its direction."""
    return [(ledger, "from-guest" if ledger.direction == "from-guest" else "to-guest") for ledger in ledgers.values()]


def latency(result: RunResult, span: Span, ledgers: dict[str, Ledger]) -> Markup | None:
    """Delay over the whole of the traffic: for each place on the page the range of the delays there."""
    height = 170.0
    rise = _latency_scale(ledgers, start=height, end=10)
    if rise is None:
        return None
    first, last = span.ms(result.phases[0].start_ns), span.ms(result.phases[-1].end_ns)
    scale = Scale(first, last)
    parts: list[Markup] = []
    for phase in result.phases:
        x = scale(span.ms(phase.start_ns))
        parts.append(rect(x, 10, scale(span.ms(phase.end_ns)) - x, height - 10, kind=f"phase {phase.name}", title=phase.name))
    parts += _log_grid(rise, height)
    said = []
    for ledger, kind in _order(ledgers):
        sent, delay = _delays_ms(ledger)
        if not sent.size:
            continue
        places = np.round([scale(span.ms(int(t))) for t in sent.tolist()]).astype(np.int64)
        order = np.argsort(places, kind="stable")
        at, starts = np.unique(places[order], return_index=True)
        low, high = np.minimum.reduceat(delay[order], starts), np.maximum.reduceat(delay[order], starts)
        strokes = [(float(x), rise(float(b)), rise(float(a))) for x, a, b in zip(at, low, high, strict=True)]
        parts.append(columns(strokes, kind=f"stroke {kind}", title=ledger.name))
        said.append(f"{ledger.name}: median {np.median(delay):.3f} ms, longest {delay.max():.1f} ms")
    parts += [text(scale(t), height + 16, f"{t:g}", kind="tick", anchor="middle") for t in ticks(first, last, count=9)]
    parts.append(text(LEFT - 8, height + 16, f"ms from {span.zero}", kind="tick", anchor="end"))
    return figure(parts, height=height + 24, label="Delay of each delivered packet by the time it was sent. " + "; ".join(said))


def _log_grid(rise: Scale, bottom: float) -> list[Markup]:
    parts = []
    for tick in log_ticks(rise.low, rise.high):
        y = rise(tick)
        parts += [line(LEFT, y, RIGHT, y, kind="faint"), text(LEFT - 8, y + 4, f"{tick:g} ms", kind="tick", anchor="end")]
    parts.append(line(LEFT, bottom, RIGHT, bottom, kind="base"))
    return parts


def distribution(ledgers: dict[str, Ledger]) -> Markup | None:
    """Which share of the delivered packets took at most how long; the delay's axis is that of powers of ten."""
    scale = _latency_scale(ledgers, start=LEFT, end=RIGHT)
    if scale is None:
        return None
    height = 150.0
    rise = Scale(0.0, 1.0, height, 10)
    parts = [text(LEFT - 8, rise(share) + 4, f"{share:.0%}", kind="tick", anchor="end") for share in (0, 0.5, 0.9, 1)]
    parts += [line(LEFT, rise(share), RIGHT, rise(share), kind="faint") for share in (0, 0.5, 0.9, 1)]
    said = []
    for ledger, kind in _order(ledgers):
        delay = _delays_ms(ledger)[1]
        if not delay.size:
            continue
        shares = np.linspace(0, 1, _QUANTILES)
        commands = "".join(f"{'L' if n else 'M'}{number(scale(float(q)))} {number(rise(float(s)))}" for n, (q, s) in enumerate(zip(np.quantile(delay, shares), shares, strict=True)))
        parts.append(path(commands, kind=f"curve {kind}", title=ledger.name))
        said.append(f"{ledger.name}: 90 % within {np.quantile(delay, 0.9):.3f} ms, 99 % within {np.quantile(delay, 0.99):.1f} ms")
    for tick in log_ticks(scale.low, scale.high):
        parts.append(text(scale(tick), height + 16, f"{tick:g} ms", kind="tick", anchor="middle"))
    return figure(parts, height=height + 24, label="Distribution of delays. " + "; ".join(said))


def downtimes(result: RunResult) -> Markup | None:
    """The three downtimes as bars of one scale, the network's in its parts."""
    split = result.streams[0].network_split if result.streams else {}
    shown = [
        ("compute", result.downtime.compute_ms.value), ("network", result.downtime.network_ms.value), ("reported", result.downtime.reported_ms.value),
    ]  # fmt: skip
    most = max([value for _, value in shown if value is not None] + [sum(split.values())], default=0.0)
    if most <= 0:
        return None
    scale = Scale(0, most)
    parts: list[Markup] = []
    y = 6.0
    for name, value in shown:
        parts.append(text(LEFT - 8, y + 15, name, kind="label", anchor="end"))
        if value is None:
            parts.append(text(LEFT + 4, y + 15, "not measured", kind="small"))
        else:
            parts.append(rect(LEFT, y, scale(value) - LEFT, 20, kind=f"downtime {name}", title=f"{name}: {value:.1f} ms"))
            parts.append(text(LEFT + 6, y + 14, f"{value:.1f} ms", kind="inside"))
        y += 26
    if split:
        parts.append(text(LEFT - 8, y + 15, "of network", kind="label", anchor="end"))
        x = float(LEFT)
        for place, (part, length) in enumerate(split.items()):
            width = max(scale(length) - LEFT, 0.0)
            parts.append(rect(x, y, width, 20, kind=f"part part{place % 5}", title=f"{part}: {length:.1f} ms"))
            if width > 6.3 * len(part) + 60:
                parts.append(text(x + 5, y + 14, f"{part} {length:.1f} ms", kind="inside"))
            x += width
        y += 26
    label = "Downtimes: " + ", ".join(f"{name} {'not measured' if value is None else f'{value:.1f} ms'}" for name, value in shown)
    if split:
        label += "; the network's parts: " + ", ".join(f"{part} {length:.1f} ms" for part, length in split.items())
    return figure(parts, height=y + 2, label=label)


def ledger_flow(stream: StreamResult) -> Markup:
    """From what was sent to each end: bands as wide as their share, but wide enough to be seen."""
    ends = [(name, title, getattr(stream.ledger, name)) for name, title in _CLASSES]
    ends = [each for each in ends if each[2]] or [("delivered", "delivered", 0)]
    total = max(stream.sent, 1)
    room, gap = 104.0, 8.0
    heights = [max(3.0, room * count / total) for _, _, count in ends]
    full = sum(heights)
    parts = [rect(LEFT, 8, 14, full, kind="flow sent"), text(LEFT - 8, 8 + full / 2 + 4, f"sent {stream.sent}", kind="label", anchor="end")]
    left, right = LEFT + 14.0, 640.0
    from_y, to_y = 8.0, 8.0
    for (name, title, count), height in zip(ends, heights, strict=True):
        middle = (left + right) / 2
        commands = (
            f"M{number(left)} {number(from_y)}C{number(middle)} {number(from_y)} {number(middle)} {number(to_y)} {number(right)} {number(to_y)}"
            f"V{number(to_y + height)}C{number(middle)} {number(to_y + height)} {number(middle)} {number(from_y + height)} {number(left)} {number(from_y + height)}Z"
        )
        words = f"{title}: {count}"
        if name == "delivered" and stream.passed:
            words += f", {stream.passed} of them carried over by the mechanism"
        parts += [path(commands, kind=f"flow {name}", title=words), rect(right, to_y, 10, height, kind=f"flow-end {name}"), text(right + 16, to_y + height / 2 + 4, words, kind="label")]
        from_y += height
        to_y += max(height, 14.0) + gap
    label = f"Ledger of {stream.name}: sent {stream.sent}, " + ", ".join(f"{title} {count}" for _, title, count in ends)
    return figure(parts, height=max(from_y, to_y) + 4, label=label)


def multiple(title: str, arms: Sequence[ArmSummary], metric: str) -> Markup | None:
    """One figure of all arms: every run a dot, the median a bar, its interval a band."""
    known = [(arm, arm.metrics[metric]) for arm in arms if metric in arm.metrics]
    values = [value for _, found in known for value in found.values if value is not None]
    if not values:
        return None
    low, high = min([0.0, *values]), max(values) * 1.02 or 1.0
    scale = Scale(low, high, _SMALL_LEFT, _SMALL_WIDTH - 12)
    right = scale.end
    parts: list[Markup] = []
    y = 8.0
    said = []
    for arm, found in known:
        middle = found.median
        parts += [text(_SMALL_LEFT - 8, y + 15, _short(arm.label), kind="label", anchor="end"), line(_SMALL_LEFT, y + 24, right, y + 24, kind="faint")]
        if middle.low is not None and middle.high is not None:
            x = scale(middle.low)
            parts.append(rect(x, y + 3, max(scale(middle.high) - x, 1), 16, kind="interval", title=f"95 % interval {middle.low:.1f} to {middle.high:.1f}"))
        dots = "".join(f"M{number(scale(value))} {y + 11:.0f}h.01" for value in found.values if value is not None)
        parts.append(path(dots, kind="dots", title=f"{arm.label}: {len(values)} runs"))
        parts.append(line(scale(middle.median), y + 1, scale(middle.median), y + 21, kind="median", title=f"median {middle.median:g}"))
        said.append(f"{arm.label}: median {middle.median:.1f}, {found.lowest:.1f} to {found.highest:.1f}")
        y += 24
    parts += [text(scale(t), y + 14, f"{t:g}", kind="tick", anchor="middle") for t in ticks(low, high, count=4)]
    return figure(parts, height=y + 20, width=_SMALL_WIDTH, label=f"{title}. " + "; ".join(said))


def _short(label: str) -> str:
    """The end of a label that is too long: there stands what tells arms apart."""
    return label if len(label) <= 26 else f"…{label[-25:]}"
