"""Run the scenario of a bundle until it is known whether its finding shows itself here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from harness.bundle.finding import Finding, Observation, holds
from harness.bundle.rule import Conclusion, conclude
from harness.errors import TestbedError
from harness.model.result import RunResult
from harness.model.scenario import Scenario
from harness.run import RunOptions, run_scenario
from harness.store.rundir import RunDirectory

__all__ = ["Replay", "execute", "one_run"]

Progress = Callable[[str], None]
OneRun = Callable[[Scenario], Awaitable[tuple[Observation, Path]]]

_MOST_BROKEN = 2


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay came to. `answers`: whether each run showed the finding, None where it told nothing."""

    conclusion: Conclusion
    reason: str
    answers: tuple[bool | None, ...]
    results: tuple[RunResult, ...]
    runs: tuple[str, ...]
    needed: int


def one_run(options: RunOptions, *, progress: Progress) -> OneRun:
    """Runs a scenario on this host."""

    async def run(scenario: Scenario) -> tuple[Observation, Path]:
        _, path = await run_scenario(scenario, options=options, progress=progress)
        return Observation.of_run(RunDirectory.open(path)), path

    return run


async def execute(
    scenario: Scenario, finding: Finding, *, original: RunResult, needed: int, timing: bool, run: OneRun, repeat: int | None = None,
    progress: Progress,
) -> Replay:
    """Run until `harness.bundle.rule` allows a conclusion; with `repeat`, exactly so often.

    A run that can't be made counts as one that tells nothing; the third in a row is raised.
    """
    answers: list[bool | None] = []
    results: list[RunResult] = []
    paths: list[str] = []
    broken = 0
    other = ""
    while True:
        progress(f"run {len(answers) + 1}" + (f" of {repeat}" if repeat else f", at most {needed} are needed"))
        try:
            seen, path = await run(scenario)
        except TestbedError as error:
            broken += 1
            if broken > _MOST_BROKEN:
                raise
            progress(f"the run can't be made: {error.message.splitlines()[0]}")
            answers.append(None)
        else:
            broken = 0
            answer = holds(finding, seen)
            if timing and seen.result.accelerator != original.accelerator:
                answer, other = None, f"the finding is a time, and times under {original.accelerator} and {seen.result.accelerator} are never compared"
            answers.append(answer)
            results.append(seen.result)
            paths.append(str(path))
        verdict = Conclusion.CANNOT_TELL if other else conclude(answers, needed=needed, lasting=finding.lasting)
        if repeat is not None and len(answers) < repeat and not other:
            continue
        if verdict is not None or repeat is not None:
            verdict = verdict or Conclusion.CANNOT_TELL
            break
    reason = other or _reason(answers, verdict, needed=needed)
    return Replay(conclusion=verdict, reason=reason, answers=tuple(answers), results=tuple(results), runs=tuple(paths), needed=needed)


def _reason(answers: list[bool | None], verdict: Conclusion, *, needed: int) -> str:
    sound = [answer for answer in answers if answer is not None]
    said = f"seen in {sum(sound)} of {len(sound)} sound runs"
    if silent := len(answers) - len(sound):
        said += f", {silent} told nothing"
    if verdict is Conclusion.CANNOT_TELL:
        said += f"; {needed} sound runs are needed"
    return said
