"""The conformance table: what pytest's results come to, part by part."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.cli.suite import _parts
from harness.errors import TestbedError
from harness.report.conformance import State, conformance, conformance_table, exit_code
from harness.resources import suite_resources

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
{cases}
</testsuite></testsuites>"""
PASSED = '<testcase classname="tests.migration.test_{0}" name="{1}"/>'
FAILED = '<testcase classname="test_{0}" name="{1}"><failure message="assert 3 == 0">def x(): ...</failure></testcase>'
BROKE = '<testcase classname="test_{0}" name="{1}"><error message="DeadlineError: the guest was not ready">...</error></testcase>'
SKIPPED = '<testcase classname="test_{0}" name="{1}"><skipped type="pytest.skip" message="Skipped: QEMU 7.2 lacks {2}">x</skipped></testcase>'
TITLES = {"none": "stock", "netpass": "passes", "local-tap": "takes over"}


def table(tmp_path, *cases: str, features: dict[str, str | None] | None = None):
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT.format(cases="\n".join(cases)))
    return conformance(junit, titles=TITLES, qemu="7.2", destination="7.2", kernel=None, features=features or {})


def test_each_part_has_its_state_and_its_reason(tmp_path):
    found = table(
        tmp_path, PASSED.format("none", "a"), PASSED.format("none", "b"), FAILED.format("netpass", "c"), PASSED.format("netpass", "d"),
        SKIPPED.format("local_tap", "e", "local-tap"), SKIPPED.format("local_tap", "f", "local-tap"),
    )  # fmt: skip
    assert [(row.name, row.state, row.passed, row.failed, row.skipped) for row in found.rows] == [
        ("none", State.WORKS, 2, 0, 0), ("netpass", State.BROKEN, 1, 1, 0), ("local-tap", State.SKIPPED, 0, 0, 2),
    ]  # fmt: skip
    assert found.rows[1].why == ("c: assert 3 == 0",)
    assert found.rows[2].why == ("QEMU 7.2 lacks local-tap",)
    assert exit_code(found) == 1
    text = conformance_table(found)
    assert "broken" in text
    assert "QEMU 7.2 lacks local-tap" in text


def test_a_testbed_that_broke_is_no_verdict_on_the_qemu(tmp_path):
    found = table(tmp_path, PASSED.format("none", "a"), BROKE.format("none", "b"))
    assert found.rows[0].state is State.NOT_JUDGED
    for said in ("TestbedError: the destination did not come up", "CommandRefusedError: source refused object-add: no"):
        broke = FAILED.format("none", "b").replace("assert 3 == 0", said)
        assert table(tmp_path, PASSED.format("none", "a"), broke).rows[0].state is State.NOT_JUDGED
    assert exit_code(found) == 2


def test_a_part_that_lacks_something_for_some_tests_works_in_part(tmp_path):
    found = table(tmp_path, PASSED.format("none", "a"), SKIPPED.format("none", "b", "postcopy"))
    assert found.rows[0].state is State.IN_PART
    assert exit_code(found) == 0


def test_where_all_is_skipped_nothing_is_claimed(tmp_path):
    assert exit_code(table(tmp_path, SKIPPED.format("netpass", "a", "netpass"))) == 3


def test_features_without_tests_of_their_own_are_listed(tmp_path):
    text = conformance_table(table(tmp_path, PASSED.format("none", "a"), features={"multifd": None, "netpass": "x", "vm-started": "7.2 lacks it"}))
    assert "multifd" in text
    assert "7.2 lacks it" in text
    assert conformance_table(table(tmp_path, PASSED.format("none", "a")), form="github").count("|") > 10


def test_a_missing_or_broken_result_is_the_testbeds_fault(tmp_path):
    with pytest.raises(TestbedError, match="pytest left no result"):
        conformance(tmp_path / "none.xml", titles=TITLES, qemu="x", destination="x", kernel=None, features={})


def test_the_suite_says_what_each_part_is_about():
    parts = _parts(suite_resources())
    assert next(iter(parts)) == "none"
    assert {"netpass", "redirect", "local-tap", "tap-handover", "tcp"} <= parts.keys()
    assert all(parts.values())


def test_an_unknown_part_names_those_there_are(tmp_path):
    answer = CliRunner().invoke(app, ["suite", "--only", "nothing", "--results", str(tmp_path)])
    assert "the suite has no part 'nothing'" in str(answer.exception)
    assert "netpass" in str(answer.exception.hint)
    assert not list(Path(tmp_path).iterdir())
