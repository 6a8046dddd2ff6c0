"""Capture: a paced stream over a veth pair, received by our ring and by scapy's AsyncSniffer in turn."""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from scapy.sendrecv import AsyncSniffer

from harness.analysis.synthetic import probe_frame
from harness.capture.ring import CapturePoint, CaptureSet

_BURST_S = 0.001


def send(rate_pps: int, seconds: float, frame_bytes: int, result: multiprocessing.Queue[tuple[int, float]]) -> None:
    """Send bursts of one millisecond each on schedule; reports what was sent and in how many seconds."""
    frame = probe_frame(stream=1, frame_bytes=frame_bytes)
    burst = round(rate_pps * _BURST_S)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("near", 0))
        start = time.monotonic()
        for number in range(round(seconds / _BURST_S)):
            wait = start + number * _BURST_S - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            for _ in range(burst):
                sock.send(frame)
        result.put((round(seconds / _BURST_S) * burst, time.monotonic() - start))


def run_sender(rate_pps: int, seconds: float, frame_bytes: int) -> tuple[int, float]:
    queue: multiprocessing.Queue[tuple[int, float]] = multiprocessing.Queue()
    sender = multiprocessing.Process(target=send, args=(rate_pps, seconds, frame_bytes, queue))
    sender.start()
    result = queue.get(timeout=seconds * 20 + 30)
    sender.join()
    return result


def ours(rate_pps: int, seconds: float, frame_bytes: int) -> tuple[int, int, int, float]:
    """Sent, captured, dropped, and the rate that the sender kept."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        point = CapturePoint(sock=sock, interface="far", path=Path(folder) / "far.pcapng")
        with CaptureSet.start({"far": point}) as captures:
            sent, took = run_sender(rate_pps, seconds, frame_bytes)
            summary = captures.stop()["far"]
    return sent, summary.packets, summary.dropped, sent / took


def scapys(rate_pps: int, seconds: float, frame_bytes: int) -> tuple[int, int, float]:
    sniffer = AsyncSniffer(iface="far", store=True)
    sniffer.start()
    time.sleep(1)
    sent, took = run_sender(rate_pps, seconds, frame_bytes)
    time.sleep(1)
    return sent, len(sniffer.stop()), sent / took


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.capture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate-pps", type=int, default=100_000)
    parser.add_argument("--frame-bytes", type=int, default=100)
    given = parser.parse_args()
    subprocess.run(["ip", "link", "add", "name", "near", "type", "veth", "peer", "name", "far"], check=True)
    for name in ("near", "far"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", "dev", name, "up"], check=True)
    print(f"capture: {given.frame_bytes} byte frames at {given.rate_pps}/s for {given.seconds:g} s over a veth pair")
    sent, captured, dropped, rate = ours(given.rate_pps, given.seconds, given.frame_bytes)
    missing = sent - captured - dropped
    print(
        f"  ring:         sent {sent} at {rate:,.0f}/s, captured {captured}, dropped {dropped}, unaccounted {missing}"
    )
    their_sent, theirs, their_rate = scapys(given.rate_pps, given.seconds / 5, given.frame_bytes)
    print(f"  AsyncSniffer: sent {their_sent} at {their_rate:,.0f}/s, captured {theirs}, missed {their_sent - theirs}")
    share, their_share = captured / sent, theirs / their_sent
    print(f"  captured: {share:.2%} against {their_share:.2%}")
    if missing:
        raise SystemExit("frames are neither captured nor counted as dropped")


if __name__ == "__main__":
    main()
