"""Long campaigns, by the command itself: `pytest tests/campaign -m nightly`. Counts only; what depends on timing is read from their tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def switchover(tmp_path: Path) -> Callable[..., Any]:
    """Run the command with --json, its results in `tmp_path`; returns what it printed. Skips where this environment lacks something."""

    def call(*words: str, codes: tuple[int, ...] = (0, 1)) -> Any:
        command = [sys.executable, "-c", "from harness.cli import main; main()", *words, "--json", "--results", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 3:
            pytest.skip(done.stderr.strip()[-500:])
        assert done.returncode in codes, f"exit code {done.returncode}: {done.stderr[-2000:]}"
        return json.loads(done.stdout)

    return call
