"""The nested lab for real: vhost rows under another host kernel, each with its ledger. Some ten minutes for each round under TCG in TCG."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(4 * 3600)]

ROUNDS = 2
MECHANISMS = ("none", "tap-handover", "netpass")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All runs of one first-level guest, by mechanism."""
    results = tmp_path_factory.mktemp("nested")
    command = [
        sys.executable, "-c", "from harness.cli import main; main()", "run", *(f"vhost-{name}" for name in MECHANISMS), "--host-kernel", "debian",
        "--repeat", str(ROUNDS), "--results", str(results), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    console = Path(results, "nested-console.log")
    assert done.returncode in (0, 1), f"{done.stderr[-1000:]}\n{console.read_text()[-3000:] if console.exists() else ''}"
    found: dict[str, list[dict[str, Any]]] = {}
    for result in json.loads(done.stdout):
        found.setdefault(result["mechanism"], []).append(result)
    return found


def to_guest(result: dict[str, Any]) -> dict[str, Any]:
    return next(stream for stream in result["streams"] if stream["direction"] == "to-guest")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_row_ran_with_vhost_s_own_workers_and_accounts_for_every_packet(rows, mechanism):
    assert len(rows[mechanism]) == ROUNDS
    for result in rows[mechanism]:
        assert result["outcome"] == "completed", result["notes"]
        assert [stream["ledger"]["unexplained"] for stream in result["streams"]] == [0, 0], result["notes"]
        # the source's worker and the destination's: each delivered frames
        assert result["figures"]["vhost_woken_m0"] > 0, result["figures"]
        assert result["figures"]["vhost_woken_m1"] > 0, result["figures"]
        assert any(note.startswith("vhost: vhost-") for note in result["notes"]), result["notes"]


def test_what_arrives_while_nobody_runs_is_lost_without_a_mechanism(rows):
    for result in rows["none"]:
        assert to_guest(result)["lost"] > 0


def test_tap_handover_loses_doubles_and_reorders_nothing(rows):
    for result in rows["tap-handover"]:
        stream = to_guest(result)
        assert (stream["lost"], stream["duplicated"], stream["reordered"]) == (0, 0, 0), result["notes"]
        assert result["figures"]["copied"] > 0


def test_netpass_says_that_it_leaves_vhost_out_and_why(rows):
    for result in rows["netpass"]:
        assert to_guest(result)["lost"] > 0
        assert any("frames of netdev 'net0-netdev' are not passed: Vhost is not supported" in note for note in result["notes"]), result["notes"]
