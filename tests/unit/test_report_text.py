"""The plain-text report of a run, from its folder and from a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from bundle_factory import IDENTITY, RUN_ID, START, STEP, bundle_bytes, make_run

from harness.bundle import make_bundle
from harness.cli import main
from harness.cli.reporting import text_of
from harness.errors import UsageError
from harness.model.events import Event
from harness.model.result import OutageResult
from harness.report.text import run_report


def test_a_report_tells_what_was_run_and_where_the_packets_went(tmp_path):
    run = make_run(tmp_path)
    text = run_report(run.result(), [
        Event(t_ns=START + 99 * STEP, source="m1", name="trace:qemu", data={"text": "-system-x86_64: load of migration failed: Invalid argument"}),
        Event(t_ns=START + 1 * STEP, source="m1", name="trace:qemu", data={"text": "-system-x86_64: -trace enable=x: warning: no such event"}),
        Event(t_ns=START + 100 * STEP, source="source", name="STOP"), Event(t_ns=START + 101 * STEP, source="m0", name="trace:runstate_set"),
    ])  # fmt: skip
    assert "demo: FAIL (completed), none, tcg" in text
    assert "failed: lost = 20, expected 0" in text
    assert "7.2.22 (system, build 0123456789abcdef)" in text
    stopped = next(line for line in text.splitlines() if line.startswith("stopped"))
    assert stopped.split()[-3:] == ["20", "/", "20"]
    assert "     100.000  source       STOP" in text
    assert "      99.000  m1           says  load of migration failed: Invalid argument" in text
    assert "trace:" not in text
    assert "warning" not in text
    assert "Announcements" not in text


def test_only_the_longest_outages_are_listed_in_their_order(tmp_path):
    result = make_run(tmp_path).result()
    lengths = [3.0, 20.0, 1.0, 5.0, 4.0, 2.0]
    outages = tuple(
        OutageResult(start_ns=START + n * STEP, end_ns=START + (n + 1) * STEP, duration_ms=length, recovered=True) for n, length in enumerate(lengths)
    )
    text = run_report(msgspec.structs.replace(result, streams=(msgspec.structs.replace(result.streams[0], outages=outages),)))
    section = text.partition("Outages\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[2] for line in section[3:7]] == ["3.0", "20.0", "5.0", "4.0"]
    assert section[7].split() == ["udp", "2", "shorter"]


def test_a_bundle_is_reported_unopened_with_what_it_says_of_itself(tmp_path, monkeypatch, capsys):
    bundle, target = tmp_path / "demo.tar.zst", tmp_path / "report.txt"
    bundle.write_bytes(bundle_bytes(tmp_path))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["switchover", "report", "--text", str(bundle)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert f"run {RUN_ID}" in shown
    assert "finding: packets lost, most of them stranded at source" in shown
    assert "switchover replay demo.tar.zst" in shown
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(sys, "argv", ["switchover", "report", "--text", str(bundle), "--output", str(target)])
    with pytest.raises(SystemExit):
        main()
    assert target.read_text() == shown


def test_a_bundle_without_its_raw_data_is_reported_as_it_was_recorded(tmp_path):
    run = make_run(tmp_path / "results")
    whole = make_bundle(run, identity=IDENTITY, cache=tmp_path / "cache")
    least = make_bundle(run, identity=IDENTITY, cache=tmp_path / "cache", max_bytes=len(whole.data) - 3000)
    assert any(each.name.startswith("capture/") for each in least.manifest.left_out)
    path = tmp_path / "least.tar.zst"
    path.write_bytes(least.data)
    text = text_of(path)
    assert "failed: lost = 20, expected 0" in text
    assert "As it was recorded, not worked out anew: " in text
    assert "left out: capture/" in text


def test_a_damaged_run_is_no_report(tmp_path: Path):
    run = make_run(tmp_path)
    (run.path / "traffic" / "1.sent.rec").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"1\.sent\.rec"):
        text_of(run.path)
