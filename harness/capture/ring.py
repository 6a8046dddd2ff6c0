"""Loss-accounted packet capture: TPACKET_V3 rings, one thread, no Python work per packet.

While a capture runs, a thread copies each block that the kernel has retired to a spool file as it is; the
conversion to pcapng happens after `stop`. Every frame that the interface handed over before `stop` was called
is in the file or in `dropped`: the ring's own counters are compared with what was read.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from harness.capture.bpf import keep_beginnings, let_nothing_in
from harness.capture.spool import KEPT_BYTES, convert_spool
from harness.errors import EnvironmentLackError, TestbedError
from harness.host.deadline import PATIENCE, Deadline

SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_RESERVE = 5, 6, 10, 12
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_STATUS_OFFSET = 8
_STATUS_USER = 1

# A slow machine may not run the capture thread for a while; a block that was begun is retired after RETIRE_MS
# even when nearly empty, so the slack is BLOCKS x RETIRE_MS at low rates and BLOCKS x BLOCK_BYTES at high ones.
BLOCK_BYTES = 256 << 10
BLOCKS = 96
RETIRE_MS = round(40 * PATIENCE)
_GRACE_S = 0.02
_LAST_BLOCK_S = 5.0


class CapturePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where to capture.

    `sock` is an AF_PACKET, SOCK_RAW socket made with protocol 0 in the interface's namespace; the ring takes it over
    and closes it. `path` is the pcapng file to leave.
    """

    sock: socket.socket
    interface: str
    path: Path


class CaptureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one point captured; with `dropped`, `shortened` or `interruptions` above 0 not the whole truth."""

    packets: int
    dropped: int
    shortened: int
    """Frames of which less is in the file than `KEPT_BYTES` (or all, if they are shorter): they were longer than the ring takes."""
    interruptions: int
    """How often the interface went down or away while captured."""
    path: Path


class PacketRing:
    """A receive ring on one interface, both directions, spooled block by block by whoever calls `drain`."""

    def __init__(
        self, sock: socket.socket, *, interface: str, spool: Path, block_bytes: int = BLOCK_BYTES, blocks: int = BLOCKS
    ) -> None:
        self.sock = sock
        self.interface = interface
        self.spool = spool
        self.packets = 0
        self.dropped = 0
        self.interruptions = 0
        self.start_ns = time.time_ns()
        self._received = 0
        self._next = 0
        self._block_bytes = block_bytes
        self._blocks = blocks
        self._error: OSError | None = None
        # AF_PACKET listens to every interface from its creation on when made with a protocol.
        if sock.getsockname()[1] != 0:
            raise ValueError("the socket must be made with protocol 0")
        try:
            sock.setsockopt(SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            # Room in front of each frame, for a VLAN tag that the kernel took out.
            sock.setsockopt(SOL_PACKET, _PACKET_RESERVE, 4)
            sock.setsockopt(SOL_PACKET, _PACKET_RX_RING, _ring_request(block_bytes, blocks))
            keep_beginnings(sock, most_bytes=KEPT_BYTES)
            self._map = mmap.mmap(sock.fileno(), block_bytes * blocks)
            sock.bind((interface, _ETH_P_ALL))
        except OSError as error:
            raise EnvironmentLackError(f"cannot capture on {interface}: {error}") from error
        self._view = memoryview(self._map)
        self._out = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def drain(self) -> int:
        """Spool every retired block; returns the number of packets in them."""
        fresh = 0
        for _ in range(self._blocks):
            base = self._next * self._block_bytes
            status, packets, _, length = struct.unpack_from("IIII", self._map, base + _STATUS_OFFSET)
            if not status & _STATUS_USER:
                break
            self._write(base, length)
            struct.pack_into("I", self._map, base + _STATUS_OFFSET, 0)
            self._next = (self._next + 1) % self._blocks
            fresh += packets
        self.packets += fresh
        return fresh

    def note_error(self) -> None:
        """Take the socket's pending error, which would otherwise wake every poll from now on."""
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.interruptions += 1

    def freeze(self) -> None:
        """Let no further frame in; those that the interface has handed over stay."""
        let_nothing_in(self.sock)

    def settled(self) -> bool:
        """Whether every frame that the kernel counted is either read or dropped."""
        packets, dropped, _ = struct.unpack("III", self.sock.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 12))
        self._received += packets
        self.dropped += dropped
        return self.packets >= self._received - self.dropped

    def close(self) -> None:
        """Give the ring back; raises `TestbedError` if the spool could not be written in full."""
        self._view.release()
        self._map.close()
        os.close(self._out)
        self.sock.close()
        if self._error:
            raise TestbedError(f"capture of {self.interface}: {self.spool}: {self._error}") from self._error

    def _write(self, base: int, length: int) -> None:
        if self._error:
            return
        done = 0
        try:
            while done < length:
                done += os.write(self._out, self._view[base + done : base + length])
        except OSError as error:
            # Its traceback would keep a view of the ring, which could then not be unmapped.
            self._error = error.with_traceback(None)


