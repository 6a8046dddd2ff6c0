"""Baselines as files: one a key, in the folder `baselines` of the results or in one of your own (to keep under version control)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from harness.analysis.metrics import readings
from harness.errors import TestbedError, UsageError
from harness.model.baseline import PARTS, Baseline, BaselineReading, RunKey
from harness.model.result import RunResult
from harness.store.identity import run_key

__all__ = ["FOLDER", "BaselineFolder", "grouped", "make_baseline"]

FOLDER = "baselines"


def grouped(results: Sequence[RunResult]) -> dict[RunKey, list[RunResult]]:
    """Runs that may be compared with each other, in the order given."""
    found: dict[RunKey, list[RunResult]] = {}
    for result in results:
        found.setdefault(run_key(result), []).append(result)
    return found


def make_baseline(results: Sequence[RunResult], *, note: str = "") -> Baseline:
    """The baseline of runs with one key, all of their readings in the order of the runs."""
    (key,) = grouped(results)
    taken = [readings(result) for result in results]
    names = dict.fromkeys(name for each in taken for name in each)
    return Baseline(
        key=key, set_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), runs=tuple(result.run_id for result in results),
        builds=results[-1].qemu, note=note,
        readings={
            name: BaselineReading(
                unit=str(next(each[name].unit for each in taken if name in each)),
                resolution=max(each[name].resolution for each in taken if name in each),
                values=tuple(each[name].value if name in each else None for each in taken),
            )
            for name in names
        },
    )  # fmt: skip


class BaselineFolder:
    """A folder of baselines. Each is written at once or not at all; writers of different keys don't meet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, baseline: Baseline) -> Path:
        """Write a baseline; one of the same key is replaced."""
        target = self.path / f"{baseline.key.scenario}-{baseline.key.digest()}.json"
        fresh = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=1) + b"\n")
            fresh.replace(target)
        except OSError as error:
            raise TestbedError(f"{target} can't be written: {error.strerror}") from error
        return target

    def all(self) -> list[Baseline]:
        """Every baseline; `UsageError` for a damaged file, by name."""
        found = []
        for path in sorted(self.path.glob("*.json")) if self.path.is_dir() else []:
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Baseline))
            except (OSError, msgspec.MsgspecError) as error:
                raise UsageError(f"{path} is no baseline: {error}", hint="remove it, and set it anew") from error
        return found

    def find(self, key: RunKey, *, across: Sequence[str] = ()) -> tuple[Baseline | None, str]:
        """The baseline of a key, or of one that differs in the parts named only (the one set last); and what it differs in, or
        why there is none."""
        unknown = [part for part in across if part not in PARTS]
        if unknown:
            raise UsageError(f"a key has no part {unknown[0]!r}", hint=f"its parts are {', '.join(PARTS)}")
        candidates = sorted(self.all(), key=lambda each: each.set_at, reverse=True)
        for baseline in candidates:
            if baseline.key == key:
                return baseline, ""
        for baseline in candidates:
            if baseline.key.digest(without=across) == key.digest(without=across):
                apart = baseline.key.differences(key)
                return baseline, "differs in " + "; ".join(f"{p}: {getattr(baseline.key, p)} / {getattr(key, p)}" for p in apart)
        near = min(candidates, key=lambda each: len(each.key.differences(key)), default=None)
        if near is None:
            return None, f"there is no baseline in {self.path}"
        return None, f"the nearest baseline differs in {', '.join(near.key.differences(key))}"
