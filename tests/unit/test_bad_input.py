"""Run directories that are damaged, foreign or odd: one clear line and exit code 2 or 4, or the right figure; never a wrong one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundle_factory import NONCE, START, STEP, facts_of, lab_frame, make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.analysis.pcapng import INBOUND, OUTBOUND, PcapngWriter
from harness.analysis.records import RecordKind, encode_records, make_records
from harness.analysis.synthetic import frames_batch, probe_frame
from harness.cli import main
from harness.model.result import Outcome
from harness.store.analyze import analyze
from harness.store.rundir import RunDirectory


@pytest.fixture
def analyzed(tmp_path, monkeypatch, capsys) -> Callable[[Path], tuple[int, str]]:
    """`switchover analyze RUN`: its exit code and what it said on standard error."""

    def call(path: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["switchover", "analyze", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-37])


def foreign(path: Path) -> None:
    path.write_bytes(b"\x7fELF" + bytes(200))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


CAPTURES = ("capture/peer.pcapng", "capture/source.pcapng", "capture/destination.pcapng", "capture/undelivered.pcapng")
RECORDS = ("traffic/1.sent.rec", "traffic/1.received.rec")


@pytest.mark.parametrize("damage", [cut, foreign, emptied, removed])
@pytest.mark.parametrize("name", [*CAPTURES, *RECORDS, "run.json"])
def test_a_damaged_or_missing_file_is_named(tmp_path, analyzed, name, damage):
    run = make_run(tmp_path)
    before = (run.path / "result.json").read_bytes()
    damage(run.path / name)
    code, said = analyzed(run.path)
    assert code in (2, 4), said
    assert Path(name).name in said
    assert "Traceback" not in said
    assert (run.path / "result.json").read_bytes() == before, "what could not be analysed is not overwritten"


def test_no_run_directory_at_all(tmp_path, analyzed):
    code, said = analyzed(tmp_path / "nothing")
    assert code == 4
    assert "is no run directory" in said


def test_a_newer_schema_is_refused_by_its_number(tmp_path, analyzed):
    run = make_run(tmp_path)
    facts = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**facts, "schema_version": 2}))
    code, said = analyzed(run.path)
    assert code == 4
    assert "schema version 2" in said


def write_capture(path: Path, seqs: list[int], times: list[int], *, direction: int) -> None:
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        number = writer.add_interface(path.stem)
        if seqs:
            writer.write(frames_batch([lab_frame(seq) for seq in seqs], time_ns=times, direction=direction))
        writer.write_counters(number, received=len(seqs), dropped=0, start_ns=START, end_ns=START + 300 * STEP)


def test_a_clock_that_goes_backwards_makes_the_run_inconclusive(tmp_path, analyzed):
    run = make_run(tmp_path)
    times = [START + seq * STEP - (50 * STEP if seq > 80 else 0) for seq in range(200)]
    write_capture(run.path / "capture" / "peer.pcapng", list(range(200)), times, direction=INBOUND)
    assert analyzed(run.path)[0] == 5
    result = run.result()
    assert result.outcome is Outcome.INCONCLUSIVE
    assert any("the host's clock went back by 49.000 ms" in note for note in result.notes)


def test_a_capture_that_dropped_makes_the_run_inconclusive(tmp_path, analyzed):
    captures = facts_of().captures
    worse = {**captures, "source": msgspec.structs.replace(captures["source"], dropped=3)}
    run = make_run(tmp_path, captures=worse)
    assert analyzed(run.path)[0] == 5
    assert run.result().outcome is Outcome.INCONCLUSIVE
    assert "capture source: 3 packets dropped" in run.result().notes


@pytest.mark.parametrize("first", [2**16 - 50, 2**32 - 50, 2**63 - 50])
def test_sequence_numbers_that_pass_a_power_of_two(tmp_path, first):
    """Probes count in 64 bits: where 16, 32 or 63 bits end, nothing happens."""
    run = make_run(tmp_path)
    seqs = [first + offset for offset in range(100)]
    times = [START + offset * STEP for offset in range(100)]
    frames = [probe_frame(stream=1, nonce=NONCE, seq=seq).replace(b"\x0a\0\0", b"\x0a\x4d\0") for seq in seqs]
    for name, direction in (("peer", INBOUND), ("source", OUTBOUND)):
        with (run.path / "capture" / f"{name}.pcapng").open("wb") as file:
            writer = PcapngWriter(file)
            number = writer.add_interface(name)
            writer.write(frames_batch(frames, time_ns=times, direction=direction))
            writer.write_counters(number, received=100, dropped=0, start_ns=START, end_ns=START + 300 * STEP)
    for name in ("destination", "stranded", "undelivered"):
        write_capture(run.path / "capture" / f"{name}.pcapng", [], [], direction=OUTBOUND)
    numbers = np.array(seqs, dtype=np.uint64)
    sent = make_records(RecordKind.SENT, seq=numbers, due_ns=np.array(times), sent_ns=np.array(times))
    received = make_records(RecordKind.RECEIVED, seq=numbers, sent_ns=np.array(times), received_ns=np.array(times) + 5000)
    for kind, records in ((RecordKind.SENT, sent), (RecordKind.RECEIVED, received)):
        (run.path / "traffic" / f"1.{kind.name.lower()}.rec").write_bytes(encode_records(records, kind=kind, stream=1, nonce=NONCE))
    (stream,) = analyze(run).streams
    assert (stream.sent, stream.delivered, stream.duplicated, stream.reordered) == (100, 100, 0, 0)


def test_a_stream_without_any_packet(tmp_path):
    run = make_run(tmp_path)
    for name, direction in (("peer", INBOUND), ("source", OUTBOUND), ("destination", OUTBOUND), ("stranded", OUTBOUND), ("undelivered", OUTBOUND)):
        write_capture(run.path / "capture" / f"{name}.pcapng", [], [], direction=direction)
    nothing = np.empty(0, dtype=np.int64)
    sent = make_records(RecordKind.SENT, seq=nothing, due_ns=nothing, sent_ns=nothing)
    received = make_records(RecordKind.RECEIVED, seq=nothing, sent_ns=nothing, received_ns=nothing)
    for kind, records in ((RecordKind.SENT, sent), (RecordKind.RECEIVED, received)):
        (run.path / "traffic" / f"1.{kind.name.lower()}.rec").write_bytes(encode_records(records, kind=kind, stream=1, nonce=NONCE))
    result = analyze(run)
    (stream,) = result.streams
    assert (stream.sent, stream.delivered, stream.lost) == (0, 0, 0)
    assert stream.longest_gap_ms is None
    assert stream.latency_ms is None


def test_analyzing_again_gives_the_same_result(tmp_path, analyzed):
    run = make_run(tmp_path)
    before = (run.path / "result.json").read_bytes()
    assert analyzed(run.path)[0] in (0, 1)
    assert (run.path / "result.json").read_bytes() == before
    moved = run.path.rename(tmp_path / "elsewhere")
    assert msgspec.json.encode(analyze(RunDirectory.open(moved))) == msgspec.json.encode(analyze(RunDirectory(moved, moved.name)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*CAPTURES, *RECORDS, "run.json", "events.jsonl"]), at=st.floats(0, 1, exclude_max=True), data=st.binary(max_size=40))
def test_no_damage_gives_a_traceback(tmp_path_factory, monkeypatch, capsys, name, at, data):
    """Bytes of any file overwritten: a result, or one line that says what is wrong."""
    run = make_run(tmp_path_factory.mktemp("run"))
    path = run.path / name
    content = bytearray(path.read_bytes())
    start = int(at * len(content))
    content[start : start + len(data)] = data
    path.write_bytes(bytes(content))
    monkeypatch.setattr(sys, "argv", ["switchover", "analyze", str(run.path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code in (0, 1, 2, 4, 5, None), said
    assert "Traceback" not in said
