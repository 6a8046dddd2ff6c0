"""The command line: options, exit codes, and what goes where. The work is done in the packages below."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from harness import __version__
from harness.cache import cache_dir
from harness.cli import bisecting, history, reference, suite
from harness.cli.bundle_app import register as register_bundles
from harness.cli.matrix import register as register_matrix
from harness.cli.nesting import HostKernel, run_inside, the_only
from harness.cli.progress import reporting
from harness.cli.report_app import register as register_report
from harness.cli.waiting import run_to_end as _run
from harness.errors import SwitchoverError, UsageError
from harness.model.result import Outcome, RunResult, Verdict

__all__ = ["app", "main"]

# BadParameter -> UsageError -> ClickException, in typer's own copy of click or in click itself, by typer's version.
_BadUsage: Any = typer.BadParameter.__mro__[2]

EXIT_FAILED, EXIT_BROKE, EXIT_LACK, EXIT_USAGE, EXIT_INCONCLUSIVE = 1, 2, 3, 4, 5

app = typer.Typer(
    name="switchover", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="What a live migration does to the network, packet by packet.",
)
image_app = typer.Typer(no_args_is_help=True, help="The guest image.")
qemu_app = typer.Typer(no_args_is_help=True, help="QEMU versions and builds side by side.")
register_bundles(app)
register_report(app)
app.add_typer(image_app, name="image")
app.add_typer(qemu_app, name="qemu")
history.register(app)
bisecting.register(app)
register_matrix(app)
suite.register(app)
reference.register(app)

Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
Results = Annotated[Path | None, typer.Option("--results", help="Where run directories go.", envvar="SWITCHOVER_RESULTS")]
Runs = Annotated[list[Path], typer.Argument(help="Run directories, or bundles.", metavar="RUN...")]


def _results(given: Path | None) -> Path:
    return given if given is not None else Path("results")


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def _exit_code(results: list[RunResult]) -> int:
    if any(r.verdict is Verdict.FAIL for r in results):
        return EXIT_FAILED
    if any(r.outcome is Outcome.FAILED for r in results):
        return EXIT_BROKE
    if any(r.outcome is Outcome.INCONCLUSIVE or r.verdict is Verdict.INCONCLUSIVE for r in results):
        return EXIT_INCONCLUSIVE
    return 0


def _failed(failures: Sequence[str]) -> int:
    """Name runs of a campaign that could not be made; the exit code that they ask for."""
    for text in failures:
        print(f"switchover: {text}", file=sys.stderr)
    return EXIT_BROKE if failures else 0


@app.command()
def doctor(json: Json = False) -> None:
    """What this host can do, and what to mend."""
    from harness.cli.doctor import doctor as work

    raise typer.Exit(work(json=json))


@app.command()
def features(
    qemu: Annotated[str, typer.Option("--qemu", help="A name of `switchover qemu list`, or a path.")] = "system",
    json: Json = False,
) -> None:
    """What a QEMU binary can do."""
    from harness.cli.features import features as work

    raise typer.Exit(work(qemu=qemu, json=json))


@app.command()
def run(
    scenario: Annotated[list[str], typer.Argument(help="TOML files or names of shipped scenarios.", metavar="SCENARIO...")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set migration.hold_ms=200", metavar="K=V")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Run everything so often, interleaved.")] = 1,
    cold: Annotated[bool, typer.Option("--cold", help="Boot the guests instead of starting from a saved state.")] = False,
    host_kernel: HostKernel = None,
    results: Results = None,
    json: Json = False,
) -> None:
    """Run scenarios: boot a pair, migrate it under traffic, account for every packet."""
    from harness.cli.comparing import run_scenarios
    from harness.report.postcopy import postcopy_table
    from harness.report.table import campaign_table, run_table

    status: int | None = None
    with reporting(quiet=json) as progress:
        if host_kernel is not None:
            from harness.cli.comparing import scenarios_of
            from harness.store.rundir import RunDirectory

            status, folders = run_inside(
                ["run", *scenario, "--repeat", str(repeat), *(["--cold"] if cold else [])], settings=settings, host_kernel=host_kernel,
                scenarios=[] if cold else scenarios_of(scenario, settings=settings or []), results=_results(results), progress=progress,
            )  # fmt: skip
            done = [(RunDirectory.open(path).result(), path) for path in folders]
            failures: list[str] = []
        else:
            done, failures = _run(
                run_scenarios(
                    scenario, settings=settings or [], repeat=repeat, cold=cold, results=_results(results), progress=progress,
                )
            )
    found = [result for result, _ in done]
    if json:
        _print_json(found)
    else:
        print("\n\n".join(run_table(result) for result in found))
        if len(found) > 1:
            print("\n" + campaign_table(found))
        if waits := postcopy_table(found):
            print("\n" + waits)
        for _, path in done:
            print(f"{path}")
    raise typer.Exit(status if status is not None else _failed(failures) or _exit_code(found))


@app.command()
def compare(
    arms: Annotated[
        list[str],
        typer.Argument(help="Scenarios, each with settings of its own if need be; run or campaign directories with --runs.", metavar="SCENARIO[:K=V,...]..."),
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key in all arms.", metavar="K=V")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Rounds: each arm runs once in each.")] = 10,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="End before --repeat rounds when the answer is clear; raises no more false alarms.")
    ] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Boot the guests instead of starting from a saved state.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Run nothing: compare finished runs, by their directories.")] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Show these readings instead of the main ones: figures.virtio_net_load_us, figures.*", metavar="NAME"),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Begin with a null run, known outages and drops on purpose: what differences may be claimed.")
    ] = True,
    host_kernel: HostKernel = None,
    results: Results = None,
    json: Json = False,
) -> None:
    """Run scenarios by turns (ABAB) and compare each with the first: medians, intervals, counts."""
    from harness.cli.comparing import compare_arms, report, scenarios_of, sound
    from harness.report.calibration import calibration_line
    from harness.report.comparison import comparison_table
    from harness.store.campaigns import CampaignDirectory, campaign_of

    directory: Path | None = None
    if runs:
        for option, given in (("--set", settings), ("--host-kernel", host_kernel)):
            if given:
                raise UsageError(f"{option} changes what is run, and --runs runs nothing", hint="leave one out")
        campaign = campaign_of([Path(arm) for arm in arms])
    elif host_kernel is not None:
        words = ["compare", *arms, "--repeat", str(repeat), *(["--stop-early"] if stop_early else []), *(["--cold"] if cold else [])]
        with reporting(quiet=json) as progress:
            _, folders = run_inside(
                [*words, "--calibrate" if calibrate else "--no-calibrate"], settings=settings, host_kernel=host_kernel,
                scenarios=[] if cold else scenarios_of(arms, settings=settings or []), results=_results(results), progress=progress,
            )  # fmt: skip
        directory = the_only(folders, "campaign.json")
        campaign = CampaignDirectory.open(directory).load()
    else:
        with reporting(quiet=json) as progress:
            campaign, directory = _run(
                compare_arms(
                    arms, settings=settings or [], repeat=repeat, cold=cold, results=_results(results), progress=progress,
                    stop_early=stop_early, calibrate=calibrate,
                )
            )
    found = report(campaign, directory=directory)
    if json:
        _print_json(found)
    else:
        if found.calibration is not None:
            print(calibration_line(found.calibration) + "\n")
        print(comparison_table(found.comparison, metrics=metric or []))
        if directory is not None:
            print(f"\n{directory}")
    if not campaign.runs or found.failures:
        raise typer.Exit(EXIT_BROKE)
    raise typer.Exit(0 if sound(campaign) else EXIT_INCONCLUSIVE)


@app.command()
def calibrate(
    scenario: Annotated[str, typer.Argument(help="In whose conditions; settings as for compare.", metavar="[SCENARIO[:K=V,...]]")] = "null",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a key.", metavar="K=V")] = None,
    outages: Annotated[int, typer.Option("--outages", min=0, help="Injected outages: 5, 20, 100, 500 ms in turn.")] = 4,
    drops: Annotated[int, typer.Option("--drops", min=0, help="Runs with drops on purpose: 1, 7, 100 packets in turn.")] = 3,
    cold: Annotated[bool, typer.Option("--cold", help="Boot the guests instead of starting from a saved state.")] = False,
    results: Results = None,
    json: Json = False,
) -> None:
    """What the figures are worth here: null run, known outages, packets dropped on purpose."""
    from harness.cli.comparing import calibrate_scenario
    from harness.report.calibration import calibration_table

    with reporting(quiet=json) as progress:
        found, directory = _run(
            calibrate_scenario(
                scenario, settings=settings or [], outages=outages, drops=drops, cold=cold, results=_results(results), progress=progress
            )
        )
    if json:
        _print_json(found)
    else:
        print(f"{calibration_table(found)}\n\n{directory}")
    raise typer.Exit(0 if found.sound else EXIT_INCONCLUSIVE)


@app.command(hidden=True)
def demo(results: Results = None) -> None:
    """none and tap-handover, interleaved: what `make demo` shows."""
    from harness.cli.comparing import run_scenarios
    from harness.report.table import campaign_table

    with reporting() as progress:
        done, failures = _run(
            run_scenarios(
                ["udp-none", "udp-tap-handover"], settings=[], repeat=3, cold=False, results=_results(results), progress=progress
            )
        )
    print(campaign_table([result for result, _ in done]))
    print(f"\nRun directories: {_results(results)}/")
    # The control is expected to lose packets; only the mechanism's verdict counts here.
    raise typer.Exit(_failed(failures) or _exit_code([r for r, _ in done if r.mechanism != "none"]))


@app.command()
def analyze(runs: Runs, json: Json = False) -> None:
    """Repeat the analysis from run directories alone, and write result.json anew (bundles stay as they are)."""
    from harness.bundle import open_run
    from harness.report.table import run_table
    from harness.store.analyze import analyze as work

    found = []
    for path in runs:
        with open_run(path) as directory:
            result = work(directory)
            directory.write_json("result.json", result)
            found.append(result)
    if json:
        _print_json(found)
    else:
        print("\n\n".join(run_table(result) for result in found))
    raise typer.Exit(_exit_code(found))


@app.command()
def why(
    run: Annotated[Path, typer.Argument(help="A run directory, or a bundle.")],
    stream: Annotated[str, typer.Argument(help="Name of a stream.")],
    seq: Annotated[int, typer.Argument(help="Sequence number of a packet.", min=0)],
) -> None:
    """One packet's story."""
    from harness.bundle import open_run
    from harness.report.story import story_text
    from harness.store.analyze import analyze_run

    with open_run(run) as directory:
        analysis = analyze_run(directory)
        if stream not in analysis.ledgers:
            raise UsageError(f"{run} has no stream {stream!r}", hint=f"it has: {', '.join(analysis.ledgers)}")
        result = analysis.result
        start_ns = result.phases[0].start_ns if result.phases else 0
        story = story_text(analysis.ledgers[stream].explain(seq), start_ns=start_ns, phases=result.phases, marks=result.marks)
    print(story)


