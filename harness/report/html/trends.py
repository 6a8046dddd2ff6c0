"""Figures over the nights as a page: each key by itself, so that nothing incomparable stands in one chart."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import msgspec
from markupsafe import Markup

from harness.analysis.metrics import Unit
from harness.analysis.regression import Trend
from harness.analysis.significance import ALPHA, holm
from harness.model.baseline import RunKey
from harness.report.html.chart import LEFT, RIGHT, Scale, figure, line, number, path, rect, text, ticks
from harness.report.html.page import TITLES, templates

__all__ = ["Nights", "render_trends"]

_HEIGHT, _TOP = 150.0, 12.0
_MOST_DAYS = 9
"""So many dates stand below a chart."""


class Nights(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one key: its trend, and the day and value of each run."""

    key: RunKey
    metric: str
    unit: Unit
    trend: Trend
    runs: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: Markup
    caption: str
    files: tuple[()]
    command: str


@dataclass(frozen=True)
class _Key:
    name: str
    key: RunKey
    charts: tuple[_Chart, ...]
    rows: tuple[tuple[Nights, str], ...]


def render_trends(found: Sequence[Nights], *, results: str) -> str:
    """The page. Whether a figure stepped is judged over all figures of the page together (Holm), as so many of them are looked at."""
    known = [each for each in found if each.trend.step_p is not None]
    adjusted = dict(zip(((e.key, e.metric) for e in known), holm([e.trend.step_p or 0.0 for e in known]), strict=True))
    stepped = {place for place, p in adjusted.items() if p <= ALPHA}
    keys: dict[str, list[Nights]] = {}
    for each in found:
        keys.setdefault(each.key.digest(), []).append(each)
    views = tuple(_view(number, group, stepped, results) for number, group in enumerate(keys.values()))
    steps = [(f"key{number}", each) for number, group in enumerate(keys.values()) for each in group if (each.key, each.metric) in stepped]
    days = sorted({night.day for each in found for night in each.trend.nights})
    environment, style, script = templates()
    return environment.get_template("trends.html").render(
        title="Trends", views=views, steps=steps, judged=len(known), days=days, titles=TITLES, said=_said_step, style=style, script=script
    )


def _view(number: int, group: Sequence[Nights], stepped: set[tuple[RunKey, str]], results: str) -> _Key:
    charts, rows = [], []
    for each in group:
        clear = (each.key, each.metric) in stepped
        command = f"switchover baseline trend {each.metric} --scenario {shlex.quote(_plain(each.key))} --results {shlex.quote(results)}"
        caption = "Each run a dot; the line joins the nights' medians, the band is their 95 % interval."
        caption += "" if _axis(each)[0] == 0 else " The axis does not begin at 0."
        charts.append(_Chart(title=_title(each), svg=_chart(each, clear=clear), caption=caption, files=(), command=command))
        rows.append((each, _said(each, clear=clear)))
    return _Key(name=f"key{number}", key=group[0].key, charts=tuple(charts), rows=tuple(rows))


def _plain(key: RunKey) -> str:
    """The scenario's name, without the digest of its settings."""
    return key.scenario.rpartition("-")[0]


def _title(each: Nights) -> str:
    return TITLES.get(each.metric, f"{each.metric}, {each.unit}")


def _said_step(each: Nights) -> str:
    return f"{_title(each)}: {each.trend.step:+.3g} on {each.trend.step_day}"


def _said(each: Nights, *, clear: bool) -> str:
    if each.trend.slope is None:
        return f"{len(each.trend.nights)} nights are too few for a trend"
    step = f"stepped by {each.trend.step:+.3g} on {each.trend.step_day}" if clear else "no clear step"
    return f"{step}; slope {each.trend.slope:+.3g} a night"


def _chart(each: Nights, *, clear: bool) -> Markup:
    """The days in their true distances."""
    nights = each.trend.nights
    at = {night.day: float(date.fromisoformat(night.day).toordinal()) for night in nights}
    across = Scale(min(at.values()) - 0.5, max(at.values()) + 0.5)
    values = [value for _, value in each.runs]
    low, high = _axis(each)
    rise = Scale(low, high, _HEIGHT, _TOP)
    parts = [line(LEFT, rise(tick), RIGHT, rise(tick), kind="faint") for tick in ticks(low, high, count=4)]
    parts += [text(LEFT - 8, rise(tick) + 4, f"{tick:g}", kind="tick", anchor="end") for tick in ticks(low, high, count=4)]
    half = min(8.0, (across.end - across.start) / (across.high - across.low) / 3)
    for night in nights:
        x, middle = across(at[night.day]), night.value
        if middle.low is not None and middle.high is not None:
            y = rise(middle.high)
            words = f"{night.day}: 95 % interval {middle.low:g} to {middle.high:g}"
            parts.append(rect(x - half, y, 2 * half, max(rise(middle.low) - y, 1.0), kind="interval", title=words))
    parts.append(path("".join(f"M{number(across(at[day]))} {number(rise(value))}h.01" for day, value in each.runs), kind="dots", title=f"{len(values)} runs"))
    parts.append(path("".join(f"{'L' if n else 'M'}{number(across(at[e.day]))} {number(rise(e.value.median))}" for n, e in enumerate(nights)), kind="curve to-guest"))
    if clear and each.trend.step_day is not None:
        x = across(at[each.trend.step_day]) - half - 2
        parts += [line(x, _TOP, x, _HEIGHT, kind="mark lost", title=_said_step(each)), text(x + 4, _HEIGHT - 6, f"{each.trend.step:+.3g}", kind="small")]
    shown = nights[:: -(-len(nights) // _MOST_DAYS)]
    parts += [text(across(at[night.day]), _HEIGHT + 16, night.day, kind="tick", anchor="middle") for night in shown]
    label = f"{_title(each)}, {each.key.scenario}: {len(nights)} nights, medians {_range(each.trend)}; {_said(each, clear=clear)}"
    return figure(parts, height=_HEIGHT + 24, label=label)


def _axis(each: Nights) -> tuple[float, float]:
    """From 0 only where the values come near it: a step of some per cent must be seen."""
    values = [value for _, value in each.runs]
    low, high = min(values), max(values)
    if low <= high / 2:
        return min(low, 0.0), high * 1.02 or 1.0
    margin = max((high - low) * 0.15, abs(high) * 0.01)
    return low - margin, high + margin


def _range(trend: Trend) -> str:
    medians = [night.value.median for night in trend.nights]
    return f"{min(medians):g} to {max(medians):g}"
