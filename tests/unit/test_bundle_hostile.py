"""Hostile bundles: each is refused with one line, leaves no file, and runs nothing.

`HAND_MADE` lists them by name: more than 230 made by hand in groups (`hostile_archives`: the file, its headers, its members; `hostile_content`: the
manifest, the scenario, recipes and patches, the records of the run). Hypothesis adds flipped bits, cut ends and whatever else it finds.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from bundle_factory import RUN_ID, Archive, bundle_bytes, pack
from hostile_archives import HAND_MADE
from hostile_content import PATCH, patched, with_scenario
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.analysis.records import _HEADER
from harness.bundle import open_bundle, open_run
from harness.bundle.archive import encode_manifest, read_archive, sealed
from harness.bundle.format import Manifest
from harness.cli import main
from harness.errors import BundleError, SwitchoverError
from harness.store.analyze import analyze_run


class Sound(bytes):
    """A sound bundle, which a failing test doesn't print."""

    def __repr__(self) -> str:
        return "<a sound bundle>"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    return Sound(bundle_bytes(tmp_path_factory.mktemp("sound")))


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, request):
    """No process may be started in this file."""

    def refuse(*words: Any, **_: Any) -> None:
        pytest.fail(f"a process was started: {words}")

    if "runs_processes" not in request.keywords:
        for owner, name in ((subprocess, "Popen"), (os, "system"), (os, "fork"), (os, "posix_spawn"), (os, "execve")):
            monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def empty_place(tmp_path, monkeypatch):
    """Folders for the working directory, temporary files, cache and results, all empty."""
    for name in ("work", "tmp", "cache", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("SWITCHOVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SWITCHOVER_RESULTS", str(tmp_path / "results"))
    return tmp_path


def refused(raw: bytes, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """Give the bundle to a command; the one line that it says."""
    path = place / "evil.tar.zst"
    path.write_bytes(raw)
    monkeypatch.setattr(sys, "argv", ["switchover", *(str(path) if word == "BUNDLE" else word for word in command)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 4, err
    assert out == ""
    assert err.startswith("switchover: evil.tar.zst: ")
    assert err.count("\n") == 1, err
    assert err[:-1].isprintable()
    assert len(err) < 500
    left = [file for name in ("work", "tmp", "cache", "results") for file in (place / name).rglob("*")]
    assert left == []
    return err


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_hostile_bundle_is_refused_in_one_line(name, sound, empty_place, monkeypatch, capsys):
    archive = Archive(sound)
    raw = HAND_MADE[name](archive)
    if raw is None:
        archive.list_members()
        raw = pack(archive.entries())
    said = refused(sealed(raw), empty_place, monkeypatch, capsys, ["why", "BUNDLE", "udp", "3"])
    assert "seal" not in said


SOME = ("file: a bomb of 100 MB of zeros", "header: a symbolic link upwards", "scenario: a QEMU by its path", "patch: upwards", "texts: an escape in the log")


@pytest.mark.parametrize("command", [["replay", "BUNDLE", "--yes", "--build"], ["report", "BUNDLE"], ["analyze", "BUNDLE"], ["analyze", "BUNDLE", "--json"]])
@pytest.mark.parametrize("name", SOME)
def test_every_command_that_takes_a_bundle_refuses_it_alike(name, command, sound, empty_place, monkeypatch, capsys):
    archive = Archive(sound)
    raw = HAND_MADE[name](archive)
    if raw is None:
        archive.list_members()
        raw = pack(archive.entries())
    refused(sealed(raw), empty_place, monkeypatch, capsys, command)


def test_there_are_two_hundred_of_them():
    assert len(HAND_MADE) >= 200


def test_what_the_hand_made_ones_are_made_of_is_accepted_unchanged(sound, tmp_path):
    archive = Archive(sound)
    archive.list_members()
    for number, raw in enumerate((sound, sealed(pack(archive.entries())), sealed(patched(Archive(sound), PATCH)))):
        path = tmp_path / f"{number}.tar.zst"
        path.write_bytes(raw)
        with open_bundle(path) as bundle:
            assert bundle.manifest.run_id == RUN_ID


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "device"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "x.tar.zst"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(BundleError), open_bundle(path):
        pass


def _flipped(raw: bytes, bits: Iterable[int]) -> bytes:
    changed = bytearray(raw)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _refusal(raw: bytes) -> str | None:
    """What is said about a bundle; None when it is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar.zst"
        path.write_bytes(raw)
        try:
            with open_bundle(path):
                return None
        except BundleError as refusal:
            return str(refusal)


def test_every_flipped_bit_of_a_file_is_refused_be_it_one_that_unpacks_to_the_same(sound):
    """All bits of the frame's head, its end and the seal; of the rest one bit in every seventh byte."""
    head, end = range(32 * 8), range((len(sound) - 64) * 8, len(sound) * 8)
    for bit in (*head, *range(32 * 8, end.start, 57), *end):
        with pytest.raises(BundleError):
            read_archive(io.BytesIO(_flipped(sound, [bit])), label="x")


def test_a_seal_over_a_frame_with_an_odd_head_is_refused_or_unpacks_to_the_same(sound):
    """What the seal alone would find: bits of the compressed form that mean nothing."""
    frame = sound[: -len(sealed(b""))]
    manifest = read_archive(io.BytesIO(sound), label="x")
    same = 0
    for bit in (*range(18 * 8), *range((len(frame) - 8) * 8, len(frame) * 8)):
        with contextlib.suppress(BundleError):
            assert read_archive(io.BytesIO(sealed(_flipped(frame, [bit]))), label="x") == manifest
            same += 1
    assert same < 18 * 8


@pytest.mark.parametrize("cut", [1, 20, 39, 40, 41, 44, 60, 5000])
def test_a_cut_end_is_refused(sound, cut):
    assert "seal" in str(_refusal(sound[:-cut]))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_flipped_bits_that_were_packed_and_sealed_again_are_refused_or_are_words_of_the_manifest(sound, data):
    """The manifest has the digests of all the rest, and nothing but the seal has its own."""
    plain = zstandard.ZstdDecompressor().decompress(sound, max_output_size=64 << 20)
    manifest, members = _read(sound)
    bits = data.draw(st.sets(st.integers(0, len(plain) * 8 - 1) | st.integers(0, (1024 + len(encode_manifest(manifest))) * 8), min_size=1, max_size=3))
    raw = sealed(zstandard.ZstdCompressor(level=1).compress(_flipped(plain, bits)))
    said = _refusal(raw)
    if said is None:
        found, content = _read(raw)
        assert content == members
        assert found.members == manifest.members
        assert found != manifest
        assert all(512 * 8 <= bit < (512 + len(encode_manifest(manifest))) * 8 for bit in bits)
    else:
        assert said.isprintable()


def _read(raw: bytes) -> tuple[Manifest, dict[str, bytes]]:
    members: dict[str, bytes] = {}
    return read_archive(io.BytesIO(raw), label="x", sink=members.__setitem__), members


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_records_with_anything_in_them_are_analysed_or_refused(sound, data):
    """Values of run.json and bytes of the raw files are replaced, digests fit: a clear error or an analysis, nothing else."""
    archive = Archive(sound)
    if data.draw(st.booleans()):
        facts = archive.json("run.json")
        holder, key = data.draw(st.sampled_from(sorted(_places(facts), key=lambda place: str(place[1]))))
        holder[key] = data.draw(_JSON | st.integers(-(1 << 64), 1 << 64))
        archive.put_json("run.json", facts)
    else:
        name = data.draw(st.sampled_from([name for name in sorted(archive.files) if name.endswith((".rec", ".pcapng"))]))
        raw = bytearray(archive.files[name])
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        archive.files[name] = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, _HEADER.size, 5, 0]))])
    archive.list_members()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar.zst"
        path.write_bytes(sealed(pack(archive.entries())))
        said = ""
        try:
            with open_run(path) as run:
                analyze_run(run)
        except SwitchoverError as refusal:
            said = str(refusal)
        assert folder not in said
        assert said == "" or said.isprintable()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in children:
            found.append((item, key))
            pending.append(child)
    return found


