"""Fresh folders for results."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import TestbedError

__all__ = ["fresh_folder", "fresh_name"]


def fresh_name(what: str) -> str:
    """`TIME-WHAT-ID`: sorts by time (UTC), and is nobody else's."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{what}-{secrets.token_hex(3)}"


def fresh_folder(results: Path, name: str, *, inner: tuple[str, ...] = ()) -> Path:
    """Make the folder `name` below `results`, with the `inner` ones in it. `TestbedError` when it can't be written."""
    path = results / name
    try:
        path.mkdir(parents=True)
        for each in inner:
            (path / each).mkdir()
    except OSError as error:
        raise TestbedError(f"results can't be written to {results}: {error.strerror}", hint="choose another folder with --results") from error
    return path
