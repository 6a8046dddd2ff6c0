"""The pytest plugin in a folder of somebody's own, outside of the repository, as pytest loads it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from plugin_fakes import CONFTEST

from harness.plugin.pool import differences


@pytest.fixture
def folder(pytester):
    """Writes tests, runs them, and returns what pytest said, its status and its JUnit file."""
    pytester.makeconftest(CONFTEST.format(unit=str(Path(__file__).parent)))

    def run(text: str, *words: str) -> tuple[str, int, ET.Element]:
        pytester.makepyfile(test_mine=text)
        done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--junitxml=junit.xml", *words)
        junit = pytester.path / "junit.xml"
        root = ET.parse(junit).getroot() if junit.is_file() else ET.Element("none")
        return "\n".join([*done.outlines, *done.errlines]), int(done.ret), root

    return run


def test_a_lost_packet_fails_the_test_and_is_told_with_its_phase(folder, pytester):
    said, status, _ = folder("def test_it(guest_pair):\n    assert guest_pair.record().lost == 0\n", "--switchover-results=kept")
    assert status == 1
    assert "assert 20 == 0" in said
    assert "what became of the packets" in said
    assert "lost of udp: 20 sent in stopped (100..119)" in said
    assert "udp packet 100: stranded" in said
    assert "and 17 more: switchover why" in said
    assert (pytester.path / "kept" / "20260102T030405Z-demo-10abcd" / "result.json").is_file()


def test_figures_of_every_recording_are_junit_properties(folder):
    _, status, junit = folder("def test_it(guest_pair):\n    guest_pair.record()\n    guest_pair.record()\n")
    assert status == 0
    found = {each.get("name"): each.get("value") for each in junit.iter("property")}
    assert found["lost"] == "20"
    assert found["2.lost"] == "20"
    assert found["streams.udp.sent"] == "200"
    assert found["qemu"] == "7.2.22"
    assert float(found["compute_ms"]) == 20.0
    assert found["accelerator"] == "tcg"


def test_what_this_environment_lacks_is_a_skip_and_a_broken_testbed_says_so(folder):
    said, status, junit = folder(
        "def test_lacks(guest_pair):\n    guest_pair.lacks()\ndef test_broke(guest_pair):\n    guest_pair.broke()\n", "-rs"
    )
    assert status == 1
    assert "QEMU 7.2 lacks netpass" in said
    assert "DeadlineError: the guest was not ready" in said
    assert "the testbed broke; this says nothing about the claim under test" in said
    assert [case.find("skipped") is not None for case in junit.iter("testcase")] == [True, False]


def test_a_test_that_breaks_names_the_folder_with_what_there_is_of_its_run(folder, pytester):
    text = "def test_broke(guest_pair):\n    guest_pair.broke()\ndef test_fails(guest_pair):\n    assert guest_pair.number == 0\n"
    said, status, junit = folder(text, "--switchover-results=kept", "--switchover-keep=failed")
    assert status == 1
    folders = {str(path.relative_to(pytester.path)) for path in (pytester.path / "kept").iterdir()}
    assert len(folders) == 2
    broke, fails = ({each.get("name"): each.get("value") for each in case.iter("property")}["kept"] for case in junit.iter("testcase"))
    assert {broke, fails} == folders
    assert f"kept: {broke}" in said
    assert f"what there is of it: {fails}" in said
    assert [f"kept: {broke}" in (case.find("failure").text or "") for case in junit.iter("testcase")] == [True, False]


def test_what_broke_in_a_test_that_passes_goes_with_its_recordings(folder, pytester):
    text = """
import pytest
from harness.errors import DeadlineError
def test_it(guest_pair):
    with pytest.raises(DeadlineError):
        guest_pair.broke()
    guest_pair.keep(DeadlineError(""))
