"""Calibrations: what is planned for a scenario, and what the trials come to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.analysis.checks import calibration_of
from harness.calibrate import plan_calibration, run_calibration
from harness.errors import TestbedError
from harness.model.load import load_scenario
from harness.model.result import (
    ClockResult,
    ClockStepResult,
    Downtimes,
    Figure,
    GuestIdentity,
    Latency,
    LedgerClasses,
    Outcome,
    QemuIdentity,
    QemuPair,
    RunResult,
    StreamResult,
    Verdict,
)
from harness.model.scenario import MigrationMode, Scenario
from harness.report.calibration import calibration_line, calibration_table
from harness.run import RunOptions
from harness.store.campaigns import CampaignDirectory


def result(scenario: Scenario, *, error_ms: float | None = 0.4, lost: int = 0, counted: int | None = None, **more: Any) -> RunResult:
    """What a run of a calibration's scenario comes to on a testbed that measures `error_ms` too much."""
    stopped = scenario.migration.mode is MigrationMode.STOP_CONT
    truth_ms = scenario.migration.outage_ms + 1.0 if stopped else None
    dropped = scenario.inject.drop_packets if counted is None else counted
    gone = scenario.inject.drop_packets + lost
    measured = None if truth_ms is None or error_ms is None else truth_ms + error_ms
    stream = StreamResult(
        name="udp-to-guest", kind="udp", direction="to-guest", sent=2000, delivered=2000 - gone, lost=gone, passed=0, late=0,
        duplicated=0, reordered=0, longest_gap_ms=3.0, network_downtime_ms=measured, sent_late_max_ms=0.0, outages=(),
        latency_ms=Latency(p50=0.01, p99=0.02, max=0.05), lost_by_phase={},
        ledger=LedgerClasses(
            delivered=2000 - gone, stranded_at_source=gone - dropped, dropped_by_host=dropped, lost_in_qemu=0, dropped_by_guest=0,
            lost_on_return=0, unexplained=0,
        ),
        estimates={"lost-times-interval": 0.0, "switchover": measured},
    )  # fmt: skip
    qemu = QemuIdentity(name="system", version="7.2", build="x")
    clock = ClockResult(drift_ppm=1.0, steps=(ClockStepResult(stop_ns=0, stopped_ms=truth_ms, step_ms=-truth_ms - 0.3),)) if truth_ms else None
    values: dict[str, Any] = {
        "run_id": scenario.name, "scenario": scenario, "outcome": Outcome.COMPLETED, "verdict": Verdict.NO_BASELINE, "accelerator": "tcg",
        "host": {}, "qemu": QemuPair(source=qemu, destination=qemu), "guest": GuestIdentity(kernel="k", image="i"), "mechanism": "none",
        "downtime": Downtimes(
            compute_ms=Figure(value=truth_ms, resolution_ms=0.25), network_ms=Figure(value=measured, resolution_ms=1.0),
            reported_ms=Figure(value=None, resolution_ms=1.0),
        ),
        "phases": (), "streams": (stream,), "clock": clock,
    }  # fmt: skip
    return RunResult(**(values | more))


def plan(*, outages: int = 4, drops: int = 3, settings: tuple[str, ...] = ("traffic.0.direction=to-guest",)) -> list[Scenario]:
    planned = plan_calibration(load_scenario("udp-none", settings=settings), outages=outages, drops=drops)
    return [arm.scenario for arm in planned.arms]


def test_a_plan_keeps_the_conditions_and_asks_for_what_is_known():
    scenarios = plan(outages=5, drops=4, settings=("network.peer=namespace", "guest.vcpus=2", "traffic.0.direction=to-guest"))
    assert {(each.network.peer, each.guest.vcpus, each.mechanism) for each in scenarios} == {("namespace", 2, "none")}
    assert [each.migration.mode for each in scenarios] == ["none"] + ["stop-cont"] * 5 + ["none"] * 4
    assert [each.migration.outage_ms for each in scenarios[1:6]] == [5, 20, 100, 500, 5]
    assert [each.inject.drop_packets for each in scenarios] == [0] * 6 + [1, 7, 100, 1]
    assert len({each.name for each in scenarios}) == 8
    for each in scenarios[6:]:
        assert each.inject.drop_first + each.inject.drop_packets < 0.9 * 1000 * (each.timing.settle_s + each.timing.tail_s)


