"""The page: what is known of runs and campaigns, put into the templates."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.analysis.columns import read_capture
from harness.analysis.comparison import Comparison, compare_campaign
from harness.analysis.evidence import Fate
from harness.analysis.metrics import MAIN, Unit
from harness.model.campaign import Campaign
from harness.model.result import RunResult, Verdict
from harness.report.html import figures
from harness.report.html.timeline import bin_ns_of, span_of, timeline
from harness.store.analyze import Analysis, analyze_run
from harness.store.rundir import RunDirectory

__all__ = ["TITLES", "Source", "render", "templates"]

TITLES = {
    "lost": "Lost packets", "duplicated": "Duplicated packets", "reordered": "Reordered packets", "unexplained": "Unexplained packets",
    "compute_ms": "Compute downtime, ms", "network_ms": "Network downtime, ms", "reported_ms": "Reported downtime, ms", "tcp_stall_ms": "Longest TCP stall, ms",
}  # fmt: skip
_MARKS = {
    Verdict.PASS: "✔", Verdict.FAIL: "✘", Verdict.IMPROVED: "▲", Verdict.REGRESSED: "▼", Verdict.UNCHANGED: "＝", Verdict.INCONCLUSIVE: "?",
    Verdict.NO_BASELINE: "–",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A run to show. `path` is what the reader has: its folder, or the bundle that `run` was unpacked from."""

    run: RunDirectory
    path: Path
    bundled: bool = False


@dataclass(frozen=True)
class _Chart:
    """A figure: what it shows, from which files, and by which command it is made again."""

    title: str
    svg: Markup
    caption: str
    files: tuple[tuple[str, str | None], ...] = ()
    command: str = ""


@dataclass(frozen=True)
class _Run:
    result: RunResult
    mark: str
    summary: str
    charts: tuple[_Chart, ...]
    files: tuple[tuple[str, str | None], ...]
    again: str
    analyze: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class _CampaignView:
    comparison: Comparison
    charts: tuple[_Chart, ...]
    order: tuple[tuple[str, str], ...]


def render(sources: Sequence[Source], *, output: Path, campaign: Campaign | None = None, title: str = "") -> str:
    """The page of some runs, as it is to be written to `output` (links to raw files are relative to it).

    A `campaign` is compared arm by arm above its runs. Bundled runs have no files to link to. Raises `UsageError` for a run whose files are damaged.
    """
    environment, style, script = templates()
    here = output.resolve().parent
    runs = [_run(source, here) for source in sources]
    return environment.get_template("report.html").render(
        title=title or (runs[0].result.scenario.name if len(runs) == 1 else f"{len(runs)} runs"),
        runs=runs, campaign=None if campaign is None else _campaign(campaign), verdicts=_verdicts(runs),
        style=style, script=script, mark=lambda verdict: _MARKS.get(verdict, ""), ms=_ms, value=_value, change_titles=TITLES,
    )  # fmt: skip