@app.command()
def estimate(
    file: Annotated[Path, typer.Argument(help="What `ping -D -O` printed.")],
    interval_s: Annotated[float, typer.Option("--interval-s", help="The interval that ping was given (-i), in seconds.")],
    json: Json = False,
) -> None:
    """What each published estimator makes of a ping log."""
    from harness.analysis.estimators import estimate as work
    from harness.analysis.estimators import interval_from_s, read_ping_log
    from harness.report.estimates import estimates_table

    interval_ns = interval_from_s(interval_s)
    found = work(read_ping_log(file, interval_ns=interval_ns), interval_ns=interval_ns)
    if json:
        _print_json(found)
    else:
        print(estimates_table(found))


@app.command()
def schema() -> None:
    """The JSON Schemas of scenario and result."""
    from harness.model.schema import schemas

    print(jsonlib.dumps(schemas(), indent=2))


@image_app.command("build")
def image_build(
    kernel: Annotated[Path | None, typer.Option("--kernel", help="Your own bzImage.")] = None,
    modules: Annotated[Path | None, typer.Option("--modules", help="Its lib/modules/RELEASE folder.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer packages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing when the image is there.")] = False,
) -> None:
    """Build the guest image, or find it in the cache."""
    from harness.vm.image import build_image

    with reporting() as progress:
        image = _run(build_image(cache=cache_dir(), kernel=kernel, modules=modules, refresh=refresh, progress=progress))
    if not quiet:
        print(f"{image.directory} (kernel {image.kernel_release})")


