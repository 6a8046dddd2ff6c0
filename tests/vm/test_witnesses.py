"""Other people's clients beside our own probes, through a switchover that loses frames. Counts only."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.nightly  # long for what it adds to the unit tests of each client
@pytest.mark.timeout(300)
def test_ping_iperf3_and_irtt_stand_beside_our_probes(tmp_path):
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "witnesses", "--json", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = json.loads(done.stdout)
    assert result["outcome"] == "completed", result["notes"]
    witnesses = {each["kind"]: each for each in result["witnesses"]}
    assert witnesses.keys() == {"icmp", "irtt", "iperf3"}
    for kind, each in witnesses.items():
        assert each["error"] == "", kind
        assert each["figures"], kind
        assert each["capture"], kind
        shared = each["figures"].keys() & each["capture"].keys()
        assert shared, f"{kind} has no figure that the capture has too"
    for kind in ("icmp", "irtt"):
        assert witnesses[kind]["figures"]["sent"] > witnesses[kind]["figures"]["received"] > 0, "it too lost packets in the switchover"
    assert sum(stream["ledger"]["unexplained"] for stream in result["streams"]) == 0
