"""Capture: a paced stream over a veth pair, received by nobody, by our ring and by scapy's AsyncSniffer in turn.

What the interface handed over is counted by the interface itself: the kernel's counter of what `far` received is the truth for each capture.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scapy.sendrecv import AsyncSniffer

from bench.flood import Flood, flood_from_a_process
from harness.capture.ring import CapturePoint, CaptureSet

_KEPT = 0.999
"""A sender that kept less than this of its rate did not offer what was asked for."""


def received() -> int:
    """Frames that `far` received so far; read from /proc, which is that of this network namespace (unlike /sys)."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("far:"))
    return int(line.split(":")[1].split()[1])


def ours(rate_pps: int, seconds: float, frame_bytes: int) -> tuple[Flood, int, int]:
    """The sender's account, captured, dropped."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        point = CapturePoint(sock=sock, interface="far", path=Path(folder) / "far.pcapng")
        with CaptureSet.start({"far": point}) as captures:
            done = flood_from_a_process("near", rate_pps=rate_pps, seconds=seconds, frame_bytes=frame_bytes)
            summary = captures.stop()["far"]
    return done, summary.packets, summary.dropped


def scapys(rate_pps: int, seconds: float, frame_bytes: int) -> tuple[Flood, int]:
    sniffer = AsyncSniffer(iface="far", store=True)
    sniffer.start()
    time.sleep(1)
    done = flood_from_a_process("near", rate_pps=rate_pps, seconds=seconds, frame_bytes=frame_bytes)
    time.sleep(1)
    return done, len(sniffer.stop())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.capture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate-pps", type=int, default=100_000)
    parser.add_argument("--frame-bytes", type=int, default=100)
    given = parser.parse_args()
    subprocess.run(["ip", "link", "add", "name", "near", "type", "veth", "peer", "name", "far"], check=True)
    for name in ("near", "far"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", "dev", name, "up"], check=True)
    what = (given.rate_pps, given.seconds, given.frame_bytes)
    print(f"capture: {given.frame_bytes} byte frames at {given.rate_pps}/s for {given.seconds:g} s over a veth pair, load {os.getloadavg()[0]:.1f}")
    alone = flood_from_a_process("near", rate_pps=given.rate_pps, seconds=given.seconds / 5, frame_bytes=given.frame_bytes)
    print(f"  nobody:       sent {alone.sent} at {alone.rate_pps:,.0f}/s")
    before = received()
    sent, captured, dropped = ours(*what)
    handed = received() - before
    print(
        f"  ring:         sent {sent.sent} of {sent.asked} at {sent.rate_pps:,.0f}/s (at worst {sent.late_ms:.1f} ms late),"
        f" received {handed}, captured {captured}, dropped {dropped}"
    )
    before = received()
    their_sent, theirs = scapys(given.rate_pps, given.seconds / 5, given.frame_bytes)
    their_handed = received() - before
    print(f"  AsyncSniffer: sent {their_sent.sent} at {their_sent.rate_pps:,.0f}/s, received {their_handed}, captured {theirs}")
    print(f"  captured: {captured / handed:.2%} against {theirs / their_handed:.2%}")
    if captured + dropped != handed:
        print("frames are neither captured nor counted as dropped", file=sys.stderr)
        return 1
    if sent.rate_pps < _KEPT * given.rate_pps:
        print(f"the sender offered {sent.rate_pps:,.0f}/s only", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
