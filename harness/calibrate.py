"""A calibration in the conditions of a scenario: the same guests, QEMUs, network and probes, and something whose truth is known.

A null run (no migration), outages by `stop` and `cont`, and packets that a filter at the peer's port drops on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

import msgspec

from harness.analysis.checks import calibration_of
from harness.campaign import CampaignPlan, PlannedArm, Runner, run_campaign
from harness.errors import TestbedError
from harness.model.calibration import CalibrationResult
from harness.model.campaign import Campaign
from harness.model.scenario import (
    Direction,
    InjectSection,
    MigrationMode,
    MigrationSection,
    Scenario,
    TimingSection,
    TrafficKind,
    TrafficSection,
)
from harness.model.streams import plan_streams
from harness.run import RunOptions
from harness.store.campaigns import CampaignDirectory

__all__ = ["DROPS", "OUTAGES_MS", "plan_calibration", "run_calibration"]

OUTAGES_MS = (5.0, 20.0, 100.0, 500.0)
DROPS = (1, 7, 100)
_TAIL_S = 1.0
_MOST_OF_IT = 0.8


def plan_calibration(scenario: Scenario, *, outages: int = len(OUTAGES_MS), drops: int = len(DROPS)) -> CampaignPlan:
    """A null run, then that many outages (5, 20, 100, 500 ms in turn) and runs with drops (1, 7, 100 in turn).

    Only the probes of the scenario's traffic take part; a scenario without any to the guest gets the usual ones. Drops that a
    stream is too slow for are left out.
    """
    probes = tuple(each for each in scenario.traffic if each.kind is TrafficKind.UDP)
    if not any(each.direction is not Direction.FROM_GUEST for each in probes):
        probes = (TrafficSection(), *probes)
    timing = TimingSection(
        settle_s=max(scenario.timing.settle_s, 1.0), tail_s=_TAIL_S, drain_s=scenario.timing.drain_s, timeout_s=scenario.timing.timeout_s
    )
    base = msgspec.structs.replace(
        scenario, mechanism="none", traffic=probes, timing=timing, expect={}, inject=InjectSection(),
        migration=MigrationSection(mode=MigrationMode.NONE), description="",
    )  # fmt: skip

    def arm(name: str, **changes: object) -> PlannedArm:
        return PlannedArm(label=name, name=name, scenario=msgspec.structs.replace(base, name=name, **changes))

    arms = [arm("calibration-null")]
    for outage_ms in islice(cycle(OUTAGES_MS), outages):
        stop = MigrationSection(mode=MigrationMode.STOP_CONT, outage_ms=outage_ms)
        arms.append(arm(f"calibration-outage-{outage_ms:g}ms", migration=stop))
    stream = next((each for each in plan_streams(probes) if each.sender_is_peer and each.ip == 4), None)
    if stream is not None:
        expected = int(stream.rate_pps * (timing.settle_s + timing.tail_s) * _MOST_OF_IT)
        for count in islice(cycle([each for each in DROPS if each < expected]), drops):
            first = min(int(stream.rate_pps * timing.settle_s / 2), expected - count)
            arms.append(arm(f"calibration-drop-{count}", inject=InjectSection(drop_packets=count, drop_first=first)))
    return CampaignPlan(arms=tuple(arms), repeat=1)


async def run_calibration(
    plan: CampaignPlan, *, options: RunOptions, progress: Callable[[str], None], directory: CampaignDirectory | None = None,
    runner: Runner | None = None,
) -> tuple[CalibrationResult, Campaign]:
    """Run a plan of `plan_calibration`. `TestbedError` when not even the null run could be made."""
    campaign = await run_campaign(plan, options=options, progress=progress, directory=directory, runner=runner)
    failures = [text for arm in campaign.arms for text in arm.failures]
    try:
        found = calibration_of(campaign.runs)
    except ValueError as error:
        raise TestbedError(f"the calibration failed: {failures[0] if failures else error}") from error
    if failures:
        found = msgspec.structs.replace(found, sound=False, problems=(*found.problems, *failures))
    if directory is not None:
        directory.save(
            msgspec.structs.replace(campaign, calibration=found), arms=[(arm.name, arm.settings) for arm in plan.arms], repeat=1
        )
    return found, campaign