def test_a_bundle_whose_file_changes_while_it_is_read_is_refused(sound, tmp_path, monkeypatch):
    from harness.bundle import opening

    path = tmp_path / "x.tar.zst"
    path.write_bytes(sound)
    archive = Archive(sound)
    with_scenario(archive, '[qemu]\nsource = "/tmp/evil"')
    archive.list_members()
    other, real, calls = sealed(pack(archive.entries())), opening.read_archive, []

    def swap(file: io.BufferedReader, **words: Any) -> Any:
        calls.append(1)
        return real(io.BytesIO(other) if len(calls) == 2 else file, **words)

    monkeypatch.setattr(opening, "read_archive", swap)
    with pytest.raises(BundleError, match="may not give that"), open_bundle(path):
        pass
    assert len(calls) == 2


def test_words_of_a_bundle_stay_words_in_the_page(sound, empty_place, monkeypatch, capsys):
    """Everything printable is allowed in a note; in HTML it must not become markup."""
    script = "</svg></style><script>alert(1)</script><img src=x onerror=alert(2)>"
    archive = Archive(sound)
    for name in ("run.json", "result.json"):
        document = archive.json(name)
        document["notes"] = [script]
        document["scenario"]["description"] = script
        document["host"] = {"kernel": script, "distribution": script}
        document["guest"] = {"kernel": script, "image": script}
        archive.put_json(name, document)
    archive.files["scenario.toml"] = archive.files["scenario.toml"].replace(b'description = ""', b"description = " + msgspec.json.encode(script), 1)
    event = {"t_ns": archive.json("run.json")["traffic_start_ns"] + 5_000_000, "source": script, "name": script, "data": {"status": script}}
    archive.files["events.jsonl"] = b"".join(msgspec.json.encode(event | {"name": name}) + b"\n" for name in (script, "MIGRATION", "STOP", "FDB"))
    archive.list_members()
    path = empty_place / "x.tar.zst"
    path.write_bytes(sealed(pack(archive.entries())))
    monkeypatch.setattr(sys, "argv", ["switchover", "report", str(path), "--output", str(empty_place / "x.html")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None), capsys.readouterr().err
    page = (empty_place / "x.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
