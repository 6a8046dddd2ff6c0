"""The reference that is made from the code: whole, and of one mind with what it describes."""

from __future__ import annotations

import re

import msgspec
import pytest
from commands import refusal
from typer.testing import CliRunner

from harness.cli.app import app
from harness.cli.reference import reference_text
from harness.errors import UsageError
from harness.migrate.mechanisms import MECHANISMS
from harness.model.scenario import Scenario, TrafficSection
from harness.vm.discovery import FEATURES


def test_every_command_and_its_options_are_there():
    text = reference_text(app, "commands")
    for words in ("switchover run SCENARIO...", "switchover baseline check RUN...", "switchover bisect", "switchover qemu build"):
        assert f"## `{words}" in text
    assert "bisect-step" not in text
    for option in ("--repeat", "--set", "--switchover"):
        assert (f"`{option}`" in text) == (option != "--switchover")
    for name in re.findall(r"^## `switchover ([a-z -]+?)(?: [A-Z\[].*)?`$", text, re.MULTILINE):
        assert "no command" not in (refusal(name) or ""), name


def test_every_key_of_a_scenario_is_there():
    text = reference_text(app, "scenario")
    for struct in (Scenario, TrafficSection):
        for field in msgspec.structs.fields(struct):
            assert f"| `{field.encode_name}` |" in text
    assert "one of `auto`, `kvm`, `tcg`" in text
    assert "| `name` | string | required |" in text


def test_features_and_mechanisms_are_all_there_and_say_what_they_do():
    features, mechanisms = reference_text(app, "features"), reference_text(app, "mechanisms")
    assert all(f"| `{name}` |" in features for name in FEATURES)
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", mechanisms, re.MULTILINE))
    assert rows.keys() == MECHANISMS.keys()
    assert all(len(said) > 20 for said in rows.values())


def test_tables_are_whole():
    for line in reference_text(app).splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5), line


def test_an_unknown_part_is_named():
    with pytest.raises(UsageError, match="no part 'colours'"):
        reference_text(app, "colours")
    assert CliRunner().invoke(app, ["reference", "features"]).stdout.startswith("# Features")
