"""A whole lab without privileges: what an ordinary user who may open /dev/net/tun has, or root in a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

# The kernel lets user 0 map itself into a namespace with CAP_SETFCAP only; containers have it, and it serves for nothing else here.
SETFCAP = 1 << 31
NO_PRIVILEGES = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"]


@pytest.fixture
def ordinary():
    """Runs a command with an ordinary user's privileges; for root, that is without the capabilities."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv (util-linux) is needed to give root's privileges up")
        prefix = NO_PRIVILEGES
    status = subprocess.run([*prefix, "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    assert int(effective, 16) in (0, SETFCAP)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*prefix, sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, timeout=250, check=False)

    return run


@pytest.mark.nightly
def test_a_run_loses_nothing_and_is_fully_accounted_for(ordinary, tmp_path):
    done = ordinary("run", "udp-tap-handover", "--results", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["verdict"] == "pass"
    for stream in result["streams"]:
        assert (stream["lost"], stream["ledger"]["unexplained"]) == (0, 0)


def test_doctor_says_what_is_different_and_how_to_mend_it(ordinary):
    done = ordinary("doctor", "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert "user" in found["namespaces"]["why"]
    for check in found.values():
        assert check["status"] == "ok" or check["why"]
    if found["userfaultfd"]["status"] != "ok":
        assert "sysctl" in found["userfaultfd"]["mend"]


@pytest.mark.nightly
def test_the_suite_runs_and_nothing_is_broken(ordinary, tmp_path):
    done = ordinary("suite", "--only", "none", "--only", "tap-handover", "--results", str(tmp_path), "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["none"]["state"] in ("works", "works in part"), done.stderr[-3000:]
    assert rows["none"]["failed"] == rows["tap-handover"]["failed"] == 0
