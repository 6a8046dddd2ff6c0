"""Results of many days: `switchover list`, `baseline set|check|trend`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from harness.errors import UsageError
from harness.model.result import RunResult, Verdict

if TYPE_CHECKING:
    from harness.report.html import Nights
    from harness.store.index import Entry, Index

__all__ = ["register"]

EXIT_FAILED, EXIT_LACK, EXIT_INCONCLUSIVE = 1, 3, 5

Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
Results = Annotated[Path, typer.Option("--results", help="The folder of run directories.", envvar="SWITCHOVER_RESULTS")]
Baselines = Annotated[
    Path | None, typer.Option("--baselines", help="The folder of baselines (RESULTS/baselines unless given).")
]
Runs = Annotated[list[Path], typer.Argument(help="Run or campaign directories.", metavar="RUN...")]

baseline_app = typer.Typer(no_args_is_help=True, help="Regressions against what was measured before.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("list")(list_runs)
    app.add_typer(baseline_app, name="baseline")


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def list_runs(
    scenario: Annotated[str | None, typer.Option("--scenario", help="Its name; * stands for anything.")] = None,
    mechanism: Annotated[str | None, typer.Option("--mechanism")] = None,
    qemu: Annotated[str | None, typer.Option("--qemu", help="A version such as 10.0*")] = None,
    verdict: Annotated[str | None, typer.Option("--verdict")] = None,
    outcome: Annotated[str | None, typer.Option("--outcome")] = None,
    since: Annotated[str | None, typer.Option("--since", help="ISO date or time, UTC.")] = None,
    latest: Annotated[int | None, typer.Option("--latest", min=1, help="The last N only.")] = None,
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """Finished runs, from an index that keeps itself up to date."""
    from harness.report.history import runs_table
    from harness.store.index import Index

    asked = {"scenario": scenario, "mechanism": mechanism, "qemu": qemu, "verdict": verdict, "outcome": outcome}
    with Index(_folder(results)) as index:
        index.sync()
        entries = index.entries(where={k: v for k, v in asked.items() if v is not None}, since=since, latest=latest)
        found = index.readings_of([entry.path for entry in entries])
        damaged = index.damaged()
    if json:
        plain = {path: {name: value for name, (value, _, _) in each.items()} for path, each in found.items()}
        _print_json([{**msgspec.structs.asdict(entry), "readings": plain[entry.path]} for entry in entries])
    else:
        print(runs_table(entries, found))
    for path, reason in damaged.items():
        print(f"switchover: {results / path} can't be read: {reason}", file=sys.stderr)


@baseline_app.command("set")
def baseline_set(
    runs: Runs,
    note: Annotated[str, typer.Option("--note", help="Why, for those who come later.")] = "",
    results: Results = Path("results"),
    baselines: Baselines = None,
) -> None:
    """Make runs the baseline of their key: host, accelerator, QEMU, guest kernel, scenario."""
    from harness.store.baselines import FOLDER, BaselineFolder, grouped, make_baseline

    folder = BaselineFolder(baselines or results / FOLDER)
    for key, group in grouped(_sound(_load(runs))).items():
        path = folder.save(make_baseline(group, note=note))
        print(f"{key.scenario}, {key.qemu}, {key.accelerator}: baseline of {len(group)} runs in {path}")


@baseline_app.command("check")
def baseline_check(
    runs: Runs,
    across: Annotated[
        list[str] | None,
        typer.Option("--across", help="A part of the key that may differ: host, accelerator, qemu, kernel, scenario.", metavar="PART"),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Per cent by which a time may differ.")] = 5.0,
    or_set: Annotated[bool, typer.Option("--or-set", help="Where there is no baseline, make these runs it.")] = False,
    results: Results = Path("results"),
    baselines: Baselines = None,
    json: Json = False,
) -> None:
    """Judge runs against their baseline. Exit 1: regressed; 3: no baseline; 5: inconclusive."""
    from harness.analysis.metrics import readings
    from harness.analysis.regression import BaselineCheck, against_baseline
    from harness.report.history import check_text
    from harness.store.baselines import FOLDER, BaselineFolder, grouped, make_baseline

    folder = BaselineFolder(baselines or results / FOLDER)
    found = []
    for key, group in grouped(_sound(_load(runs))).items():
        baseline, remark = folder.find(key, across=across or [])
        if baseline is None and or_set:
            remark = f"set now: {folder.save(make_baseline(group))}"
        if baseline is None:
            verdict = BaselineCheck(verdict=Verdict.NO_BASELINE, why=remark, runs=len(group))
        else:
            verdict = against_baseline(baseline, [readings(run) for run in group], tolerance=tolerance / 100)
        found.append((key, baseline, remark, group[-1].qemu, verdict))
    if json:
        _print_json(
            [
                {"key": key, "baseline": b.runs if b else None, "set_at": b.set_at if b else None, "remark": remark, "check": check}
                for key, b, remark, _, check in found
            ]
        )
    else:
        print("\n\n".join(check_text(key, baseline, remark, qemu, check) for key, baseline, remark, qemu, check in found))
    verdicts = {check.verdict for *_, check in found}
    if Verdict.REGRESSED in verdicts:
        raise typer.Exit(EXIT_FAILED)
    if Verdict.NO_BASELINE in verdicts and not or_set:
        raise typer.Exit(EXIT_LACK)
    raise typer.Exit(EXIT_INCONCLUSIVE if Verdict.INCONCLUSIVE in verdicts else 0)


@baseline_app.command("trend")
def baseline_trend(
    metric: Annotated[
        str | None, typer.Argument(help="A reading such as compute_ms, lost or figures.virtio_net_load_us (network_ms; with --html, all main ones).")
    ] = None,
    scenario: Annotated[str, typer.Option("--scenario", help="Its name; * stands for anything.")] = "*",
    since: Annotated[str | None, typer.Option("--since", help="ISO date or time, UTC.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write charts of all nights as one page.", metavar="FILE")] = None,
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """One figure over the nights, for each key by itself: medians, slope, and where it stepped."""
    from harness.analysis.metrics import MAIN
    from harness.cli.reporting import written
    from harness.report.history import trend_text
    from harness.report.html import render_trends
    from harness.store.index import Index

    with Index(_folder(results)) as index:
        index.sync()
        metrics = [metric] if metric else list(MAIN) if html else ["network_ms"]
        found = [each for name in metrics for each in _nights(index, name, scenario=scenario, since=since)]
    if metric is None and html:  # a count that always was 0 says nothing
        found = [each for each in found if each.metric in ("lost", "network_ms") or any(value for _, value in each.runs)]
    if not found:
        raise UsageError(f"no run has the reading {metrics[0]!r}", hint="`switchover list --json` shows the readings of each run")
    if html:
        written(render_trends(found, results=str(results)), html)
    if json:
        _print_json([{"key": each.key, "trend": each.trend} for each in found])
    elif html:
        print(html)
    else:
        print("\n\n".join(trend_text(each.metric, each.key, each.trend) for each in found))


def _nights(index: Index, metric: str, *, scenario: str, since: str | None) -> list[Nights]:
    """The nights of one figure, for each key by itself."""
    from harness.analysis.regression import trend
    from harness.report.html import Nights

    groups: dict[str, list[tuple[Entry, float]]] = {}
    for entry, value in index.values(metric, where={"scenario": scenario}, since=since):
        if value is not None:
            groups.setdefault(entry.key, []).append((entry, value))
    found = []
    for group in groups.values():
        first = group[0][0].path
        runs = tuple((entry.began[:10], value) for entry, value in group)
        found.append(Nights(key=index.key_of(first), metric=metric, unit=index.readings_of([first])[first][metric][2], trend=trend(runs), runs=runs))
    return found


def _folder(results: Path) -> Path:
    if not results.is_dir():
        raise UsageError(f"{results} is no folder", hint="give the folder of run directories with --results")
    return results


def _load(paths: list[Path]) -> list[RunResult]:
    from harness.store.campaigns import campaign_of, run_folders

    return list(campaign_of(run_folders(paths)).runs)


def _sound(found: list[RunResult]) -> list[RunResult]:
    """Runs whose account closed; `UsageError` if none is left. What shared its host with another run is left out too."""
    from harness.model.result import Outcome

    sound = [run for run in found if run.outcome not in (Outcome.INCONCLUSIVE, Outcome.FAILED)]
    alone = [run for run in sound if not any("another run was under way" in note for note in run.notes)]
    if not alone:
        raise UsageError("none of these runs is sound: they failed, are inconclusive, or shared the host with another run")
    if len(alone) < len(found):
        print(f"switchover: {len(found) - len(alone)} of {len(found)} runs are left out: failed, inconclusive, or not alone", file=sys.stderr)
    return alone
