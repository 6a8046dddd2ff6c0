"""What `run`, `demo` and `compare` have in common: a campaign from the command line's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harness.analysis.comparison import Comparison, all_clear, compare_campaign
from harness.analysis.significance import Looks
from harness.cache import cache_dir
from harness.calibrate import plan_calibration, run_calibration
from harness.campaign import plan_campaign, run_campaign
from harness.errors import TestbedError
from harness.model.calibration import CalibrationResult
from harness.model.campaign import Campaign, label_arms, split_arm
from harness.model.load import load_scenario
from harness.model.result import Outcome, RunResult
from harness.model.scenario import Scenario
from harness.run import RunOptions, prepare
from harness.store.campaigns import CampaignDirectory

__all__ = ["calibrate_scenario", "compare_arms", "report", "run_scenarios", "scenarios_of"]


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `compare --json` prints: the comparison, and where each run is."""

    campaign: str | None
    interleaved: bool
    arms: dict[str, tuple[str, ...]]
    failures: dict[str, tuple[str, ...]]
    comparison: Comparison
    calibration: CalibrationResult | None = None


def scenarios_of(names: Sequence[str], *, settings: Sequence[str]) -> list[Scenario]:
    """The scenarios that the command line's words mean, each once."""
    return [arm.scenario for arm in plan_campaign([split_arm(name) for name in names], labels=label_arms(names), settings=settings, repeat=1).arms]


async def run_scenarios(
    names: Sequence[str], *, settings: Sequence[str], repeat: int, cold: bool, results: Path, progress: Callable[[str], None]
) -> tuple[list[tuple[RunResult, Path]], list[str]]:
    """Run every scenario `repeat` times, by turns: what was finished, in order, and what could not be made.

    Raises when nothing was finished.
    """
    options = RunOptions(results=results, cache=cache_dir(), cold=cold)
    plan = plan_campaign([split_arm(name) for name in names], labels=label_arms(names), settings=settings, repeat=repeat)
    campaign = await run_campaign(plan, options=options, progress=progress)
    trials = sorted((trial.round, place, trial) for place, arm in enumerate(campaign.arms) for trial in arm.trials)
    done = [(trial.result, Path(trial.directory or "")) for _, _, trial in trials if trial.result is not None]
    failures = [f"{arm.label}: {text}" for arm in campaign.arms for text in arm.failures]
    if not done:
        raise TestbedError(failures[0])
    return done, failures


async def compare_arms(
    arms: Sequence[str], *, settings: Sequence[str], repeat: int, cold: bool, results: Path, progress: Callable[[str], None],
    stop_early: bool = False, calibrate: bool = True,
) -> tuple[Campaign, Path]:
    """Run a campaign in a directory of its own below `results`. With `stop_early` it ends at the first of its looks at which
    every arm's decisive figures have a verdict. With `calibrate` it begins with a calibration in the first arm's conditions,
    whose resolution stands in each run's result."""
    parts = [split_arm(arm) for arm in arms]
    plan = plan_campaign(parts, labels=label_arms(arms), settings=settings, repeat=repeat)
    if stop_early:
        plan = msgspec.structs.replace(plan, looks=Looks.up_to(repeat).at)
    directory = CampaignDirectory.create(results)
    progress(f"campaign {directory.path}: {len(plan.arms)} arms, {repeat} rounds")
    options = RunOptions(results=directory.path, cache=cache_dir(), cold=cold)
    calibration = None
    if calibrate:
        for arm in plan.arms:  # nothing boots before all of it is known to be possible
            await prepare(arm.scenario, options=options, progress=progress)
        calibration, _ = await run_calibration(plan_calibration(plan.arms[0].scenario), options=options, progress=progress)
        options = msgspec.structs.replace(options, calibration=calibration)
    campaign = await run_campaign(
        plan, options=options, progress=progress, directory=directory, calibration=calibration,
        clear=lambda so_far: all_clear(compare(so_far)),
    )
    return campaign, directory.path


def report(campaign: Campaign, *, directory: Path | None) -> CampaignReport:
    """Compare a campaign's arms."""
    return CampaignReport(
        campaign=None if directory is None else str(directory), interleaved=campaign.interleaved,
        arms={arm.label: tuple(trial.directory for trial in arm.trials if trial.directory) for arm in campaign.arms},
        failures={arm.label: arm.failures for arm in campaign.arms if arm.failures},
        comparison=compare(campaign), calibration=campaign.calibration,
    )  # fmt: skip


def compare(campaign: Campaign) -> Comparison:
    """Compare with the resolution that the campaign's calibration showed."""
    known = campaign.calibration
    found = compare_campaign(campaign, resolutions=known.resolutions() if known is not None else None)
    notes = tuple(f"calibration: {problem}" for problem in known.problems) if known is not None else ()
    return msgspec.structs.replace(found, notes=(*found.notes, *notes))


async def calibrate_scenario(
    name: str, *, settings: Sequence[str], outages: int, drops: int, cold: bool, results: Path, progress: Callable[[str], None]
) -> tuple[CalibrationResult, Path]:
    """Calibrate in a scenario's conditions, in a campaign directory of its own."""
    own_name, own = split_arm(name)
    scenario = load_scenario(own_name, settings=[*settings, *own])
    plan = plan_calibration(scenario, outages=outages, drops=drops)
    directory = CampaignDirectory.create(results)
    options = RunOptions(results=directory.path, cache=cache_dir(), cold=cold)
    found, _ = await run_calibration(plan, options=options, progress=progress, directory=directory)
    return found, directory.path


def sound(campaign: Campaign) -> bool:
    """Whether every run of the campaign accounted for every packet."""
    return all(run.outcome is not Outcome.INCONCLUSIVE for run in campaign.runs)
