"""A campaign: several arms (scenarios with their settings), each run several times, by turns (A B A B).

In memory a `Campaign` holds for each arm what became of each round; `campaign.json` holds the same with run directories
in place of results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from harness.errors import UsageError
from harness.model.calibration import CalibrationResult
from harness.model.result import RunResult

__all__ = ["Arm", "ArmFacts", "Campaign", "CampaignFacts", "Trial", "TrialFacts", "label_arms", "split_arm"]

_KEY = r"[A-Za-z_][\w.\"-]*="
_FIRST_SETTING = re.compile(rf":(?={_KEY})")
_NEXT_SETTING = re.compile(rf",(?={_KEY})")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an arm. `round` counts from 0; runs of one round were made one after the other.

    `result` is None when the run could not be made; `error` then says why.
    """

    round: int
    result: RunResult | None = None
    directory: str | None = None
    error: str | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a comparison. `label` is unique in its campaign."""

    label: str
    trials: tuple[Trial, ...] = ()

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """The results of the runs that were made, in order."""
        return tuple(trial.result for trial in self.trials if trial.result is not None)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why runs could not be made."""
        return tuple(trial.error for trial in self.trials if trial.error is not None)

    def by_round(self) -> dict[int, RunResult]:
        return {trial.round: trial.result for trial in self.trials if trial.result is not None}


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """`interleaved`: run k of every arm belongs to the same round, so that differences may be taken by pairs.

    `calibration` is what was found before the first run, where it was asked for. `looks`: the
    numbers of rounds after which it was to be judged and might have ended, fixed before its first run.
    """

    arms: tuple[Arm, ...]
    interleaved: bool = True
    calibration: CalibrationResult | None = None
    looks: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[RunResult, ...]:
        return tuple(run for arm in self.arms for run in arm.runs)


class TrialFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`run`: the run's folder, relative to the campaign's."""

    round: int
    run: str | None = None
    error: str | None = None


class ArmFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    label: str
    scenario: str
    settings: tuple[str, ...] = ()
    trials: tuple[TrialFacts, ...] = ()


class CampaignFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of campaign.json; written anew after every run, so that a campaign that was cut short can be read."""

    schema_version: Literal[1] = 1
    campaign_id: str
    repeat: int
    arms: tuple[ArmFacts, ...]
    calibration: CalibrationResult | None = None
    looks: tuple[int, ...] = ()


def split_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """The scenario and the settings of `SCENARIO[:KEY=VALUE[,KEY=VALUE]...]`.

    A colon or a comma that no `KEY=` follows belongs to the name or to the value.
    """
    name, *rest = _FIRST_SETTING.split(text, maxsplit=1)
    if not name:
        raise UsageError(f"{text!r} names no scenario", hint="for example udp-netpass:qemu.source=reference")
    return name, tuple(_NEXT_SETTING.split(rest[0])) if rest else ()


def label_arms(arms: Sequence[str]) -> tuple[str, ...]:
    """Labels for arms as they were given: unique, since an arm may be compared with itself."""
    labels: list[str] = []
    for text in arms:
        count = sum(1 for earlier in arms[: len(labels)] if earlier == text)
        labels.append(f"{text} #{count + 1}" if count else text)
    return tuple(labels)
