"""Campaign directories, and campaigns put together from finished runs.

A campaign's folder holds `campaign.json` and the run directories of its runs. campaign.json is written anew, atomically,
after each run: a campaign that was cut short reads as the part that was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import TestbedError, UsageError
from harness.model.campaign import Arm, ArmFacts, Campaign, CampaignFacts, Trial, TrialFacts
from harness.model.result import RunResult
from harness.store.folders import fresh_folder, fresh_name
from harness.store.rundir import RunDirectory

__all__ = ["CampaignDirectory", "campaign_of", "run_folders"]

_FILE = "campaign.json"


class CampaignDirectory:
    """One campaign's folder, for writing (`create`) or reading (`open`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, results: Path) -> CampaignDirectory:
        """A fresh folder below `results`."""
        return cls(fresh_folder(results, fresh_name("campaign")))

    @classmethod
    def open(cls, path: Path) -> CampaignDirectory:
        if not (path / _FILE).is_file():
            raise UsageError(f"{path} is no campaign: it has no {_FILE}")
        return cls(path)

    def save(self, campaign: Campaign, *, arms: Sequence[tuple[str, Sequence[str]]], repeat: int) -> None:
        """Write campaign.json; `arms` are the scenario and the settings of each arm."""
        facts = CampaignFacts(
            campaign_id=self.path.name, repeat=repeat, calibration=campaign.calibration,
            looks=campaign.looks,
            arms=tuple(
                ArmFacts(
                    label=arm.label, scenario=scenario, settings=tuple(settings),
                    trials=tuple(TrialFacts(round=t.round, run=_relative(t.directory), error=t.error) for t in arm.trials),
                )
                for arm, (scenario, settings) in zip(campaign.arms, arms, strict=True)
            ),
        )  # fmt: skip
        target = self.path / _FILE
        fresh = target.with_name(f".{_FILE}.new")
        try:
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
            fresh.replace(target)
        except OSError as error:
            raise TestbedError(f"{target} can't be written: {error.strerror}") from error

    def facts(self) -> CampaignFacts:
        """campaign.json; `UsageError` for a newer schema or a broken file."""
        path = self.path / _FILE
        try:
            raw = path.read_bytes()
            version = msgspec.json.decode(raw, type=dict[str, Any]).get("schema_version")
            if version != 1:
                raise UsageError(
                    f"{path} has schema version {version}, this program reads 1", hint="use the switchover that made it"
                )
            return msgspec.json.decode(raw, type=CampaignFacts)
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path} is damaged: {error}") from error

    def load(self) -> Campaign:
        """The campaign with the results of its runs as their folders have them."""
        facts = self.facts()
        arms = []
        for arm in facts.arms:
            trials = [
                Trial(round=t.round, error=t.error) if t.run is None
                else Trial(round=t.round, directory=str(self.path / t.run), result=RunDirectory.open(self.path / t.run).result())
                for t in arm.trials
            ]  # fmt: skip
            arms.append(Arm(label=arm.label, trials=tuple(trials)))
        return Campaign(arms=tuple(arms), calibration=facts.calibration, looks=facts.looks)


def _relative(directory: str | None) -> str | None:
    return None if directory is None else Path(directory).name


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """What of some paths holds runs, in the order given: for whoever says `results/2*` and means all runs there.

    Reports beside the runs and runs that did not end are left out; a folder of runs that is no campaign (those of a suite or a bisection) stands for
    the runs in it. Whatever else is no run stays, so that it is complained of; `UsageError` where nothing is left.
    """
    found: list[Path] = []
    for path in paths:
        if path.suffix == ".html" or path.name.endswith(".partial"):
            continue
        inner = []
        if path.is_dir() and not (path / "run.json").is_file() and not (path / _FILE).is_file():
            inner = sorted(each.parent for each in path.glob("*/run.json") if not each.parent.name.endswith(".partial"))
            if not inner and ("-suite-" in path.name or "-bisect-" in path.name):
                continue
        found += inner or [path]
    if not found:
        raise UsageError("there is no finished run among these", hint="`switchover list` shows the runs there are")
    return found


def campaign_of(paths: Sequence[Path]) -> Campaign:
    """One campaign from run and campaign directories.

    A single campaign directory is taken as it is; several of the same arms are one campaign that was made in parts, and its
    runs were made by turns. Everything else is grouped by what was run (scenario with all its settings, QEMU builds, guest kernel
    and image, accelerator), in the order given; such runs were not made by turns.
    """
    if paths and all((path / _FILE).is_file() for path in paths):
        parts = [CampaignDirectory(path).load() for path in paths]
        if len(parts) == 1:
            return parts[0]
        if _same_arms(parts):
            return _joined(parts)
    groups: dict[bytes, list[tuple[RunResult, Path]]] = {}
    for path in paths:
        if (path / _FILE).is_file():
            loaded = CampaignDirectory(path).load()
            found = [(t.result, Path(t.directory or "")) for arm in loaded.arms for t in arm.trials if t.result is not None]
        else:
            found = [(RunDirectory.open(path).result(), path)]
        for result, where in found:
            groups.setdefault(_identity(result), []).append((result, where))
    labels: list[str] = []
    for runs in groups.values():
        name = runs[0][0].scenario.name
        taken = sum(1 for label in labels if label == name or label.startswith(f"{name} #"))
        labels.append(f"{name} #{taken + 1}" if taken else name)
    arms = tuple(
        Arm(label=label, trials=tuple(Trial(round=n, result=r, directory=str(p)) for n, (r, p) in enumerate(runs)))
        for label, runs in zip(labels, groups.values(), strict=True)
    )
    return Campaign(arms=arms, interleaved=False)


def _same_arms(parts: Sequence[Campaign]) -> bool:
    """Whether each part has the arms of the first one: by their labels, and by what was run."""
    if len({tuple(arm.label for arm in part.arms) for part in parts}) > 1 or not all(part.interleaved for part in parts):
        return False
    arms = zip(*(part.arms for part in parts), strict=True)
    return all(len({_identity(run) for part in arm for run in part.runs}) <= 1 for arm in arms)


def _joined(parts: Sequence[Campaign]) -> Campaign:
    """The rounds of each part follow those of the one before it. Looks that a part was planned with say nothing of the whole."""
    trials: list[list[Trial]] = [[] for _ in parts[0].arms]
    rounds = 0
    for part in parts:
        for place, arm in enumerate(part.arms):
            trials[place] += [msgspec.structs.replace(trial, round=rounds + trial.round) for trial in arm.trials]
        rounds += max((trial.round + 1 for arm in part.arms for trial in arm.trials), default=0)
    arms = tuple(Arm(label=arm.label, trials=tuple(found)) for arm, found in zip(parts[0].arms, trials, strict=True))
    calibrations = [part.calibration for part in parts if part.calibration is not None]
    coarsest = max(calibrations, key=lambda found: found.network_resolution_ms, default=None)
    return Campaign(arms=arms, calibration=coarsest)


def _identity(result: RunResult) -> bytes:
    return msgspec.json.encode((result.scenario, result.qemu, result.guest, result.accelerator), order="deterministic")
