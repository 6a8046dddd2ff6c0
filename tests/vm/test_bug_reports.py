"""Bug reports of real runs: bundled, replayed, and made smaller."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from harness.resources import image_resources

pytestmark = pytest.mark.nightly  # two minutes where other work runs beside, as seven runs of guests are

PLANTED = Path(__file__).parents[1] / "data" / "planted-bug"


def switchover(*words: str | Path, timeout_s: float = 250.0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from harness.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """A run of `none`, which loses what arrives in the switchover."""
    results = tmp_path_factory.mktemp("lossy")
    words = ["network.peer=namespace", "traffic.0.rate_pps=200", "guest.memory=128M", "migration.hold_ms=60", "timing.settle_s=0.3", "timing.tail_s=0.3"]
    run = switchover("run", "udp-none", *(word for setting in words for word in ("--set", setting)), "--results", results, "--json")
    assert run.returncode == 0, run.stderr
    return results / json.loads(run.stdout)[0]["run_id"]


def concluded(done: subprocess.CompletedProcess[str]) -> Any:
    """What a replay said. A host too busy for sound runs may leave it at "cannot tell", after four runs that told nothing."""
    codes = {"reproduced": 0, "not reproduced": 1, "cannot tell": 5}
    assert done.returncode in codes.values(), done.stderr
    told = json.loads(done.stdout)
    assert codes[told["conclusion"]] == done.returncode
    if told["conclusion"] == "cannot tell":
        assert told["answers"].count(None) == 4
    return told


def unpacked(bundle: Path, folder: Path) -> Path:
    plain = zstandard.ZstdDecompressor().decompress(bundle.read_bytes(), max_output_size=256 << 20)
    (folder / "plain.tar").write_bytes(plain)
    with tarfile.open(folder / "plain.tar") as tar:
        tar.extractall(folder / "out", filter="data")
    return folder / "out"


def test_a_loss_is_bundled_and_seen_again(lossy, tmp_path):
    for name in ("a", "b"):
        made = switchover("bundle", lossy, "--output", tmp_path / f"{name}.tar.zst")
        assert made.returncode == 0, made.stderr
    bundle = tmp_path / "a.tar.zst"
    assert bundle.read_bytes() == (tmp_path / "b.tar.zst").read_bytes()
    assert bundle.stat().st_size < 10_000_000
    for path in unpacked(bundle, tmp_path).rglob("*"):
        for place in (lossy.parent, Path.home(), image_resources().parent):
            assert not path.is_file() or str(place).encode() not in path.read_bytes(), f"{path.name} names {place}"
    (tmp_path / "empty").mkdir()
    done = switchover("replay", bundle, "--yes", "--json", "--results", tmp_path / "again", cwd=tmp_path / "empty")
    told = concluded(done)
    assert told["conclusion"] != "not reproduced"
    assert False not in told["answers"]
    if told["conclusion"] == "reproduced":
        assert told["answers"][-1] is True
        assert sum(stream["lost"] for stream in told["results"][-1]["streams"]) > 0
    assert told["original"]["run_id"] == lossy.name
    assert "would be" not in done.stderr, "everything was here: nothing was to be fetched or built"
    report = switchover("report", "--text", bundle)
    assert "finding: packets lost, most of them stranded at source" in report.stdout
    again = switchover("analyze", bundle, "--json")
    assert json.loads(again.stdout)[0]["streams"] == told["original"]["streams"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_never_was_is_not_seen_again(lossy, tmp_path):
    """The same run with a result that claims duplicates."""
    run = tmp_path / lossy.name
    for path in lossy.rglob("*"):
        if path.is_file():
            (run / path.relative_to(lossy)).parent.mkdir(parents=True, exist_ok=True)
            (run / path.relative_to(lossy)).write_bytes(path.read_bytes())
    result = msgspec.json.decode((run / "result.json").read_bytes())
    next(stream for stream in result["streams"] if stream["direction"] == "to-guest")["duplicated"] = 5
    (run / "result.json").write_bytes(msgspec.json.encode(result))
    assert switchover("bundle", run, "--output", tmp_path / "x.tar.zst").returncode == 0
    done = switchover("replay", tmp_path / "x.tar.zst", "--yes", "--json", "--results", tmp_path / "again")
    told = concluded(done)
    assert told["conclusion"] != "reproduced"
    assert True not in told["answers"]
    if told["conclusion"] == "not reproduced":
        assert told["answers"].count(False) == told["needed"] == 3


@pytest.mark.timeout(7200)
def test_a_bug_in_a_series_is_made_small_and_replayed_with_an_empty_store(tmp_path, monkeypatch):
    """Four streams, three capabilities, two NICs; one stream, one capability and one NIC show the bug. The replay builds it in its sandbox."""
    built = switchover("qemu", "build", "planted", "--series", PLANTED, timeout_s=3600)
    assert built.returncode == 0, built.stderr
    run = switchover("run", PLANTED / "scenario.toml", "--results", tmp_path / "r", "--json")
    assert run.returncode == 1, run.stderr
    folder = tmp_path / "r" / json.loads(run.stdout)[0]["run_id"]
    made = switchover("bundle", folder, "--minimise", "--output", tmp_path / "small.tar.zst", "--results", tmp_path / "r", timeout_s=3600)
    assert made.returncode == 0, made.stderr
    scenario = tomllib.loads(next(unpacked(tmp_path / "small.tar.zst", tmp_path).glob("*/scenario.toml")).read_text())
    assert [stream["name"] for stream in scenario["traffic"]] == ["large"]
    assert scenario["traffic"][0]["direction"] == "to-guest"
    assert scenario["migration"]["capabilities"] == ["xbzrle"]
    assert scenario["guest"]["management"] is False
    monkeypatch.setenv("SWITCHOVER_CACHE", str(tmp_path / "cache"))
    done = switchover("replay", tmp_path / "small.tar.zst", "--yes", "--build", "--json", "--results", tmp_path / "again", timeout_s=3600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conclusion"] == "reproduced"
