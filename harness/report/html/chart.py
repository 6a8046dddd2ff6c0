"""SVG as text: scales, axes and paths. Colours are classes of the style sheet, so that a chart follows light and dark.

Every chart is an image with a text in its place (`figure`). Coordinates are rounded: a path of a thousand bars is a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

__all__ = ["LEFT", "RIGHT", "WIDTH", "Scale", "bars", "columns", "figure", "line", "log_ticks", "number", "path", "rect", "text", "ticks"]

WIDTH, LEFT, RIGHT = 1000, 128, 988
"""Of a chart in its own units, and of the part in which data stand."""


@dataclass(frozen=True)
class Scale:
    """From a value to a coordinate; `log` takes positive values only, and shows smaller ones at its beginning."""

    low: float
    high: float
    start: float = LEFT
    end: float = RIGHT
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        if high <= low:
            return self.start
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, *, count: int = 6) -> list[float]:
    """Round values within a span, at most about `count`."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within a span."""
    return [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def figure(parts: Iterable[Markup], *, height: float, label: str, width: float = WIDTH) -> Markup:
    """A chart; `label` says in words what it shows."""
    body = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(number(width), number(height), label, body)


def rect(x: float, y: float, width: float, height: float, *, kind: str, title: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>').format(
        number(x), number(y), number(max(width, 0.5)), number(height), kind, inside
    )


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str, title: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}">{}</line>').format(*map(number, (x1, y1, x2, y2)), kind, inside)


def text(x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(number(x), number(y), kind, anchor, words)


def path(commands: str, *, kind: str, transform: str = "", title: str = "") -> Markup:
    moved = Markup(' transform="{}"').format(transform) if transform else Markup("")
    inside = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<path d="{}" class="{}"{}>{}</path>').format(commands, kind, moved, inside)


def bars(counts: NDArray[np.int64], *, base: float, height: float, most: float, kind: str, up: bool = True, title: str = "") -> Markup:
    """One bar for each bin from LEFT to RIGHT, upwards or downwards from `base`; `most` is as high as `height`."""
    if not counts.any() or most <= 0:
        return Markup("")
    parts: list[str] = []
    inside = False
    edges = np.flatnonzero(np.diff(counts, prepend=counts[:1] - 1)).tolist()
    for at, after in zip(edges, [*edges[1:], counts.size], strict=True):
        count = int(counts[at])
        if count and not inside:
            parts.append(f"M{at} 0")
        if count:
            parts.append(f"V{count}H{after}")
        elif inside:
            parts.append("V0Z")
        inside = bool(count)
    if inside:
        parts.append("V0Z")
    across, along = (RIGHT - LEFT) / counts.size, height / most * (-1 if up else 1)
    return path("".join(parts), kind=kind, title=title, transform=f"translate({LEFT} {number(base)}) scale({across:.6g} {along:.6g})")


def columns(at: Sequence[tuple[float, float, float]], *, kind: str, title: str = "") -> Markup:
    """Vertical strokes: for each x the range that the data have there."""
    if not at:
        return Markup("")
    commands = "".join(f"M{number(x)} {number(top)}V{number(max(bottom, top + 0.5))}" for x, top, bottom in at)
    return path(commands, kind=kind, title=title)


