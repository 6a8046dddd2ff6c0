"""One commit of a bisection: build it, run it until its side is clear, answer as `git bisect run` expects."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from harness.analysis.metrics import readings
from harness.analysis.sequential import Side, decide
from harness.bisect.build import Candidate, prepare
from harness.bisect.facts import BisectFacts, BisectFolder, CommitFacts
from harness.campaign import Runner, on_this_host
from harness.errors import BuildError, EnvironmentLackError, FeatureLackError, SwitchoverError, UsageError
from harness.model.load import load_scenario
from harness.model.result import Outcome, RunResult
from harness.run import RunOptions

__all__ = ["ABORT", "examine", "git", "step", "subject_of"]

Progress = Callable[[str], None]

ABORT = 200
"""A status by which git ends a bisection: nothing was learned of the commit."""
_ANSWERS = {"good": 0, "bad": 1, "skip": 125}
_MOST_BROKEN = 3


def step(folder: BisectFolder, *, options: RunOptions, progress: Progress, candidate: Candidate = prepare, runner: Runner | None = None) -> int:
    """What `git bisect run` is given: judge the commit that git chose. The status that git expects.

    What keeps any commit from being judged (this host lacks something) ends the bisection; it stands in `bisect.json`.
    """
    # git tells its children where its repository is, and builds use repositories of their own
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        del os.environ[name]
    facts = folder.load()
    commit = git(folder.repository, "rev-parse", "--verify", "--quiet", "BISECT_HEAD", check=False) or git(folder.repository, "rev-parse", "HEAD")
    if (known := facts.commit(commit)) is not None:  # of a bisection that was taken up again
        progress(f"{commit[:12]} {known.subject}: {known.answer}, as was found before")
        return _ANSWERS[known.answer]
    try:
        found = asyncio.run(examine(facts, folder, commit, options=options, progress=progress, candidate=candidate, runner=runner))
    except SwitchoverError as error:
        folder.save(_with_error(facts, str(error)))
        return ABORT
    folder.save(facts.with_commit(found))
    return _ANSWERS[found.answer]


async def examine(
    facts: BisectFacts, folder: BisectFolder, commit: str, *, options: RunOptions, progress: Progress, candidate: Candidate = prepare,
    runner: Runner | None = None,
) -> CommitFacts:
    """Build and run `commit` until one side leads clearly. A skip where it can't be built or run, or stays in the middle."""
    assert facts.boundary is not None
    runner = runner or on_this_host()
    subject = subject_of(folder.repository, commit)
    label = f"{commit[:12]} {subject}"
    progress(f"{label}: building")
    try:
        settings = await asyncio.to_thread(candidate, facts, folder, commit, "step", options, progress)
    except (BuildError, UsageError) as error:
        return CommitFacts(commit=commit, subject=subject, answer="skip", why=_first_line(error))
    scenario = load_scenario(facts.scenario, settings=[*facts.settings, *settings])
    values: list[float] = []
    runs: list[str] = []
    broken: list[str] = []
    while (side := decide(values, facts.boundary)) is None and len(values) < facts.most and len(broken) < _MOST_BROKEN:
        progress(f"{label}: run {len(values) + 1}")
        try:
            result, path = await runner.run(scenario, options=options, progress=lambda _: None)
        except FeatureLackError as error:
            broken = [_first_line(error)] * _MOST_BROKEN
        except EnvironmentLackError:
            raise
        except SwitchoverError as error:
            broken.append(_first_line(error))
            progress(f"{label}: {broken[-1]}")
        else:
            if (value := reading_of(result, facts.metric)) is None:
                broken.append(f"{path.name} is {result.outcome} and has no sound {facts.metric}")
            else:
                values.append(value)
                runs.append(path.name)
    if side is None:
        why = broken[-1] if broken else f"{len(values)} runs stay on both sides of {facts.boundary.threshold:g}"
        answer = CommitFacts(commit=commit, subject=subject, answer="skip", why=why, values=tuple(values), runs=tuple(runs))
    else:
        answer = CommitFacts(
            commit=commit, subject=subject, answer="bad" if side is Side.BAD else "good", values=tuple(values), runs=tuple(runs)
        )
    progress(f"{label}: {answer.answer} ({', '.join(f'{v:g}' for v in values) or answer.why})")
    return answer


def reading_of(result: RunResult, metric: str) -> float | None:
    """The reading of a run whose account closed, else None."""
    if result.outcome in (Outcome.INCONCLUSIVE, Outcome.FAILED):
        return None
    found = readings(result).get(metric)
    return None if found is None else found.value


def git(repository: Path, *words: str, check: bool = True) -> str:
    """Ask git; what it printed, stripped. `UsageError` with what it said when it refuses and `check` is set."""
    done = subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode and check:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UsageError(f"git {words[0]} in {repository}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout.strip()


def subject_of(repository: Path, commit: str) -> str:
    return git(repository, "log", "-1", "--format=%s", commit)


def _with_error(facts: BisectFacts, text: str) -> BisectFacts:
    return msgspec.structs.replace(facts, error=text)


def _first_line(error: SwitchoverError) -> str:
    return error.message.strip().splitlines()[0]