def _ring_request(block_bytes: int, blocks: int) -> bytes:
    frame_bytes = 2048  # unused by version 3 but for a consistency check
    return struct.pack("7I", block_bytes, blocks, frame_bytes, block_bytes // frame_bytes * blocks, RETIRE_MS, 0, 0)


class CaptureSet:
    """Captures at several points, read by one thread; a context manager that stops what was not stopped."""

    def __init__(self) -> None:
        self._rings: dict[str, PacketRing] = {}
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, points: Mapping[str, CapturePoint]) -> CaptureSet:
        """Capture at all `points`; every frame after the return is seen."""
        captures = cls()
        try:
            for name, point in points.items():
                captures.add(name, point)
        except BaseException:
            captures.stop()
            raise
        return captures

    def add(self, name: str, point: CapturePoint) -> None:
        """Capture at one more point, under a name not yet in use. The socket is closed also where this fails."""
        if name in self._rings:
            point.sock.close()
            raise ValueError(f"capture point {name} is in use")
        try:
            ring = PacketRing(point.sock, interface=point.interface, spool=point.path.with_suffix(".spool"))
        except BaseException:
            point.sock.close()
            raise
        with self._lock:
            self._rings[name] = ring
            self._paths[name] = point.path
            self._poll.register(ring.sock.fileno(), select.EPOLLIN)

    def packets(self, name: str) -> int:
        """Packets read so far at one point: up to two retire times behind."""
        return self._rings[name].packets

    def stop(self) -> dict[str, CaptureSummary]:
        """End all captures and write their files. A second call returns nothing.

        Raises `TestbedError` when a spool or a file could not be written or the kernel withheld a block; the other
        points' files are written all the same.
        """
        if self._ending:
            return {}
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._poll.close()
        os.close(self._wake)
        # A frame that was sent just now may still be on its way through another processor's receive queue.
        time.sleep(_GRACE_S)
        failures: list[Exception] = []
        for ring in self._rings.values():
            ring.freeze()
        end_ns = time.time_ns()
        summaries = {}
        for name, ring in self._rings.items():
            try:
                summaries[name] = self._finish(ring, self._paths[name], end_ns=end_ns)
            except (TestbedError, OSError) as error:
                failures.append(error)
        if failures:
            raise TestbedError("; ".join(str(failure) for failure in failures)) from failures[0]
        return summaries

    def __enter__(self) -> CaptureSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ending:
            events = self._poll.poll()
            with self._lock:
                rings = {ring.sock.fileno(): ring for ring in self._rings.values()}
            for descriptor, event in events:
                ring = rings.get(descriptor)
                if ring is None:
                    continue
                if event & select.EPOLLERR:
                    ring.note_error()
                ring.drain()

    @staticmethod
    def _finish(ring: PacketRing, path: Path, *, end_ns: int) -> CaptureSummary:
        limit = Deadline(_LAST_BLOCK_S)
        ring.drain()
        while not ring.settled():
            if limit.expired:
                ring.close()
                raise TestbedError(f"capture of {ring.interface}: the kernel withheld its last block for {limit.seconds:g} s")
            # The retire timer is what is awaited: poll is not told of a block that a filter keeps from filling.
            time.sleep(RETIRE_MS / 4000)
            ring.drain()
        ring.note_error()
        ring.close()
        shortened = convert_spool(
            ring.spool, path, interface=ring.interface, packets=ring.packets, dropped=ring.dropped,
            start_ns=ring.start_ns, end_ns=end_ns,
        )  # fmt: skip
        ring.spool.unlink()
        return CaptureSummary(
            packets=ring.packets, dropped=ring.dropped, shortened=shortened, interruptions=ring.interruptions, path=path
        )
