"""A calibration from the results of its runs: null runs, injected outages, drops on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.calibration import Calibration, DropTrial, NullRun, OutageTrial, calibrate
from harness.model.calibration import CalibrationResult, DropCheck, NullCheck, OutageCheck
from harness.model.result import Outcome, RunResult, StreamResult
from harness.model.scenario import MigrationMode
from harness.model.streams import UdpStream, plan_streams
from harness.model.units import NS_PER_MS, ms

__all__ = ["calibration_of"]


def calibration_of(runs: Sequence[RunResult]) -> CalibrationResult:
    """Tell the runs by their scenarios, and put them together. Raises `ValueError` without a null run that has a stream.

    Runs whose ledger is not whole (a capture that dropped, an unexplained packet) are problems, not trials.
    """
    problems = [f"{run.run_id} is {run.outcome}: {'; '.join(run.notes)}" for run in runs if run.outcome is not Outcome.COMPLETED]
    good = [run for run in runs if run.outcome is Outcome.COMPLETED and run.streams]
    nulls, outages, drops = [], [], []
    for run in good:
        if run.scenario.inject.drop_packets:
            drops.append(run)
        elif run.scenario.migration.mode is MigrationMode.STOP_CONT:
            outages.append(run)
        elif run.scenario.migration.mode is MigrationMode.NONE:
            nulls.append(run)
    if not nulls:
        raise ValueError("a calibration needs a null run: " + ("; ".join(problems) or "there is none"))
    streams = plan_streams(nulls[0].scenario.traffic)
    checks = [_outage_check(run) for run in outages]
    counted = [_drop_check(run) for run in drops]
    null_runs = [_null_run(stream, _interval(streams, stream)) for run in nulls for stream in run.streams]
    found = calibrate(
        null_runs=null_runs, outages=_trials(checks, streams[0].name),
        drops=[DropTrial(truth=each.injected, counted=each.dropped_by_host) for each in counted],
    )  # fmt: skip
    problems += _null_problems(nulls) + _problems(checks, counted)
    return CalibrationResult(
        scenario=nulls[0].scenario.name, accelerator=nulls[0].accelerator, interval_ms=ms(streams[0].interval_ns),
        null=tuple(_null_check(run, stream) for run in nulls for stream in run.streams), outages=tuple(checks),
        drops=tuple(counted), network_bias_ms=_ms(found.bias_ns), network_worst_ms=_ms(found.worst_ns),
        network_resolution_ms=ms(max(found.worst_ns or 0, streams[0].interval_ns)),
        stream_resolution_ms={
            stream.name: ms(max(_alone(null_runs, checks, stream.name).worst_ns or 0, stream.interval_ns)) for stream in streams
        },
        estimators_worst_ms=_estimators(checks), late_ms=_ms(found.late_ns), tolerance_ms=ms(found.tolerance_ns),
        sound=found.sound and not problems, problems=tuple(problems),
    )  # fmt: skip


def _ms(value_ns: int | None) -> float | None:
    return None if value_ns is None else ms(value_ns)


def _ns(value_ms: float | None) -> int | None:
    return None if value_ms is None else round(value_ms * NS_PER_MS)


def _interval(streams: Sequence[UdpStream], result: StreamResult) -> int:
    return next(stream.interval_ns for stream in streams if stream.name == result.name)


def _null_run(stream: StreamResult, interval_ns: int) -> NullRun:
    return NullRun(
        stream=stream.name, interval_ns=interval_ns, lost=stream.lost, duplicated=stream.duplicated, reordered=stream.reordered,
        unexplained=stream.ledger.unexplained, max_delay_ns=_ns(stream.latency_ms.max if stream.latency_ms else None),
        longest_gap_ns=_ns(stream.longest_gap_ms), problems=(),
    )  # fmt: skip


def _null_check(run: RunResult, stream: StreamResult) -> NullCheck:
    return NullCheck(
        run=run.run_id, stream=stream.name, lost=stream.lost, duplicated=stream.duplicated, reordered=stream.reordered,
        unexplained=stream.ledger.unexplained, max_delay_ms=stream.latency_ms.max if stream.latency_ms else None,
        longest_gap_ms=stream.longest_gap_ms,
    )  # fmt: skip


def _outage_check(run: RunResult) -> OutageCheck:
    steps = run.clock.steps if run.clock is not None else ()
    return OutageCheck(
        run=run.run_id, injected_ms=run.scenario.migration.outage_ms, truth_ms=run.downtime.compute_ms.value or 0.0,
        measured_ms={stream.name: stream.network_downtime_ms for stream in run.streams}, lost=run.lost,
        clock_step_ms=steps[0].step_ms if steps else None, estimates=run.streams[0].estimates,
    )  # fmt: skip


def _drop_check(run: RunResult) -> DropCheck:
    return DropCheck(
        run=run.run_id, injected=run.scenario.inject.drop_packets, lost=run.lost,
        dropped_by_host=sum(stream.ledger.dropped_by_host for stream in run.streams),
        unexplained=sum(stream.ledger.unexplained for stream in run.streams),
    )  # fmt: skip


def _trials(checks: Sequence[OutageCheck], stream: str) -> list[OutageTrial]:
    return [
        OutageTrial(truth_ns=_ns(check.truth_ms) or 0, measured_ns=_ns(check.measured_ms.get(stream))) for check in checks
    ]


def _alone(null_runs: Sequence[NullRun], checks: Sequence[OutageCheck], stream: str) -> Calibration:
    return calibrate(null_runs=[run for run in null_runs if run.stream == stream], outages=_trials(checks, stream))


def _estimators(checks: Sequence[OutageCheck]) -> dict[str, float | None]:
    """The worst error of each published formula on the same packets; None where it once had no value."""
    worst: dict[str, float | None] = {}
    for name in checks[0].estimates if checks else ():
        errors = [None if (value := check.estimates.get(name)) is None else abs(value - check.truth_ms) for check in checks]
        known = [error for error in errors if error is not None]
        worst[name] = max(known) if len(known) == len(errors) else None
    return worst


def _null_problems(nulls: Sequence[RunResult]) -> list[str]:
    found = []
    for run in nulls:
        for stream in run.streams:
            bad = {name: getattr(stream, name) for name in ("lost", "duplicated", "reordered") if getattr(stream, name)}
            if bad:
                found.append(f"{run.run_id}: {stream.name} without any migration: {', '.join(f'{n} {name}' for name, n in bad.items())}")
    return found


def _problems(checks: Sequence[OutageCheck], drops: Sequence[DropCheck]) -> list[str]:
    found = [f"{check.run}: an outage of {check.injected_ms:g} ms lost {check.lost} packets" for check in checks if check.lost]
    for drop in drops:
        if not drop.injected == drop.dropped_by_host == drop.lost:
            found.append(f"{drop.run}: {drop.injected} dropped on purpose, {drop.dropped_by_host} in dropped_by_host, {drop.lost} lost")
    return found
