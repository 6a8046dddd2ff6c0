"""tools/setup installs what the code says that it needs."""

from __future__ import annotations

import re
from pathlib import Path

from harness.builds import BUILD_PACKAGES

SETUP = Path(__file__).resolve().parents[2] / "tools/setup"


def arrays() -> dict[str, set[str]]:
    """The packages of each array in tools/setup."""
    found = re.findall(r"^(\w*needs)=\(\n(.*?)^\)", SETUP.read_text(), re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r'"[^"=]+=([^"]+)"', content)) for name, content in found}


def test_everything_that_a_build_needs_is_installed_and_nothing_else():
    packages = arrays()
    always_asked = {"python3-venv"}  # by trying it, as no file says it
    assert set(BUILD_PACKAGES) <= packages["needs"] | packages["build_needs"] | always_asked
    assert packages["build_needs"] <= set(BUILD_PACKAGES)