def test_a_stream_too_slow_for_a_drop_gets_fewer():
    scenarios = plan(settings=("traffic.0.rate_pps=20", "traffic.0.direction=to-guest"))
    assert [each.inject.drop_packets for each in scenarios if each.inject.drop_packets] == [1, 7, 1]


def test_a_scenario_without_probes_to_the_guest_gets_some():
    scenario = load_scenario("null", settings=["traffic.0.direction=from-guest"])
    assert [each.direction for each in plan_calibration(scenario).arms[0].scenario.traffic] == ["both", "from-guest"]


def test_the_worst_error_is_the_resolution_and_the_estimators_stand_beside_it():
    runs = [result(scenario, error_ms=error) for scenario, error in zip(plan(), (0, 0.2, -1.4, 0.3, 0.1, 0, 0, 0), strict=True)]
    found = calibration_of(runs)
    assert found.sound
    assert found.network_worst_ms == pytest.approx(1.4)
    assert found.network_resolution_ms == pytest.approx(1.4)
    assert found.resolutions() == {"network_ms": found.network_resolution_ms, "streams.udp-to-guest.network_ms": pytest.approx(1.4)}
    assert found.estimators_worst_ms == {"lost-times-interval": pytest.approx(501), "switchover": pytest.approx(1.4)}
    assert found.late_ms == pytest.approx(1.05)
    assert "exact in 3 of 3" in calibration_line(found)
    assert "guest's clock lost" in calibration_table(found)


def test_nothing_finer_than_an_interval_is_claimed():
    assert calibration_of([result(each, error_ms=0.001) for each in plan()]).network_resolution_ms == 1.0


def test_an_outage_that_was_not_found_is_an_error_of_its_length():
    found = calibration_of([result(each, error_ms=None) for each in plan(drops=0)])
    assert found.network_worst_ms == pytest.approx(501)


@pytest.mark.parametrize(
    ("where", "change", "complaint"),
    [
        (0, {"lost": 2}, "without any migration: 2 lost"),
        (3, {"lost": 2}, "an outage of 100 ms lost 2 packets"),
        (7, {"counted": 99}, "100 dropped on purpose, 99 in dropped_by_host"),
        (7, {"lost": 1}, "101 lost"),
        (2, {"outcome": Outcome.INCONCLUSIVE, "notes": ("capture peer: 3 packets dropped",)}, "3 packets dropped"),
    ],
)
def test_what_is_wrong_makes_it_unsound_and_is_named(where, change, complaint):
    found = calibration_of([result(scenario, **(change if n == where else {})) for n, scenario in enumerate(plan())])
    assert not found.sound
    assert any(complaint in problem for problem in found.problems)


def test_without_a_null_run_there_is_none():
    with pytest.raises(ValueError, match="null run"):
        calibration_of([result(each) for each in plan()[1:]])


class Fake:
    """Makes each run as `result` has it, but for the failing ones."""

    def __init__(self, failing: str = "nobody") -> None:
        self.failing = failing

    async def prepare(self, scenario: Scenario, *, options: RunOptions, progress: Any) -> None:
        pass

    async def run(self, scenario: Scenario, *, options: RunOptions, progress: Any) -> tuple[RunResult, Path]:
        if self.failing in scenario.name:
            raise TestbedError("the guest was not ready")
        path = options.results / scenario.name
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
        (path / "result.json").write_bytes(msgspec.json.encode(result(scenario)))
        return result(scenario), path


def test_a_calibration_is_kept_with_its_runs(tmp_path):
    directory = CampaignDirectory.create(tmp_path)
    options = RunOptions(results=directory.path, cache=tmp_path)
    planned = plan_calibration(load_scenario("null", settings=["traffic.0.direction=to-guest"]))
    found, campaign = asyncio.run(run_calibration(planned, options=options, progress=print, directory=directory, runner=Fake()))
    assert found.sound
    assert len(campaign.runs) == 8
    assert directory.load().calibration == found


def test_a_trial_that_could_not_be_made_makes_it_unsound(tmp_path):
    planned = plan_calibration(load_scenario("null"))
    options = RunOptions(results=tmp_path, cache=tmp_path)
    with pytest.raises(TestbedError, match="the calibration failed: the guest was not ready"):
        asyncio.run(run_calibration(planned, options=options, progress=print, runner=Fake("null")))
