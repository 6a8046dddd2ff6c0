"""The pytest plugin on real guests, from a folder of somebody's own, and the suite by one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

MINE = '''
import pytest

def test_no_packet_is_lost(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
    assert stream.ledger.lost == 0

BOOTS = []
SHARED = pytest.mark.switchover(scope="module")

@SHARED
def test_the_first_migrates_the_shared_pair(guest_pair):
    BOOTS.append(guest_pair.succeed("cat /proc/sys/kernel/random/boot_id"))
    guest_pair.migrate()

@SHARED
def test_the_second_finds_the_same_pair_and_leaves_it_changed(guest_pair, udp):
    assert guest_pair.succeed("cat /proc/sys/kernel/random/boot_id") in BOOTS
    with udp(rate_pps=500) as stream:
        guest_pair.migrate(mechanism="tap-handover")
    assert stream.ledger.lost == 0
    guest_pair.qmp("migrate-set-parameters", {"announce-rounds": 7})
    guest_pair.succeed("sleep 1000 >/dev/null 2>&1 &")

@SHARED
def test_the_third_gets_a_pair_as_it_should_be(guest_pair):
    assert guest_pair.qmp("query-migrate-parameters")["announce-rounds"] != 7
    assert guest_pair.lab.mobile.spec.name == "m0"
    assert "sleep 1000" not in guest_pair.succeed("ps")

def test_one_that_fails_shows_what_became_of_the_packets(guest_pair, udp):
    with udp(rate_pps=1000, direction="to-guest") as stream:
        guest_pair.migrate(hold_ms=50)
    assert stream.ledger.lost == 0
'''


@pytest.mark.nightly
def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "test_mine.py").write_text(MINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = ["-p", "no:cacheprovider", "--junitxml=junit.xml", "--switchover-results=runs", "--switchover-keep=failed", "--log-level=INFO"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    cases = {case.get("name"): case for case in ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")}
    failed = [name for name, case in cases.items() if case.find("failure") is not None or case.find("error") is not None]
    assert failed == ["test_one_that_fails_shows_what_became_of_the_packets"], done.stdout
    assert len(cases) == 5
    assert "sent in stopped" in done.stdout
    assert "stranded" in done.stdout
    properties = {each.get("name"): each.get("value") for each in cases["test_no_packet_is_lost"].iter("property")}
    assert properties["lost"] == "0"
    assert float(properties["compute_ms"]) >= 150
    # the failed test's raw data is kept, and that of the passed ones is not
    (kept,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert "one_that_fails" in kept.name
    assert json.loads((kept / "result.json").read_text())["streams"][0]["lost"] > 0


@pytest.mark.nightly
def test_the_suite_by_one_command(tmp_path):
    command = [sys.executable, "-m", "harness.cli", "suite", "--qemu", "system", "--only", "netpass", "--results", str(tmp_path), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert row["name"] == "netpass"
    # whether the host's QEMU has it or not, nothing is broken, and a skip has its exact reason
    if found["features"]["netpass"]:
        assert (done.returncode, row["state"]) == (3, "skipped")
        assert found["features"]["netpass"] in row["why"]
    else:
        assert (done.returncode, row["state"]) == (0, "works")
    (folder,) = tmp_path.iterdir()
    assert {"junit.xml", "conformance.md", "conformance.json"} <= {path.name for path in folder.iterdir()}


GUESTLESS = '''"""What is tested: nothing that needs a guest."""
import pytest
from harness.errors import DeadlineError, FeatureLackError

def test_works(): pass
def test_is_broken(): assert 3 == 0, "three packets are gone"
def test_lacks(): raise FeatureLackError("this QEMU lacks netpass")
'''
BROKE = '''"""A testbed that breaks."""
import pytest
from harness.errors import DeadlineError

@pytest.fixture
def pair(): raise DeadlineError("the guest was not ready")
def test_breaks(pair): pass
'''


def test_a_suite_of_ones_own_ends_with_a_table(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "test_my_feature.py").write_text(GUESTLESS)
    (mine / "test_other.py").write_text(BROKE)
    command = [sys.executable, "-m", "harness.cli", "suite", "--tests", str(mine), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "three packets are gone" in done.stdout
    (folder,) = (tmp_path / "results").iterdir()
    assert str(folder) in done.stdout
    found = json.loads((folder / "conformance.json").read_text())
    rows = {row["name"]: (row["state"], row["passed"], row["failed"], row["errors"], row["skipped"]) for row in found["rows"]}
    assert rows == {"my-feature": ("broken", 1, 1, 0, 1), "other": ("not judged", 0, 0, 1, 0)}
    assert "my-feature" in (folder / "conformance.md").read_text()