@qemu_app.command("list")
def qemu_list(json: Json = False) -> None:
    """QEMUs that can be used."""
    from harness.builds import list_qemus
    from harness.cli.qemu import qemu_table

    found = list_qemus(cache_dir())
    if json:
        _print_json(found)
    else:
        print(qemu_table(found))


@qemu_app.command("fetch")
def qemu_fetch(version: Annotated[str, typer.Argument(help="7.2, 10.0 or 11.1")]) -> None:
    """Unpack Debian's QEMU of another release with its libraries; the host is not touched."""
    from harness.builds import fetch

    with reporting() as progress:
        qemu = fetch(version, cache=cache_dir(), progress=progress)
    print(f"{qemu.name}: QEMU {qemu.version} ({qemu.path})")


@qemu_app.command("build")
def qemu_build(
    name: Annotated[str, typer.Argument(help='A name of your choice; "reference" is our own series on Debian\'s source.')],
    source: Annotated[str, typer.Option("--source", help="debian, a git URL, a tarball or a folder.")] = "debian",
    series: Annotated[
        list[str] | None, typer.Option("--series", help="Patch files, folders, mailboxes or message ids, in order.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="An option for QEMU's configure.")] = None,
    minimal: Annotated[
        bool, typer.Option("--minimal/--no-minimal", help="--no-minimal: the given options are the whole configuration.")
    ] = True,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1)] = None,
) -> None:
    """Build a QEMU from source with patch series."""
    from harness.builds import build

    with reporting() as progress:
        qemu = build(
            name, source=source, series=series or [], options=option or [], minimal=minimal, cache=cache_dir(),
            progress=progress, jobs=jobs,
        )
    print(f"{qemu.name}: QEMU {qemu.version} ({qemu.path})")


def _version(show: bool) -> None:
    if show:
        print(f"switchover {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What a live migration does to the network, packet by packet."""


def main() -> None:
    """Entry point: turns errors into one clear message and the exit code that belongs to it."""
    debug = bool(os.environ.get("SWITCHOVER_DEBUG"))
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SwitchoverError as error:
        if debug:
            traceback.print_exc()
        print(f"switchover: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except _BadUsage as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        print("switchover: interrupted; the lab is gone", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if debug:
            traceback.print_exc()
        print(f"switchover: {error}", file=sys.stderr)
        sys.exit(EXIT_BROKE)
