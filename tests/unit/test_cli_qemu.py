"""`switchover qemu build`: the options reach the builder as they were given."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import harness.builds
from harness.builds import QemuInstall
from harness.cli.app import app

INSTALL = QemuInstall(
    name="mine", argv_prefix=("/x/qemu",), version="10.0.13", data_dirs=(), build_id="ab", origin="here", path="/x/qemu"
)


@pytest.fixture
def asked(monkeypatch):
    """The arguments of the last build."""
    seen: dict[str, object] = {}

    def build(name, **arguments):
        seen.update(arguments, name=name)
        return INSTALL

    monkeypatch.setattr(harness.builds, "build", build)
    return seen


def test_the_testbeds_configuration_is_the_default(asked):
    result = CliRunner().invoke(app, ["qemu", "build", "mine"])
    assert result.exit_code == 0, result.output
    assert (asked["minimal"], asked["options"], asked["series"], asked["source"]) == (True, [], [], "debian")
    assert "mine: QEMU 10.0.13 (/x/qemu)" in result.output


def test_a_configuration_of_ones_own_and_series_in_their_order(asked):
    words = ["--no-minimal", "--option", "--enable-a", "--option", "--enable-b"]
    series = ["--series", "one", "--series", "https://lore.example.org/list/2026-x@y/"]
    result = CliRunner().invoke(app, ["qemu", "build", "mine", *words, *series])
    assert result.exit_code == 0, result.output
    assert asked["minimal"] is False
    assert asked["options"] == ["--enable-a", "--enable-b"]
    assert asked["series"] == ["one", "https://lore.example.org/list/2026-x@y/"]
