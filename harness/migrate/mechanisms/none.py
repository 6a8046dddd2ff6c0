"""Nothing is done for the frames: what stock QEMU does to them."""

from __future__ import annotations

from typing import ClassVar

from harness.migrate.mechanisms.base import Mechanism
from harness.model.scenario import MigrationMode

__all__ = ["NoMechanism"]


class NoMechanism(Mechanism):
    """The control."""

    name: ClassVar[str] = "none"
    modes: ClassVar[frozenset[MigrationMode]] = frozenset(MigrationMode)
