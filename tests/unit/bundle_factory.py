"""A run that never took place, whole enough to be analysed, bundled and explained; and archives made by hand."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

from harness.analysis.pcapng import INBOUND, OUTBOUND, PcapngWriter
from harness.analysis.records import RecordKind, encode_records, make_records
from harness.analysis.synthetic import frames_batch, probe_frame
from harness.bundle.scrub import Identity
from harness.bundle.write import make_bundle
from harness.model.facts import CaptureFacts, MigrationFacts, RunFacts
from harness.model.result import GuestIdentity, QemuIdentity, QemuPair
from harness.model.scenario import Direction, MigrationSection, Scenario, TrafficSection
from harness.model.streams import plan_streams
from harness.store.analyze import analyze
from harness.store.rundir import RunDirectory

__all__ = ["IDENTITY", "RUN_ID", "Archive", "bundle_bytes", "facts_of", "make_run", "manifest_bytes", "pack"]

RUN_ID = "20260102T030405Z-demo-abcdef"
IDENTITY = Identity(hosts=("stardust",), users=("alice", "Alice Example"), marks=("0f" * 16,), places=(("/home/alice", "<home>"),))
START, STEP, NONCE = 1_800_000_000_000_000_000, 1_000_000, 7


def lab_frame(seq: int) -> bytes:
    return probe_frame(stream=1, nonce=NONCE, seq=seq).replace(b"\x0a\0\0", b"\x0a\x4d\0")


def facts_of(run_id: str = RUN_ID, *, expect: dict[str, Any] | None = None, **more: Any) -> RunFacts:
    """200 packets to the guest, 1000 a second; stopped from the 100th to the 120th."""
    scenario = Scenario(
        name="demo", traffic=(TrafficSection(name="udp", direction=Direction.TO_GUEST),), migration=MigrationSection(hold_ms=20),
        expect={"lost": 0} if expect is None else expect,
    )  # fmt: skip
    qemu = QemuIdentity(name="system", version="7.2.22", build="0123456789abcdef")
    values: dict[str, Any] = {
        "run_id": run_id, "scenario": scenario, "accelerator": "tcg", "accelerator_reason": "asked for", "host": {"kernel": "6.1.0"},
        "qemu": QemuPair(source=qemu, destination=qemu), "guest": GuestIdentity(kernel="6.1.0-x", image="c0ffee"),
        "streams": plan_streams(scenario.traffic), "nonce": NONCE, "traffic_start_ns": START, "traffic_end_ns": START + 300 * STEP,
        "migrations": (
            MigrationFacts(
                mode="precopy", mechanism="none", status="completed", migrate_ns=START + 50 * STEP, stop_ns=START + 100 * STEP - 1000,
                resume_ns=START + 120 * STEP - 1000, completed_ns=START + 120 * STEP, info={"status": "completed", "downtime": 20},
                stranded_file="capture/stranded.pcapng", undelivered_file="capture/undelivered.pcapng", survivor="destination",
            ),
        ),
        "captures": {
            name: CaptureFacts(interface=name, file=f"capture/{name}.pcapng", packets=1, dropped=0)
            for name in ("peer", "source", "destination")
        },
    }  # fmt: skip
    return RunFacts(**(values | more))


def _write_capture(path: Path, seqs: range, *, delay_ns: int, direction: int) -> None:
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        number = writer.add_interface(path.stem)
        if len(seqs):
            times = [START + seq * STEP + delay_ns for seq in seqs]
            writer.write(frames_batch([lab_frame(seq) for seq in seqs], time_ns=times, direction=direction))
        writer.write_counters(number, received=len(seqs), dropped=0, start_ns=START, end_ns=START + 300 * STEP)


def make_run(results: Path, *, run_id: str = RUN_ID, texts: dict[str, str] | None = None, **more: Any) -> RunDirectory:
    """A run directory in which 20 of 200 packets were stranded at the source. `texts` are further files."""
    run = RunDirectory(results / run_id, run_id)
    for folder in ("capture", "traffic"):
        (run.path / folder).mkdir(parents=True)
    facts = facts_of(run_id, **more)
    capture = run.path / "capture"
    _write_capture(capture / "peer.pcapng", range(200), delay_ns=1000, direction=INBOUND)
    _write_capture(capture / "source.pcapng", range(120), delay_ns=2000, direction=OUTBOUND)
    _write_capture(capture / "destination.pcapng", range(120, 200), delay_ns=2000, direction=OUTBOUND)
    for name in ("stranded", "undelivered"):
        _write_capture(capture / f"{name}.pcapng", range(100, 120), delay_ns=0, direction=OUTBOUND)
    sent = make_records(RecordKind.SENT, seq=np.arange(200), due_ns=START + np.arange(200) * STEP, sent_ns=START + np.arange(200) * STEP)
    got = np.r_[0:100, 120:200]
    received = make_records(RecordKind.RECEIVED, seq=got, sent_ns=START + got * STEP, received_ns=START + got * STEP + 3000)
    for kind, records in ((RecordKind.SENT, sent), (RecordKind.RECEIVED, received)):
        raw = encode_records(records, kind=kind, stream=1, nonce=NONCE)
        (run.path / "traffic" / f"1.{kind.name.lower()}.rec").write_bytes(raw)
    run.write_scenario(facts.scenario)
    run.write_json("host.json", facts.host)
    run.write_events([])
    run.write_json("run.json", facts)
    (run.path / "log.txt").write_text("2026-01-02T03:04:05.000+00:00 starting the pair\n")
    for name, text in (texts or {}).items():
        (run.path / name).write_text(text)
    run.write_json("result.json", analyze(run))
    return run


def bundle_bytes(tmp_path: Path, **more: Any) -> bytes:
    return make_bundle(make_run(tmp_path / "results", **more), identity=IDENTITY, cache=tmp_path / "cache").data


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """As the writer lays it out."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


class Archive:
    """A bundle taken apart, to be changed and packed again with digests that fit (or with such that don't)."""

    def __init__(self, raw: bytes) -> None:
        plain = zstandard.ZstdDecompressor().decompress(raw, max_output_size=64 << 20)
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            self.files = {m.name.partition("/")[2]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        self.manifest: dict[str, Any] = msgspec.json.decode(self.files.pop("manifest.json"))
        self.top = self.manifest["run_id"]

    def json(self, name: str) -> Any:
        return msgspec.json.decode(self.files[name])

    def put_json(self, name: str, value: Any) -> None:
        self.files[name] = msgspec.json.encode(value)

    def list_members(self) -> None:
        """Bring the manifest's list up to date."""
        self.manifest["members"] = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(self.files.items())
        ]

    def entries(self) -> list[tuple[tarfile.TarInfo, bytes]]:
        """Headers and contents as the writer makes them, the manifest first."""
        found = []
        for name, data in (("manifest.json", manifest_bytes(self.manifest)), *((m["name"], self.files[m["name"]]) for m in self.manifest["members"])):
            info = tarfile.TarInfo(f"{self.top}/{name}")
            info.size, info.mode = len(data), 0o644
            found.append((info, data))
        return found


def pack(entries: list[tuple[tarfile.TarInfo, bytes]], *, behind: bytes = b"", level: int = 1, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Any entries as a zstd-compressed tar, however wrong they are. It has no seal yet: see `harness.bundle.archive.sealed`."""
    out = io.BytesIO()
    for info, data in entries:
        out.write(info.tobuf(format=form))
        out.write(data + bytes(-len(data) % 512))
    out.write(bytes(1024))
    out.write(bytes(-out.tell() % 10240) + behind)
    return zstandard.ZstdCompressor(level=level).compress(out.getvalue())
