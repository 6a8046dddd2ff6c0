"""Labs side by side, and what goes wrong while one is brought up."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


def switchover(*words: str, timeout_s: float = 200.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from harness.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_two_labs_at_once_give_the_same_ledgers(tmp_path):
    words = ["run", "udp-tap-handover", "--set", "network.peer=namespace", "--results", str(tmp_path), "--json"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: switchover(*words), range(2)))
    for run in done:
        assert run.returncode == 0, run.stderr
        (result,) = json.loads(run.stdout)
        for stream in result["streams"]:
            assert (stream["lost"], stream["duplicated"], stream["reordered"]) == (0, 0, 0)
            assert stream["ledger"]["unexplained"] == 0


def test_the_analysis_can_be_repeated_from_the_directory_alone(tmp_path):
    run = switchover("run", "udp-none", "--set", "network.peer=namespace", "--results", str(tmp_path), "--json")
    (first,) = json.loads(run.stdout)
    again = switchover("analyze", str(tmp_path / first["run_id"]), "--json")
    assert json.loads(again.stdout) == [first]
    lost = next(s for s in first["streams"] if s["direction"] == "to-guest")
    assert lost["lost"] > 0
    folder = tmp_path / first["run_id"]
    for name in ("scenario.toml", "host.json", "features.json", "run.json", "result.json", "events.jsonl", "log.txt"):
        assert (folder / name).stat().st_size > 0, name
    assert {p.name for p in (folder / "capture").glob("*.pcapng")} >= {"peer.pcapng", "source.pcapng", "destination.pcapng"}


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["qemu.source=/nonexistent/qemu"], 4, "No such file"),
        (["guest.image=/nonexistent"], 4, "guest image"),
        (["guest.kernel=/etc/hostname"], 4, "/etc/hostname"),
        (["migration.capabilities=['x-nonsense-capability']"], 3, "x-nonsense-capability"),
        (["guest.machine=no-such-machine"], 3, "no-such-machine"),
        (["guest.cpu=no-such-cpu"], 2, "no-such-cpu"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_stays(tmp_path, settings, code, words):
    arguments = [word for setting in settings for word in ("--set", setting)]
    run = switchover("run", "udp-none", "--set", "network.peer=namespace", *arguments, "--results", str(tmp_path / "r"))
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_a_results_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    run = switchover("run", "udp-none", "--results", str(Path(tmp_path / "file" / "below")))
    assert run.returncode == 2
    assert "results can't be written" in run.stderr
