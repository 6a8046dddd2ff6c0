"""A paced stream of equal frames through an AF_PACKET transmit ring: a burst a millisecond, one system call each.

The frame is written into every slot of the ring once; a burst marks its slots and calls `send`, so that no byte is copied and no
Python is run per frame. What the kernel accepted is read back from the slots: a frame counts as sent when its slot is free again.
"""

from __future__ import annotations

import argparse
import json
import mmap
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from harness.analysis.synthetic import probe_frame
from harness.capture.ring import SOL_PACKET

_PACKET_VERSION, _PACKET_TX_RING, _PACKET_LOSS = 10, 13, 14
_TPACKET_V2 = 1
_AVAILABLE, _SEND_REQUEST, _WRONG_FORMAT = 0, 1, 4
_HEADER_BYTES = 32  # TPACKET2_HDRLEN less the address behind the header
_SLOT_BYTES = 2048
_SLOTS = 8192
_BLOCK_BYTES = 1 << 16
_BURST_S = 0.001


@dataclass(frozen=True)
class Flood:
    """What was asked of a sender, and what it did. `late_ms`: how far it was behind its schedule at the worst."""

    asked: int
    sent: int
    took_s: float
    late_ms: float

    @property
    def rate_pps(self) -> float:
        return self.sent / self.took_s


def flood(interface: str, *, rate_pps: int, seconds: float, frame_bytes: int) -> Flood:
    """Send on schedule; a burst that comes late is made up for at once. `frame_bytes`: up to 2000."""
    frame = probe_frame(stream=1, frame_bytes=frame_bytes)
    bursts, burst = round(seconds / _BURST_S), round(rate_pps * _BURST_S)
    if burst > _SLOTS // 2:
        raise SystemExit(f"at most {_SLOTS // 2 / _BURST_S:,.0f} frames/s")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        sock.setsockopt(SOL_PACKET, _PACKET_LOSS, 1)  # a frame that the device refuses goes on to the next, and is no error
        request = struct.pack("IIII", _BLOCK_BYTES, _SLOTS * _SLOT_BYTES // _BLOCK_BYTES, _SLOT_BYTES, _SLOTS)
        sock.setsockopt(SOL_PACKET, _PACKET_TX_RING, request)
        ring = np.frombuffer(mmap.mmap(sock.fileno(), _SLOTS * _SLOT_BYTES), dtype=np.uint8).reshape(_SLOTS, _SLOT_BYTES)
        ring[:, _HEADER_BYTES : _HEADER_BYTES + len(frame)] = np.frombuffer(frame, dtype=np.uint8)
        words = ring.view(np.uint32)
        words[:, 1] = len(frame)
        sock.bind((interface, 0))
        # Each slot twice in a row, so that a burst across the ring's end is one slice.
        order = np.tile(np.arange(_SLOTS), 2)
        sent, at, late_s = 0, 0, 0.0
        start = time.monotonic()
        for number in range(bursts):
            due = start + number * _BURST_S
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            late_s = max(late_s, time.monotonic() - due)
            slots = order[at : at + burst]
            words[slots, 0] = _SEND_REQUEST
            sent += sock.send(b"") // len(frame)
            at = (at + burst) % _SLOTS
        took_s = time.monotonic() - start
        left = int(np.count_nonzero(words[:, 0] != _AVAILABLE))
        if left:
            raise SystemExit(f"{left} frames were not accepted ({int(np.count_nonzero(words[:, 0] & _WRONG_FORMAT))} of a wrong format)")
        del words, ring  # numpy's hold on the mapping
    return Flood(asked=bursts * burst, sent=sent, took_s=took_s, late_ms=late_s * 1e3)


def flood_from_a_process(interface: str, *, rate_pps: int, seconds: float, frame_bytes: int) -> Flood:
    """As `flood`, in a process of its own: the sender shares nothing with a capture but the host."""
    command = [sys.executable, "-m", "bench.flood", interface]
    command += ["--rate-pps", str(rate_pps), "--seconds", str(seconds), "--frame-bytes", str(frame_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds * 20 + 30)
    if done.returncode:
        raise SystemExit(f"the sender failed: {done.stderr.strip()}")
    return Flood(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flood")
    parser.add_argument("interface")
    parser.add_argument("--rate-pps", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--frame-bytes", type=int, required=True)
    given = parser.parse_args()
    done = flood(given.interface, rate_pps=given.rate_pps, seconds=given.seconds, frame_bytes=given.frame_bytes)
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()
