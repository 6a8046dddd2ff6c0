"""`switchover replay`: show what a bug report would run here, ask, run it, and say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import typer
from tabulate import tabulate

from harness.bundle import OpenedBundle, open_bundle
from harness.bundle.finding import Observation
from harness.bundle.rule import Conclusion
from harness.cache import cache_dir
from harness.cli.bundle import bundle, size_of
from harness.errors import UsageError
from harness.model.load import dump_scenario
from harness.model.result import Figure, RunResult
from harness.replay import Replay, ReplayPlan, Shrunk, execute, plan_replay, provide, shrink
from harness.replay.execute import one_run
from harness.replay.here import look_here, with_here
from harness.run import RunOptions
from harness.store.rundir import RunDirectory

__all__ = ["EXITS", "minimise", "plan_text", "replay", "replay_text"]

Progress = Callable[[str], None]
EXITS = {Conclusion.REPRODUCED: 0, Conclusion.NOT_REPRODUCED: 1, Conclusion.CANNOT_TELL: 5}


def plan_text(bundle: OpenedBundle, plan: ReplayPlan) -> str:
    """What would run, and what differs from what the sender ran."""
    manifest = bundle.manifest
    lines = [f"{bundle.label}: run {manifest.run_id}, switchover {manifest.switchover}", "", "Finding:"]
    lines += [f"  {line}" for line in bundle.finding.lines()]
    lines += [f"  seen in {manifest.seen_times} of {manifest.seen_runs} runs", "", "Scenario:"]
    lines += [f"  {line}" for line in dump_scenario(plan.scenario).splitlines() if line]
    lines += ["", "QEMU:"]
    for name, side in plan.sides.items():
        wanted = side.wanted
        lines.append(f"  {name}: {wanted.version}, {wanted.package or wanted.origin or wanted.kind}")
        match side.step:
            case "use":
                assert side.qemu is not None
                lines.append(f"    here: {side.qemu.name} {side.qemu.version}" + ("" if side.difference else ", the same"))
            case "fetch":
                lines.append(f"    here: not there; would be fetched (switchover qemu fetch {side.fetch})")
            case "build":
                lines.append(f"    here: not there; would be built from {wanted.source} and the bundle's patches, in a sandbox without network:")
                lines += [f"      {patch.label} ({patch.sha256[:12]})" for patch in wanted.patches]
            case "lack":
                lines.append("    here: not there, and not to be had from the bundle")
    if plan.differences:
        rows = [list(row) for row in plan.differences]
        table = tabulate(rows, headers=["differs", "there", "here"], tablefmt="simple", disable_numparse=True)
        lines += ["", *(f"{line}".rstrip() for line in table.splitlines())]
    lines += [f"note: {note}" for note in plan.notes]
    once = "every one must show it" if bundle.finding.lasting else "the first that shows it ends it"
    lines += ["", f"Would run at most {plan.needed} times: {once}."]
    return "\n".join(lines)


def replay(
    path: Path, *, yes: bool, build: bool, qemu: str | None, kernel: Path | None, repeat: int | None, results: Path,
    progress: Progress, quiet: bool, run: Callable[[Any], Any],
) -> tuple[Replay, RunResult] | None:
    """Show, ask, provide, run. None when nothing was to be run."""
    cache = cache_dir()
    with open_bundle(path) as bundle:
        plan = plan_replay(bundle, qemu=qemu, kernel=kernel, cache=cache)
        plan = with_here(plan, bundle, run(look_here(plan, cache=cache)))
        print(plan_text(bundle, plan), file=sys.stderr if quiet else sys.stdout, flush=True)
        asks = sys.stdin.isatty() and not quiet
        if not yes and not (asks and typer.confirm("\nRun this?", default=False)):
            return None
        if plan.builds and not build and asks:
            build = typer.confirm("Compile the patches above? They are code of whoever made the bundle", default=False)
        scenario = provide(plan, bundle, fetch_missing=True, build=build, cache=cache, progress=progress)
        options = RunOptions(results=results, cache=cache)
        done: Replay = run(
            execute(
                scenario, bundle.finding, original=bundle.observation.result, needed=plan.needed, timing=plan.timing,
                run=one_run(options, progress=progress), repeat=repeat, progress=progress,
            )
        )  # fmt: skip
        return done, bundle.observation.result


def replay_text(done: Replay, original: RunResult) -> str:
    """The conclusion and the figures side by side."""
    columns = [original, *done.results]
    told = {True: "shows it", False: "does not", None: "tells nothing"}
    answers = [told[answer] for answer, _ in zip(_told(done), done.results, strict=True)]
    rows = [["finding", "shows it", *answers]]
    for name, read in _FIGURES.items():
        values = [read(result) for result in columns]
        if any(value not in ("-", "0") for value in values):
            rows.append([name, *values])
    headers = ["", "bundle", *(f"run {number}" for number in range(1, len(done.results) + 1))]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    lines = [f"{done.conclusion.upper()}: {done.reason}", "", *str(table).splitlines(), "", *done.runs]
    return "\n".join(line.rstrip() for line in lines)


def _told(done: Replay) -> list[bool | None]:
    """The answers of the runs that were made; those that could not be made have none."""
    answers, spare = list(done.answers), len(done.answers) - len(done.results)
    while spare > 0:
        answers.remove(None)
        spare -= 1
    return answers


def _ms(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:.1f}"


def _summed(field: str) -> Callable[[RunResult], str]:
    return lambda result: str(sum(getattr(stream, field) for stream in result.streams))


def _class(name: str) -> Callable[[RunResult], str]:
    return lambda result: str(sum(getattr(stream.ledger, name) for stream in result.streams))


_FIGURES: dict[str, Callable[[RunResult], str]] = {
    "verdict": lambda r: str(r.verdict),
    "outcome": lambda r: str(r.outcome),
    "accelerator": lambda r: r.accelerator,
    "QEMU": lambda r: r.qemu.source.version if r.qemu.source == r.qemu.destination else f"{r.qemu.source.version} -> {r.qemu.destination.version}",
    "guest kernel": lambda r: r.guest.kernel,
    "sent": _summed("sent"), "lost": _summed("lost"),
    "  stranded at source": _class("stranded_at_source"), "  dropped by host": _class("dropped_by_host"), "  lost in QEMU": _class("lost_in_qemu"),
    "  dropped by guest": _class("dropped_by_guest"), "  lost on return": _class("lost_on_return"), "  unexplained": _class("unexplained"),
    "passed": _summed("passed"), "duplicated": _summed("duplicated"), "reordered": _summed("reordered"),
    "compute downtime, ms": lambda r: _ms(r.downtime.compute_ms), "network downtime, ms": lambda r: _ms(r.downtime.network_ms),
    "reported downtime, ms": lambda r: _ms(r.downtime.reported_ms),
}  # fmt: skip


def minimise(
    path: Path, *, output: Path | None, max_size: str | None, most: int, results: Path, progress: Progress, run: Callable[[Any], Any]
) -> tuple[Shrunk, Path, int]:
    """Shrink a run's scenario and bundle the smallest run that shows the finding. Returns what came of it, the file and its size."""
    if most < 1:
        raise UsageError(f"--most {most}: at least one scenario has to be tried")
    size_of(max_size)  # a word that is no size is no reason to have run for an hour
    original = RunDirectory.open(path)
    options = RunOptions(results=results, cache=cache_dir())
    shrunk: Shrunk = run(shrink(Observation.of_run(original), run=one_run(options, progress=lambda _: None), most=most, progress=progress))
    smallest = shrunk.run if shrunk.run is not None else path
    made, target = bundle(smallest, others=shrunk.others, output=output, max_size=max_size, minimised_from=original.run_id if shrunk.run is not None else "")
    return shrunk, target, len(made.data)


def json_of(done: Replay, original: RunResult) -> dict[str, Any]:
    """For programs."""
    return {"conclusion": done.conclusion, "reason": done.reason, "answers": done.answers, "needed": done.needed,
            "original": msgspec.to_builtins(original), "results": msgspec.to_builtins(done.results), "runs": done.runs}  # fmt: skip
