"""Where images, QEMU builds and fetched QEMU versions are kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """The cache folder, absolute; it is not created.

    ``$SWITCHOVER_CACHE``, else ``$XDG_CACHE_HOME/switchover``, else ``~/.cache/switchover``; an empty variable counts
    as unset.
    """
    if own := os.environ.get("SWITCHOVER_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # the XDG specification tells applications to ignore relative paths
    folder = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "switchover"
