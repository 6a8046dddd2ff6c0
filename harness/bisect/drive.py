"""A bisection from end to end: the ends first, then `git bisect run`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harness.analysis.metrics import Unit, readings
from harness.analysis.sequential import between
from harness.analysis.significance import Finding, Kind, Metric, Sample, judge
from harness.analysis.statistics import Change
from harness.bisect.build import Candidate, forget, prepare
from harness.bisect.facts import BisectFacts, BisectFolder, CommitFacts
from harness.bisect.step import git, reading_of, subject_of
from harness.campaign import CampaignPlan, PlannedArm, Runner, run_campaign
from harness.errors import TestbedError, UsageError
from harness.model.campaign import Arm
from harness.model.load import load_scenario
from harness.run import RunOptions

__all__ = ["begin", "close", "measure_ends", "narrow", "resume"]

Progress = Callable[[str], None]


def begin(
    tree: Path, *, results: Path, good: str, bad: str, scenario: str, metric: str, settings: Sequence[str] = (), repeat: int = 6, most: int = 30,
    threshold: float | None = None, build: str | None = None, kernel: str | None = None,
) -> tuple[BisectFolder, BisectFacts]:
    """Check what was asked for, and make the folder with a clone that shares the tree's objects. The tree itself is only read.

    `UsageError` for revisions that git doesn't know or between which there is nothing, and for half of a kernel's build.
    """
    if (build is None) != (kernel is None):
        raise UsageError("a kernel tree needs both: how it is built, and what comes out", hint="--build 'make bzImage' --kernel arch/x86/boot/bzImage")
    load_scenario(scenario, settings=settings)
    if not tree.is_dir():
        raise UsageError(f"{tree} is no folder", hint="give a git checkout of QEMU, or of a kernel with --build and --kernel")
    git(tree, "rev-parse", "--git-dir")
    ends = {name: git(tree, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False) for name in (good, bad)}
    for name, commit in ends.items():
        if not commit:
            raise UsageError(f"{tree} has no commit {name!r}", hint="a branch, a tag or a hash")
    if git(tree, "merge-base", ends[good], ends[bad], check=False) != ends[good] or ends[good] == ends[bad]:
        raise UsageError(f"{good} does not come before {bad}", hint="--good is the older end, --bad the newer one")
    folder = BisectFolder.create(results)
    facts = BisectFacts(
        tree=str(tree.resolve()), good=ends[good], bad=ends[bad], scenario=scenario, settings=tuple(settings), metric=metric, repeat=repeat,
        most=most, threshold=threshold, build=build, kernel=kernel,
    )  # fmt: skip
    folder.save(facts)
    _clone(folder, facts)
    return folder, facts


def resume(path: Path) -> tuple[BisectFolder, BisectFacts]:
    """Take up a bisection that was interrupted or killed: what was found out of a commit is not found out again.

    `UsageError` for a folder of no bisection, for one that is done, and for a tree that is gone or has lost a commit.
    """
    folder = BisectFolder(path.resolve())
    facts = folder.load()
    if facts.culprits:
        raise UsageError(f"{path} is a bisection that is done", hint=f"its answer is in {path}/bisect.json")
    tree = Path(facts.tree)
    if not tree.is_dir():
        raise UsageError(f"the tree of this bisection is gone: {tree} is no folder")
    for commit in (facts.good, facts.bad):
        git(tree, "cat-file", "-e", f"{commit}^{{commit}}")
    facts = msgspec.structs.replace(facts, error="")
    folder.save(facts)
    shutil.rmtree(folder.repository, ignore_errors=True)  # a kill may have left anything in it
    _clone(folder, facts)
    return folder, facts


def _clone(folder: BisectFolder, facts: BisectFacts) -> None:
    git(folder.path, "clone", "--quiet", "--shared", "--no-checkout", facts.tree, str(folder.repository))


async def measure_ends(
    folder: BisectFolder, facts: BisectFacts, *, options: RunOptions, progress: Progress, candidate: Candidate = prepare, runner: Runner | None = None
) -> tuple[BisectFacts, Finding]:
    """Build both ends and run them by turns. The boundary between them is set only where the bad end is clearly worse.

    Raises `UsageError` for a metric that no run has, `BuildError` for an end that can't be built.
    """
    arms = []
    for role, commit in (("good", facts.good), ("bad", facts.bad)):
        progress(f"{role} end {commit[:12]} {subject_of(folder.repository, commit)}: building")
        own = await asyncio.to_thread(candidate, facts, folder, commit, role, options, progress)
        planned = load_scenario(facts.scenario, settings=[*facts.settings, *own])
        arms.append(PlannedArm(label=f"{role} end", scenario=planned, name=facts.scenario, settings=own))
    plan = CampaignPlan(arms=tuple(arms), repeat=facts.repeat)
    campaign = await run_campaign(plan, options=options, progress=progress, runner=runner)
    for arm in campaign.arms:
        if not arm.runs:
            raise TestbedError(f"no run of the {arm.label} could be made: {arm.failures[0]}")
    units = {name: each for run in campaign.runs for name, each in readings(run).items()}
    if facts.metric not in units:
        raise UsageError(f"no run has the reading {facts.metric!r}", hint=f"they have: {', '.join(sorted(units))}")
    unit = units[facts.metric].unit
    good, bad = (_end(arm, facts.metric) for arm in campaign.arms)
    resolution = max(readings(run)[facts.metric].resolution for run in campaign.runs if facts.metric in readings(run))
    metric = Metric(name=facts.metric, unit=unit, kind=Kind.COUNT if unit is Unit.PACKETS else Kind.TIME, resolution=resolution)
    (finding,) = judge([(metric, Sample(a=good[0], b=bad[0], paired=False))])
    ends = (
        CommitFacts(commit=facts.good, subject=subject_of(folder.repository, facts.good), answer="good", values=good[0], runs=good[1]),
        CommitFacts(commit=facts.bad, subject=subject_of(folder.repository, facts.bad), answer="bad", values=bad[0], runs=bad[1]),
    )
    apart = finding.change is Change.REGRESSED
    boundary = between(good[0], bad[0], threshold=facts.threshold) if apart else None
    facts = msgspec.structs.replace(facts, commits=ends, boundary=boundary, unit=str(unit))
    folder.save(facts)
    return facts, finding


def _end(arm: Arm, metric: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    found = [
        (value, Path(trial.directory or "").name)
        for trial in arm.trials
        if trial.result is not None and (value := reading_of(trial.result, metric)) is not None
    ]  # fmt: skip
    return tuple(value for value, _ in found), tuple(name for _, name in found)


def narrow(folder: BisectFolder, facts: BisectFacts, *, step: Sequence[str]) -> BisectFacts:
    """Let `git bisect run` call `step` until the first bad commit is found, or only commits are left that can't be judged.

    An interrupt ends the step first, and then this.
    """
    # a commit of a kernel is checked out to be built; one of QEMU goes from object store to object store
    start = ["bisect", "start"] + ([] if facts.build else ["--no-checkout"])
    git(folder.repository, *start, facts.bad, facts.good)
    said = _bisect_run(folder, step)
    facts = folder.load()
    if facts.error:
        raise TestbedError(f"the bisection was ended: {facts.error}", hint=f"what is known so far: {folder.path}/bisect.json")
    bad = git(folder.repository, "rev-parse", "refs/bisect/bad")
    goods = git(folder.repository, "for-each-ref", "--format=%(objectname)", "refs/bisect/good-*").split()
    left = git(folder.repository, "rev-list", bad, "--not", *goods).split()
    # git ends when all that is left besides the bad commit could not be judged
    judged = {each.commit: each.answer for each in facts.commits}
    if any(judged.get(commit) != "skip" for commit in left if commit != bad):
        raise TestbedError(f"git bisect ended early: {(said.strip().splitlines() or ['without a word'])[-1]}")
    facts = msgspec.structs.replace(facts, culprits=tuple(left))
    folder.save(facts)
    return facts


def close(folder: BisectFolder, *, options: RunOptions) -> None:
    """Remove the clone and the builds' names, whatever happened before; git's log stays."""
    if folder.repository.is_dir():
        if log := git(folder.repository, "bisect", "log", check=False):
            folder.log.write_text(log + "\n")
        shutil.rmtree(folder.repository, ignore_errors=True)
    shutil.rmtree(folder.path / "kernels", ignore_errors=True)
    forget(folder, options)


def _bisect_run(folder: BisectFolder, step: Sequence[str]) -> str:
    """What git said on standard output; the step's progress goes to our standard error."""
    setpriv = shutil.which("setpriv")  # so that nothing goes on when this process is killed outright
    tied = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    process = subprocess.Popen(
        [*tied, "git", "bisect", "run", *tied, *step], cwd=folder.repository, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # git and the step, which takes its lab down
        process.communicate()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    return said


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
