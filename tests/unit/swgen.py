# SPDX-License-Identifier: GPL-2.0-or-later
"""The traffic generator as a process of its own on the loopback interface, and a reader of its records."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

__all__ = ["ADDRESSES", "ESTABLISHED", "NS_PER_S", "Generator", "Launch", "probe", "read_records"]

NS_PER_S = 1_000_000_000
PROBE = struct.Struct("!IHHIIQq")
MAGIC = 0x53574F56
ADDRESSES = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


class Sent(NamedTuple):
    seq: int
    due_ns: int
    sent_ns: int
    error: int
    reserved: int


class Received(NamedTuple):
    seq: int
    sent_ns: int
    received_ns: int
    udp_length: int
    flags: int


TCP = struct.Struct("<qq5Q6I8I6BHII")
# fmt: off
Tcp = namedtuple(
    "Tcp",
    [
        "time_ns", "progress_ns", "app_bytes", "bytes_acked", "bytes_received", "bytes_sent", "bytes_retrans",
        "segs_out", "segs_in", "total_retrans", "dsack_dups", "reord_seen", "rcv_ooopack",
        "rto_us", "rtt_us", "rttvar_us", "snd_cwnd", "unacked", "lost", "notsent_bytes", "snd_wnd",
        "event", "state", "ca_state", "retransmits", "backoff", "probes", "reserved", "last_ack_recv_ms", "delivered",
    ],
)
# fmt: on
ESTABLISHED = 1


class Header(NamedTuple):
    magic: bytes
    kind: int
    stream: int
    record_bytes: int
    nonce: int
    records: int
    overflowed: int
    start_real_ns: int
    start_mono_ns: int
    reserved: int


def read_records(path: Path) -> tuple[Header, list[Any]]:
    """A reader of its own: the format as the documentation states it."""
    data = path.read_bytes()
    header = Header(*struct.unpack_from("<8sIIIIQQqqQ", data))
    assert header.magic == b"SWREC\0\0\1"
    assert header.record_bytes == (TCP.size if header.kind == 4 else 32)
    assert header.reserved == 0
    assert len(data) == 64 + header.record_bytes * header.records
    if header.kind == 4:
        return header, [Tcp._make(fields) for fields in TCP.iter_unpack(data[64:])]
    if header.kind == 1:
        return header, [Sent(*fields) for fields in struct.iter_unpack("<QqqiI", data[64:])]
    return header, [Received(*fields) for fields in struct.iter_unpack("<QqqII", data[64:])]


def pattern(length: int, seq: int) -> bytes:
    word = ((seq + 1) * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big")
    return (word * (length // 8 + 1))[: length - PROBE.size]


def probe(*, stream: int, nonce: int, seq: int, flags: int = 0, length: int = 64, version: int = 1) -> bytes:
    return PROBE.pack(MAGIC, version, flags, stream, nonce, seq, time.time_ns()) + pattern(length, seq)


class Generator:
    """One running `swgen run`."""

    def __init__(
        self, program: Path, out: Path, streams: tuple[str, ...], *, nonce: int, options: tuple[str, ...]
    ) -> None:
        self.out = out
        argv: list[str | Path] = [program, "run", "--out", out, "--nonce", str(nonce), *options]
        for stream in streams:
            argv += ["--stream", stream]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def start(self) -> None:
        self.process.send_signal(signal.SIGUSR2)
        assert self.line() == "sending"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGUSR1)
        assert self.line() == "stopped"

    def send_all(self, *, receiving: int = 0) -> None:
        """Starts one that was told to wait, and waits until it has sent its `count`."""
        self.start()
        self.wait_until_sent(receiving=receiving)

    def wait_until_sent(self, *, receiving: int = 0) -> None:
        """Until its sending threads have ended: `receiving` others, and the main one, go on."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        limit = time.monotonic() + 60
        while len(list(tasks.iterdir())) > 1 + receiving:
            assert time.monotonic() < limit, "it goes on sending"
            time.sleep(0.005)

    def pause(self, seconds: float) -> None:
        """Stops the process as a stopped guest would be."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def finish(self) -> dict[int, dict[str, Any]]:
        """Ends it; the figures of each stream by its id."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, errors
        summary = json.loads(output.splitlines()[-1])
        return {stream["id"]: stream for stream in summary["streams"]}

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Launch = Callable[..., Generator]
