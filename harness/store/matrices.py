"""A matrix's folder: its runs, and `matrix.json`, which is whole after every cell."""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness.errors import TestbedError, UsageError
from harness.model.matrix import MatrixFacts

__all__ = ["read_matrix", "write_matrix"]

_NAME = "matrix.json"


def write_matrix(folder: Path, facts: MatrixFacts) -> None:
    """Replace the folder's file: whoever is killed meanwhile leaves the one before. `TestbedError` where it can't be written."""
    fresh = folder / f".{_NAME}.new"
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
        fresh.replace(folder / _NAME)
    except OSError as error:
        raise TestbedError(f"{folder} can't be written: {error.strerror}", hint="choose another folder with --results") from error


def read_matrix(folder: Path) -> MatrixFacts:
    """What an earlier matrix came to. `UsageError` where there is none, or one that can't be read."""
    path = folder / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=MatrixFacts)
    except OSError as error:
        raise UsageError(f"{folder} has no matrix to go on with: {error.strerror}", hint="give the folder that `switchover matrix` named") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} can't be read: {error}", hint="begin a new matrix") from error
