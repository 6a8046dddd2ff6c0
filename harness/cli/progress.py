"""Progress for people: one changing line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["Reporter", "reporting"]


class Reporter:
    """Called with what is being done now."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._began = time.monotonic()
        self._status = console.status("") if console.is_terminal and not quiet else None

    def __call__(self, text: str) -> None:
        if self._quiet:
            return
        if self._status is not None:
            self._status.update(text)
            self._status.start()
        else:
            print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()


@contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Reporter]:
    """A reporter on standard error."""
    reporter = Reporter(Console(stderr=True), quiet=quiet)
    try:
        yield reporter
    finally:
        reporter.close()
