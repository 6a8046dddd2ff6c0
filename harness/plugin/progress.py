"""What goes on while a test runs, line by line on the terminal: with `-v`, where logging is not shown live already."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

__all__ = ["shown_live"]

_LOGGER = "switchover"


class _Lines(logging.Handler):
    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.ensure_newline()
        self._reporter.write_line(f"    {record.getMessage()}")


@contextlib.contextmanager
def shown_live(config: pytest.Config) -> Iterator[None]:
    """For the length of a session."""
    reporter = config.pluginmanager.getplugin("terminalreporter")  # workers of xdist have none
    logged = config.pluginmanager.hasplugin("logging-plugin") and (config.getoption("log_cli_level") or config.getini("log_cli"))
    if reporter is None or config.option.verbose < 1 or logged:
        yield
        return
    logger, handler = logging.getLogger(_LOGGER), _Lines(reporter)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
