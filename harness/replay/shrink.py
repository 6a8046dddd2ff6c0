"""Make a run's scenario smaller while its finding stays, by running candidates; unattended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from harness.bundle.finding import Finding, Observation, SignKind, finding_of, holds
from harness.bundle.minimise import Budget, minimise
from harness.bundle.rule import Conclusion, conclude, runs_needed
from harness.errors import EnvironmentLackError, SwitchoverError, TestbedError, UsageError
from harness.model.scenario import Scenario
from harness.replay.execute import OneRun

__all__ = ["Shrunk", "shrink"]

Progress = Callable[[str], None]
_TRIES = 3
"""Runs of one candidate at most: more would make a rare finding's scenario small at the price of days."""


class Shrunk(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest scenario, the run that showed the finding with it (None: nothing could be left out), its other runs, and what it took."""

    scenario: Scenario
    run: Path | None
    others: tuple[Path, ...] = ()
    asked: int
    runs: int
    spent: bool


async def shrink(original: Observation, *, run: OneRun, most: int, progress: Progress) -> Shrunk:
    """Reduce the scenario of a run. `most` is the number of different scenarios to try. The finding itself is what stays: an expectation
    that has no part in it is dropped first. Raises `UsageError` for a run that shows nothing bad, or whose finding does not show itself
    when its own scenario is run again; and whatever keeps that from being run.
    """
    finding = finding_of(original)
    if finding.lasting:
        raise UsageError("the run shows nothing bad: there is no finding that could stay", hint="--minimise is for a run that failed or lost packets")
    needed = min(_TRIES, runs_needed(times=1, runs=1))
    made = 0
    found: list[tuple[Scenario, Path]] = []
    others: list[tuple[Scenario, Path]] = []
    refusals: list[str] = []

    async def stays(candidate: Scenario) -> bool:
        nonlocal made
        answers: list[bool | None] = []
        while (verdict := conclude(answers, needed=needed, lasting=False)) is None:
            made += 1
            try:
                seen, path = await run(candidate)
            except (UsageError, EnvironmentLackError) as error:
                if candidate == start:
                    raise
                refusals.append(f"can't be run: {_first_line(error)}")
                return False
            except TestbedError as error:
                progress(f"a run could not be made: {_first_line(error)}")
                answers.append(None)
                continue
            answers.append(holds(finding, seen))
            (found if answers[-1] else others).append((candidate, path))
        return verdict is Conclusion.REPRODUCED

    def each(candidate: Scenario, stayed: bool) -> None:
        said = refusals.pop() if refusals else f"the finding {'stays' if stayed else 'is gone'}"
        progress(f"{_size(candidate)}: {said}")

    start = _only_what_failed(original.result.scenario, finding)
    if not await stays(start):
        raise UsageError(f"the finding did not show itself again in {made} runs of the run's own scenario", hint="switchover bundle without --minimise")
    budget = Budget(stays, most=most, each=each)
    smallest = await minimise(start, budget)
    shown_by = None if smallest == start == original.result.scenario else next(path for scenario, path in reversed(found) if scenario == smallest)
    rest = tuple(path for scenario, path in [*found, *others] if shown_by is not None and scenario == smallest and path != shown_by)
    return Shrunk(scenario=smallest, run=shown_by, others=rest, asked=budget.asked, runs=made, spent=budget.spent)


def _first_line(error: SwitchoverError) -> str:
    return error.message.splitlines()[0]


def _only_what_failed(scenario: Scenario, finding: Finding) -> Scenario:
    failed = {sign.key for sign in finding.signs if sign.kind is SignKind.EXPECTATION}
    kept = {key: value for key, value in scenario.expect.items() if key in failed}
    return msgspec.structs.replace(scenario, expect=kept) if failed else scenario


def _size(scenario: Scenario) -> str:
    migration = scenario.migration
    rate = sum(section.rate_pps or 0 for section in scenario.traffic)
    return (
        f"{len(scenario.traffic)} streams, {1 + scenario.guest.management} NICs, {len(migration.capabilities)} capabilities, {len(migration.parameters)} parameters,"
        f" {rate:g} packets/s, hold {migration.hold_ms:g} ms, {scenario.timing.settle_s + scenario.timing.tail_s:g} s"
    )
