"""The command `switchover`. Standard output carries results, standard error everything else."""

from __future__ import annotations

from harness.cli.app import main

__all__ = ["main"]
