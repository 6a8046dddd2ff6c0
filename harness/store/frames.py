"""Single frames as capture files: what a mechanism carried, what was read back from a TAP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.analysis.columns import PROBE, Columns, read_capture
from harness.analysis.evidence import ProbeSet
from harness.analysis.pcapng import OUTBOUND, PcapngWriter
from harness.analysis.synthetic import frames_batch

__all__ = ["probes_of", "read_frames", "write_frames"]


def write_frames(path: Path, frames: Sequence[bytes], *, times_ns: Sequence[int], interface: str) -> None:
    """Write frames on their way to a TAP; a frame without a known time has 0."""
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface(interface)
        if frames:
            writer.write(frames_batch(frames, time_ns=list(times_ns), direction=OUTBOUND))


def read_frames(path: Path) -> Columns:
    """The frames of a file as columns, in order."""
    return read_capture(path).columns


def probes_of(columns: Columns, *, nonce: int) -> ProbeSet:
    """The probes of one run among the frames (requests and plain probes; replies go the other way)."""
    mine = (columns.probe >= PROBE) & (columns.probe_nonce == nonce)
    return frozenset(zip(columns.probe_stream[mine].tolist(), columns.probe_seq[mine].tolist(), strict=True))
