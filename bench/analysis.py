"""Analysis: from capture files to the ledger, beside scapy's RawPcapNgReader and tshark reading the same file."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import subprocess
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from scapy.utils import RawPcapNgReader

from harness.analysis.columns import read_capture
from harness.analysis.evidence import Captures, Evidence, StreamRecords
from harness.analysis.ledger import LedgerCounts, account
from harness.analysis.pcapng import INBOUND, OUTBOUND, PcapngWriter
from harness.analysis.records import RecordKind, encode_records, read_records
from harness.analysis.synthetic import probe_batch, received_file, sent_file
from harness.model.scenario import Direction

_T0_NS = 1_700_000_000_000_000_000
_BATCH = 100_000
# These readers need minutes for what the ledger reads in seconds: their rate is taken from a part.
_THEIR_PACKETS = 200_000


def make_run(folder: Path, probes: int) -> None:
    """A stream to the guest, captured at the peer's port and the source's TAP, with the records of both ends."""
    for name, direction in (("peer", INBOUND), ("source", OUTBOUND)):
        with (folder / f"{name}.pcapng").open("wb") as file:
            writer = PcapngWriter(file)
            writer.add_interface(name)
            for start in range(0, probes, _BATCH):
                seq = np.arange(start, min(start + _BATCH, probes))
                writer.write(probe_batch(seq, time_ns=_T0_NS + seq * 1000 + direction, direction=direction))
            writer.write_counters(0, received=probes, dropped=0, start_ns=_T0_NS, end_ns=_T0_NS)
    seq = np.arange(probes)
    sent, received = sent_file(seq, sent_ns=_T0_NS + seq * 1000), received_file(seq, received_ns=seq)
    for file, kind in ((sent, RecordKind.SENT), (received, RecordKind.RECEIVED)):
        content = encode_records(file.records, kind=kind, stream=1, nonce=1)
        (folder / f"{kind.name.lower()}.rec").write_bytes(content)


def make_ledger(folder: Path) -> LedgerCounts:
    captures = Captures(peer=read_capture(folder / "peer.pcapng"), source=read_capture(folder / "source.pcapng"))
    records = StreamRecords(
        name="udp",
        direction=Direction.TO_GUEST,
        sent=read_records(folder / "sent.rec"),
        received=read_records(folder / "received.rec"),
    )
    return account([records], evidence=Evidence(captures=captures))["udp"].counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.analysis", description=__doc__)
    parser.add_argument("--packets", type=int, default=10_000_000, help="captured packets in all")
    packets = parser.parse_args().packets
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: this one's peak memory is then the ledger's.
        maker = multiprocessing.Process(target=make_run, args=(folder, packets // 2))
        maker.start()
        maker.join()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        counts = make_ledger(folder)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert counts.delivered == counts.sent == packets // 2
        rate = packets / cpu
        print(f"analysis: {packets} packets of 100 bytes in two captures, and their records")
        print(f"  files to ledger:  {rate:12,.0f} packets/s of one core ({packets / wall:,.0f}/s by the clock)")
        print(f"  memory:           {grown / packets:12.0f} bytes a packet")
        report(folder / "peer.pcapng", rate)


def report(path: Path, rate: float) -> None:
    """The other readers' rates, and ours as a multiple of them."""
    cpu = time.process_time()
    with RawPcapNgReader(str(path)) as reader:
        read = sum(1 for _ in islice(reader, _THEIR_PACKETS))
    theirs = read / (time.process_time() - cpu)
    print(f"  RawPcapNgReader:  {theirs:12,.0f} packets/s, frames only: ours is {rate / theirs:.1f} times as fast")
    if not shutil.which("tshark"):
        print("  tshark:           not installed")
        return
    fields = ["frame.time_epoch", "ip.src", "ip.dst", "udp.srcport", "udp.dstport", "data.data"]
    command = ["tshark", "-n", "-r", str(path), "-c", str(_THEIR_PACKETS), "-T", "fields"]
    command += [each for field in fields for each in ("-e", field)]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    theirs = done.stdout.count(b"\n") / seconds
    print(f"  tshark -T fields: {theirs:12,.0f} packets/s: ours is {rate / theirs:.1f} times as fast")


if __name__ == "__main__":
    main()
