"""A baseline: what the runs of one key came to, with all their values, so that it can be judged against without their directories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from harness.model.result import QemuPair

__all__ = ["PARTS", "Baseline", "BaselineReading", "RunKey"]


class RunKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run may be compared with. `qemu` are names as in `switchover qemu list`, not builds: a newer build of the same name is what a
    baseline is there to judge. `scenario` is the name with a digest of all settings that the run had."""

    host: str
    accelerator: str
    qemu: str
    kernel: str
    scenario: str

    def digest(self, *, without: Iterable[str] = ()) -> str:
        """A short name of the key, or of its parts but for some."""
        parts = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in set(without)}
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]

    def differences(self, other: RunKey) -> tuple[str, ...]:
        """The parts in which two keys differ."""
        return tuple(name for name in PARTS if getattr(self, name) != getattr(other, name))


PARTS: tuple[str, ...] = RunKey.__struct_fields__


class BaselineReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`values`: one a run, None where it had none."""

    unit: str
    resolution: float
    values: tuple[float | None, ...]


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of a baseline's file. `set_at`: ISO 8601, UTC; `builds`: the QEMUs it was made with."""

    schema_version: Literal[1] = 1
    key: RunKey
    set_at: str
    runs: tuple[str, ...]
    builds: QemuPair
    readings: dict[str, BaselineReading]
    note: str = ""