"""
    assert folder(text, "--switchover-results=kept", "--switchover-keep=failed")[1] == 0
    assert list((pytester.path / "kept").iterdir()) == []
    assert folder(text, "--switchover-results=kept")[1] == 0
    assert len(list((pytester.path / "kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "source", "destination"),
    [
        ((), "'reference'", "'reference'"), (("--switchover-qemu=mine",), "'mine'", "None"),
        (("--switchover-qemu-destination=other",), "'reference'", "'other'"),
    ],
)  # fmt: skip
def test_the_option_is_stronger_than_a_tests_own_qemu(folder, words, source, destination):
    text = (
        "import pytest\n@pytest.mark.switchover(qemu='reference', requires=['netpass'], queues=2)\ndef test_it(guest_pair, opened_settings):\n"
        f"    (one,) = opened_settings\n    assert (one.qemu, one.qemu_destination) == ({source}, {destination})\n"
        "    assert one.requires == ('netpass',)\n    assert one.network['queues'] == 2\n"
    )
    said, status, _ = folder(text, *words)
    assert status == 0, said


@pytest.mark.parametrize(("marker", "words"), [("colour='red'", "knows no 'colour'"), ("scope='class'", "scope is not 'class'")])
def test_a_marker_that_can_not_be_meant_is_named(folder, marker, words):
    said, status, _ = folder(f"import pytest\n@pytest.mark.switchover({marker})\ndef test_it(guest_pair):\n    pass\n")
    assert status == 1
    assert words in said


SHARED = """
import pytest
pytestmark = pytest.mark.switchover(scope="{scope}")
def test_one(guest_pair):
    guest_pair.record()
    assert guest_pair.number == 1
def test_two(guest_pair):
    assert guest_pair.number == 1
    assert guest_pair.directories == []
    guest_pair.dirty = True
def test_three(guest_pair):
    assert guest_pair.number == 2
@pytest.mark.switchover(scope="{scope}", queues=2)
def test_four(guest_pair):
    assert guest_pair.number == 3
def test_five(guest_pair):
    assert guest_pair.number == 2
"""


@pytest.mark.parametrize("scope", ["module", "session"])
def test_a_shared_pair_is_used_again_until_a_test_leaves_it_changed(folder, scope):
    said, status, _ = folder(SHARED.format(scope=scope), "--log-level=INFO", "-rA")
    assert status == 0, said
    assert "the pair is not used again: status: was 'running', is 'paused'" in said


@pytest.mark.parametrize(("words", "shown"), [((), 0), (("-v",), 1), (("-v", "--log-cli-level=INFO"), 0), (("-q",), 0)])
def test_what_goes_on_is_shown_live_when_asked_for(folder, words, shown):
    said, status, _ = folder(SHARED.format(scope="module"), *words)
    assert status == 0
    assert said.split("\n").count("    the pair is not used again: status: was 'running', is 'paused'") == shown


def test_a_pair_of_each_tests_own_is_the_rule(folder):
    said, status, _ = folder("def test_one(guest_pair):\n    assert guest_pair.number == 1\ndef test_two(guest_pair):\n    assert guest_pair.number == 2\n")
    assert status == 0, said


def test_a_test_can_go_through_all_mechanisms(folder):
    _, status, junit = folder("def test_it(guest_pair, mechanism):\n    assert mechanism\n")
    names = {case.get("name") for case in junit.iter("testcase")}
    assert status == 0
    assert {"test_it[none]", "test_it[tap-handover]", "test_it[netpass]"} <= names


def test_repeats_and_what_is_kept(folder, pytester):
    text = "def test_it(guest_pair, request):\n    lost = guest_pair.record().lost\n    assert lost == 20 or 'bad' in request.node.name\n"
    text += "def test_bad(guest_pair):\n    assert guest_pair.record().lost == 0\n"
    _, status, junit = folder(text, "--switchover-repeat=2", "--switchover-results=kept", "--switchover-keep=failed")
    assert status == 1
    assert len(list(junit.iter("testcase"))) == 4
    assert len([path for path in (pytester.path / "kept").iterdir() if path.is_dir()]) == 2


def test_marker_and_fixtures_are_documented(folder):
    assert "switchover(requires=[...]" in folder("", "--markers")[0]
    said = folder("", "--fixtures", "-v")[0]
    for name in ("guest_pair", "udp", "tcp", "ping", "lab", "mechanism"):
        assert f"\n{name}" in said
    said = folder("", "--help")[0]
    for name in ("qemu", "qemu-destination", "kernel", "image", "accel", "repeat", "results", "keep"):
        assert f"--switchover-{name}" in said


def test_differences_are_named_key_by_key():
    before = {"status": "running", "capabilities": {"a": False, "b": False}}
    after = {"status": "running", "capabilities": {"a": True, "b": False}}
    assert differences(before, after) == ["capabilities: a was False, is True"]
    assert differences(before, before) == []
