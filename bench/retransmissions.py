"""Our retransmission counts beside tshark's expert analysis, on the captures of finished runs.

    python -m bench.retransmissions RESULTS...

tshark calls a segment that fills a hole within 3 ms of newer data "out of order", also where the same bytes had passed the capture point
before, so that they can't have been overtaken: there we count a retransmission. Both counts together must be equal, and what moves between
the two kinds is shown. Exit code 1 if a capture differs, 3 without tshark.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.analysis.columns import read_capture
from harness.analysis.tcp import find_connections

_AGAIN = "tcp.analysis.retransmission || tcp.analysis.fast_retransmission || tcp.analysis.spurious_retransmission"
_OUT_OF_ORDER = f"tcp.analysis.out_of_order && !({_AGAIN})"


@dataclass(frozen=True)
class Counts:
    """Of one capture: what each calls a retransmission, and what each calls overtaken or out of order."""

    ours: int
    our_overtaken: int
    tsharks: int
    their_out_of_order: int

    @property
    def explained(self) -> bool:
        """Nothing is seen by one and missed by the other."""
        return self.ours + self.our_overtaken == self.tsharks + self.their_out_of_order

    @property
    def equal(self) -> bool:
        """The counts of retransmissions themselves are the same."""
        return self.explained and self.ours == self.tsharks


def count(path: Path) -> Counts:
    """Count in one capture. tshark has to be installed."""
    flows = [flow for connection in find_connections(read_capture(path).columns) for flow in connection.flows]
    return Counts(
        ours=sum(flow.retransmitted_segments for flow in flows), our_overtaken=sum(flow.overtaken_segments for flow in flows),
        tsharks=_tshark(path, _AGAIN), their_out_of_order=_tshark(path, _OUT_OF_ORDER),
    )  # fmt: skip


def _tshark(path: Path, condition: str) -> int:
    command = ["tshark", "-n", "-r", str(path), "-Y", condition, "-T", "fields", "-e", "frame.number"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return len(done.stdout.split())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.retransmissions")
    parser.add_argument("results", nargs="+", type=Path, help="folders with run directories")
    folders = parser.parse_args().results
    if shutil.which("tshark") is None:
        print("tshark is not installed: apt-get install tshark", file=sys.stderr)
        return 3
    captures = sorted({path for folder in folders for path in folder.glob("**/capture/peer.pcapng")})
    worse = 0
    for path in captures:
        found = count(path)
        said = "equal" if found.equal else "out of order or sent again" if found.explained else "DIFFERENT"
        worse += not found.explained
        print(
            f"{found.ours:6} ours (+{found.our_overtaken} overtaken)  {found.tsharks:6} tshark (+{found.their_out_of_order} out of order)"
            f"  {said}  {path.parent.parent.name}", flush=True,
        )  # fmt: skip
    print(f"{len(captures)} captures, {worse} with a difference that is not explained")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