def templates() -> tuple[Environment, Markup, Markup]:
    """The templates' environment, the style sheet and the script of every page."""
    loader = PackageLoader("harness.report.html", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js"))
    return environment, style, script


def _verdicts(runs: Sequence[_Run]) -> list[tuple[Verdict, int]]:
    found: dict[Verdict, int] = {}
    for run in runs:
        found[run.result.verdict] = found.get(run.result.verdict, 0) + 1
    return sorted(found.items(), key=lambda item: list(Verdict).index(item[0]))


def _ms(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _value(value: float | None, unit: Unit) -> str:
    return "–" if value is None else f"{value:.{1 if unit is Unit.MS else 0}f}"


def _run(source: Source, here: Path) -> _Run:
    analysis = analyze_run(source.run)
    result = analysis.result
    words = shlex.quote(str(source.path))
    again = f"switchover replay {words}" if source.bundled else f"switchover run {shlex.quote(str(source.path / 'scenario.toml'))}"
    return _Run(
        result=result, mark=_MARKS.get(result.verdict, ""), summary=_summary(result), charts=_charts(source, analysis, here),
        files=tuple(_file(source, name, here) for name in _raw(source)), again=again, analyze=f"switchover analyze {words}",
        why=_why(analysis, words),
    )  # fmt: skip


def _summary(result: RunResult) -> str:
    sent, lost = sum(s.sent for s in result.streams), result.lost
    said = f"{lost} of {sent} packets lost" if result.streams else "no probes were sent"
    for name in ("duplicated", "reordered"):
        if count := sum(getattr(stream, name) for stream in result.streams):
            said += f", {count} {name}"
    if unexplained := sum(stream.ledger.unexplained for stream in result.streams):
        said += f", {unexplained} unexplained"
    if broken := sum(not entry.survived for entry in result.tcp):
        said += f", {broken} of {len(result.tcp)} TCP connections died"
    downtime = result.downtime
    if downtime.compute_ms.value is not None:
        said += f"; the machine stood still for {downtime.compute_ms.value:.1f} ms"
        if downtime.network_ms.value is not None:
            said += f", the network for {downtime.network_ms.value:.1f} ms"
    return said + "."


def _charts(source: Source, analysis: Analysis, here: Path) -> tuple[_Chart, ...]:
    run, result, ledgers = source.run, analysis.result, analysis.ledgers
    facts = run.facts()
    if not result.phases:
        return ()
    captures = {name: read_capture(run.path / point.file) for name, point in facts.captures.items()}
    span = span_of(result)
    again = f"switchover analyze {shlex.quote(str(source.path))}"
    files = tuple(_file(source, point.file, here) for point in facts.captures.values())
    records = tuple(_file(source, name, here) for name in _raw(source) if name.startswith("traffic/"))
    found = [
        _Chart(
            title="Timeline", svg=timeline(result, span, captures=captures, ledgers=ledgers, events=run.events()),
            caption=f"Frames per {bin_ns_of(span) // 1_000_000} ms at each place: upwards those to the guest, downwards those from it. "
            "Bars higher than nearly all are cut off. Lost packets stand where they were sent, the others where they arrived." + (" A TCP row shows when nothing was acknowledged for 40 ms or more." if result.tcp else ""),
            files=(*files, _file(source, "events.jsonl", here)), command=again,
        )
    ]  # fmt: skip
    if (svg := figures.downtimes(result)) is not None:
        split = result.streams[0].network_split if result.streams else {}
        parts = f" Its parts and one sending interval, ms: {', '.join(f'{name} {length:.1f}' for name, length in split.items())}." if split else ""
        found.append(_Chart(title="Downtimes", svg=svg, caption=f"Three downtimes on one scale; the network's is that of the first stream.{parts}", files=(_file(source, "result.json", here), _file(source, "events.jsonl", here)), command=again))
    for stream in result.streams:
        lost = np.flatnonzero(ledgers[stream.name].fate != Fate.DELIVERED)
        command = f"switchover why {shlex.quote(str(source.path))} {stream.name} {int(ledgers[stream.name].seq[lost[0]])}" if lost.size else again
        found.append(_Chart(title=f"Ledger of {stream.name}", svg=figures.ledger_flow(stream), caption="", files=records, command=command))
    if (svg := figures.latency(result, span, ledgers)) is not None:
        found.append(_Chart(title="Latency over time", svg=svg, caption="Powers of ten; for each place the range of the packets sent there.", files=files, command=again))
    if (svg := figures.distribution(ledgers)) is not None:
        found.append(_Chart(title="Latency distribution", svg=svg, caption="Which share of the delivered packets took at most how long.", files=files, command=again))
    return tuple(found)


def _why(analysis: Analysis, words: str) -> tuple[str, ...]:
    """The command that tells the story of the first lost packet of each stream."""
    found = []
    for name, ledger in analysis.ledgers.items():
        lost = np.flatnonzero(ledger.fate != Fate.DELIVERED)
        if lost.size:
            found.append(f"switchover why {words} {name} {int(ledger.seq[lost[0]])}")
    return tuple(found)


def _raw(source: Source) -> list[str]:
    return sorted(path.relative_to(source.run.path).as_posix() for path in source.run.path.rglob("*") if path.is_file() and not path.name.startswith("."))


def _file(source: Source, name: str, here: Path) -> tuple[str, str | None]:
    """A raw file by name, and where it is from the page's point of view."""
    if source.bundled:
        return name, None
    return name, quote(os.path.relpath(source.path.resolve() / name, here))


def _campaign(campaign: Campaign) -> _CampaignView:
    comparison = compare_campaign(campaign)
    charts = []
    for metric in MAIN:
        if metric == "unexplained" and not any(m.highest for arm in comparison.arms if (m := arm.metrics.get(metric))):
            continue
        if (svg := figures.multiple(TITLES[metric], comparison.arms, metric)) is not None:
            charts.append(_Chart(title=TITLES[metric], svg=svg, caption="Each run a dot, the median a bar, its 95 % interval a band."))
    order = [(arm.label, trial.result.run_id) for arm in campaign.arms for trial in arm.trials if trial.result is not None]
    return _CampaignView(comparison=comparison, charts=tuple(charts), order=tuple(order))
