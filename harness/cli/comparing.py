"""What `run`, `demo` and `compare` have in common: a campaign from the command line's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harness.analysis.comparison import Comparison, all_clear, compare_campaign
from harness.analysis.significance import Looks
from harness.cache import cache_dir
from harness.campaign import plan_campaign, run_campaign
from harness.errors import TestbedError
from harness.model.campaign import Campaign, label_arms, split_arm
from harness.model.result import Outcome, RunResult
from harness.run import RunOptions
from harness.store.campaigns import CampaignDirectory

__all__ = ["compare_arms", "report", "run_scenarios"]


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `compare --json` prints: the comparison, and where each run is."""

    campaign: str | None
    interleaved: bool
    arms: dict[str, tuple[str, ...]]
    failures: dict[str, tuple[str, ...]]
    comparison: Comparison
    calibration: object = None


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
    stop_early: bool = False,
) -> tuple[Campaign, Path]:
    """Run a campaign in a directory of its own below `results`. With `stop_early` it ends at the first of its looks at which
    every arm's decisive figures have a verdict."""
    parts = [split_arm(arm) for arm in arms]
    plan = plan_campaign(parts, labels=label_arms(arms), settings=settings, repeat=repeat)
    if stop_early:
        plan = msgspec.structs.replace(plan, looks=Looks.up_to(repeat).at)
    directory = CampaignDirectory.create(results)
    progress(f"campaign {directory.path}: {len(plan.arms)} arms, {repeat} rounds")
    options = RunOptions(results=directory.path, cache=cache_dir(), cold=cold)
    campaign = await run_campaign(
        plan, options=options, progress=progress, directory=directory, clear=lambda so_far: all_clear(compare_campaign(so_far))
    )
    return campaign, directory.path


def report(campaign: Campaign, *, directory: Path | None) -> CampaignReport:
    """Compare a campaign's arms."""
    return CampaignReport(
        campaign=None if directory is None else str(directory), interleaved=campaign.interleaved,
        arms={arm.label: tuple(trial.directory for trial in arm.trials if trial.directory) for arm in campaign.arms},
        failures={arm.label: arm.failures for arm in campaign.arms if arm.failures},
        comparison=compare_campaign(campaign), calibration=campaign.calibration,
    )  # fmt: skip


def sound(campaign: Campaign) -> bool:
    """Whether every run of the campaign accounted for every packet."""
    return all(run.outcome is not Outcome.INCONCLUSIVE for run in campaign.runs)
