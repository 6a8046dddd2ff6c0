"""Several arms, several times, by turns (A B A B), so that a change of the host's load meets all alike.

One engine for `switchover compare`, `run --repeat`, `calibrate` and the demo. A run that can't be made is recorded, and
the others go on.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from harness.errors import SwitchoverError
from harness.model.calibration import CalibrationResult
from harness.model.campaign import Arm, Campaign, Trial
from harness.model.load import load_scenario
from harness.model.result import RunResult
from harness.model.scenario import Scenario
from harness.run import RunOptions, prepare, run_scenario
from harness.store.campaigns import CampaignDirectory

__all__ = ["CampaignPlan", "PlannedArm", "Runner", "on_this_host", "plan_campaign", "run_campaign"]

Progress = Callable[[str], None]


class Runner(Protocol):
    """What makes one run: `harness.run`, or a stand-in."""

    def prepare(self, scenario: Scenario, *, options: RunOptions, progress: Progress) -> Awaitable[object]: ...

    def run(self, scenario: Scenario, *, options: RunOptions, progress: Progress) -> Awaitable[tuple[RunResult, Path]]: ...


class _OnThisHost:
    async def prepare(self, scenario: Scenario, *, options: RunOptions, progress: Progress) -> object:
        return await prepare(scenario, options=options, progress=progress)

    async def run(self, scenario: Scenario, *, options: RunOptions, progress: Progress) -> tuple[RunResult, Path]:
        return await run_scenario(scenario, options=options, progress=progress)


def on_this_host() -> Runner:
    """What runs scenarios here and now."""
    return _OnThisHost()


GIVE_UP_AFTER = 3
"""An arm whose runs fail so often in a row is not run again: the others go on."""


class PlannedArm(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario to run, by the name it was asked for and the settings laid over it."""

    label: str
    scenario: Scenario
    name: str
    settings: tuple[str, ...] = ()


class CampaignPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`looks`: after these numbers of rounds `run_campaign` asks whether it may end; empty: never."""

    arms: tuple[PlannedArm, ...]
    repeat: int
    looks: tuple[int, ...] = ()

    @property
    def runs(self) -> int:
        return self.repeat * len(self.arms)


def plan_campaign(
    arms: Sequence[tuple[str, Sequence[str]]], *, labels: Sequence[str] | None = None, settings: Sequence[str] = (), repeat: int
) -> CampaignPlan:
    """Load every arm's scenario; `settings` are for all arms, an arm's own come after them."""
    planned = [
        PlannedArm(
            label=labels[number] if labels is not None else name, name=name, settings=tuple(own),
            scenario=load_scenario(name, settings=[*settings, *own]),
        )
        for number, (name, own) in enumerate(arms)
    ]  # fmt: skip
    return CampaignPlan(arms=tuple(planned), repeat=repeat)


async def run_campaign(
    plan: CampaignPlan, *, options: RunOptions, progress: Progress, directory: CampaignDirectory | None = None,
    calibration: CalibrationResult | None = None, runner: Runner | None = None, clear: Callable[[Campaign], bool] | None = None,
) -> Campaign:
    """Run the plan. Every arm is checked before the first one boots.

    With a `directory` the campaign's state is in it after each run, also when this is interrupted. What can't work at all
    is raised at once; later failures end in their trial's `error`, but for a plan of one run, whose failure is raised.
    At the plan's looks the campaign ends if `clear` says of the rounds so far that they are enough.
    """
    runner = runner or _OnThisHost()
    for arm in plan.arms:
        await runner.prepare(arm.scenario, options=options, progress=progress)
    trials: list[list[Trial]] = [[] for _ in plan.arms]
    done = 0
    for number in range(plan.repeat):
        for place, arm in enumerate(plan.arms):
            done += 1
            last = trials[place][-GIVE_UP_AFTER:]
            if len(last) == GIVE_UP_AFTER and all(trial.error is not None for trial in last):
                continue
            prefix = f"{arm.label} ({done} of {plan.runs}): "

            def say(text: str, prefix: str = prefix) -> None:
                progress(prefix + text)

            trials[place].append(await _try(runner, arm, number, options, say, alone=plan.runs == 1))
            if directory is not None:
                arms = [(each.name, each.settings) for each in plan.arms]
                directory.save(_campaign(plan, trials, calibration), arms=arms, repeat=plan.repeat)
        if number + 1 in plan.looks[:-1] and clear is not None and clear(_campaign(plan, trials, calibration)):
            progress(f"the answer is clear after {number + 1} of {plan.repeat} rounds")
            break
    return _campaign(plan, trials, calibration)


def _campaign(plan: CampaignPlan, trials: Sequence[Sequence[Trial]], calibration: CalibrationResult | None) -> Campaign:
    arms = [Arm(label=arm.label, trials=tuple(mine)) for arm, mine in zip(plan.arms, trials, strict=True)]
    return Campaign(arms=tuple(arms), calibration=calibration, looks=plan.looks)


async def _try(runner: Runner, arm: PlannedArm, number: int, options: RunOptions, progress: Progress, *, alone: bool) -> Trial:
    """One run; whatever goes wrong with it is its own affair, but for an interrupt."""
    try:
        result, path = await runner.run(arm.scenario, options=options, progress=progress)
    except asyncio.CancelledError:
        raise
    except SwitchoverError as error:
        if alone:
            raise
        progress(f"failed: {error.message}")
        return Trial(round=number, error=str(error))
    except Exception as error:  # a defect of ours must not cost the runs of a night; its traceback is kept
        if alone:
            raise
        progress(f"failed: {type(error).__name__}: {error}")
        return Trial(round=number, error="".join(traceback.format_exception(error)).strip())
    return Trial(round=number, result=result, directory=str(path))
