"""The suite that users run on their own QEMU: `switchover suite`, or pytest with the plugin's options."""

from __future__ import annotations

import pytest

from harness.migrate.mechanisms import MECHANISMS
from harness.migrate.mechanisms.base import Mechanism


@pytest.fixture
def mechanism(monkeypatch):
    """Makes a mechanism of a test known, under the name that is returned."""

    def add(kind: type[Mechanism]) -> str:
        monkeypatch.setitem(MECHANISMS, "of-this-test", kind)
        return "of-this-test"

    return add
