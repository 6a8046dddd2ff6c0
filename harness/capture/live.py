"""Frames on their way to a TAP, at once and fit to be sent again.

A frame copied from a TAP or a veth has no valid checksum yet: it is left to the (virtual) hardware. A guest that
is given such bytes as they are drops them. So frames are taken and given together with their virtio-net header,
which says what is still to be done.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from types import TracebackType
from typing import NamedTuple

from harness.capture.bpf import let_outgoing_in
from harness.errors import EnvironmentLackError, TestbedError

_SOL_PACKET = 263
_STATISTICS, _AUXDATA, _VNET_HDR, _VNET_HDR_SZ = 6, 8, 15, 24
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 35, 33, 32
_ETH_P_ALL = 3
_NEEDS_CHECKSUM = 1
_VLAN_VALID, _TPID_VALID = 0x10, 0x40
_AUX = struct.Struct("IIIHHHH")  # struct tpacket_auxdata
_LONGEST_FRAME = 65536 + 64
_BUFFER_BYTES = 64 << 20
_NS = 1_000_000_000


class LiveFrame(NamedTuple):
    """One frame that the host sent to the interface."""

    number: int
    """Counted from 0 since the tap began; exact as long as `LiveTap.dropped` is 0."""
    time_ns: int
    vnet_header: bytes
    frame: bytes


class LiveTap:
    """Keeps the newest frames that the host sends out of an interface, each visible as soon as it was sent.

    The socket is AF_PACKET, SOCK_RAW, made with protocol 0 in the interface's namespace; it is taken over. Frames that
    the interface's reader sends (inbound ones) are not kept and not counted. A frame is here before the TAP's reader
    can have it. Frames that an `Injector` sends to the same interface are among them. With `queue` it keeps and counts only the
    frames to that queue of an interface that has several.
    """

    def __init__(
        self, sock: socket.socket, *, interface: str, queue: int | None = None, keep_frames: int = 200_000, keep_bytes: int = 256 << 20
    ) -> None:
        if sock.getsockname()[1] != 0:
            raise ValueError("the socket must be made with protocol 0")
        self.interface = interface
        self._sock = sock
        self._keep_frames, self._keep_bytes = keep_frames, keep_bytes
        self._frames: deque[LiveFrame] = deque()
        self._bytes = 0
        self._count = 0
        self._dropped = 0
        self._lock = threading.Lock()
        try:
            let_outgoing_in(sock, queue=queue)
            _large_buffer(sock, receive=True)
            self.vnet_header_bytes = _use_vnet_header(sock)
            sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.setblocking(False)
            sock.bind((interface, _ETH_P_ALL))
        except OSError as error:
            raise EnvironmentLackError(f"cannot watch {interface}: {error}") from error
        self._buffer = bytearray(_LONGEST_FRAME)
        self._stop_reader, self._reader_end = socket.socketpair()
        self._thread = threading.Thread(target=self._read_on, name=f"live-{interface}", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Frames taken so far, forgotten ones included; call `drain` first for the present figure."""
        return self._count

    @property
    def dropped(self) -> int:
        """Frames that the kernel could not keep for us. Above 0 the numbers, and so any argument on them, are void."""
        with self._lock:
            _, dropped = struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))
            self._dropped += dropped
            return self._dropped

    @property
    def oldest(self) -> int:
        """Number of the oldest frame still kept; equals `count` when there is none."""
        with self._lock:
            return self._frames[0].number if self._frames else self._count

    def drain(self) -> int:
        """Take in everything that was sent until now; returns `count`. Never waits for more."""
        with self._lock:
            while self._receive():
                pass
            return self._count

    def frames(self, *, first: int = 0) -> list[LiveFrame]:
        """The kept frames from number `first` on, in order, after a `drain`. Costs what it returns."""
        self.drain()
        with self._lock:
            newest = list(takewhile(lambda frame: frame.number >= first, reversed(self._frames)))
        newest.reverse()
        return newest

    def close(self) -> None:
        """Stop watching; the kept frames stay readable."""
        if self._sock.fileno() < 0:
            return
        self.drain()
        _ = self.dropped
        self._stop_reader.close()
        self._thread.join()
        self._reader_end.close()
        with self._lock:
            self._sock.close()

    def __enter__(self) -> LiveTap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read_on(self) -> None:
        """Empty the socket now and then: the buffer is large, waking up for each would cost the guests time."""
        poll = select.poll()
        poll.register(self._reader_end, select.POLLIN)
        while not poll.poll(20):
            self.drain()

    def _receive(self) -> bool:
        if self._sock.fileno() < 0:
            return False
        try:
            size, ancillary, _, _ = self._sock.recvmsg_into([self._buffer], 256)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # the interface went away; what was queued is behind this error
                return True
            raise TestbedError(f"watching {self.interface}: {error}") from error
        time_ns = 0
        tag = b""
        for _level, kind, value in ancillary:
            if kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("qq" if len(value) == 16 else "ll", value)
                time_ns = seconds * _NS + nanoseconds
            elif kind == _AUXDATA:
                status, _, _, _, _, tci, tpid = _AUX.unpack(value)
                if status & _VLAN_VALID:
                    tag = struct.pack("!HH", tpid if status & _TPID_VALID else 0x8100, tci)
        header = bytes(self._buffer[: self.vnet_header_bytes])
        frame = bytes(self._buffer[self.vnet_header_bytes : size])
        if tag:
            header, frame = _with_tag(header, frame, tag)
        self._frames.append(LiveFrame(self._count, time_ns, header, frame))
        self._count += 1
        self._bytes += len(frame)
        while len(self._frames) > self._keep_frames or self._bytes > self._keep_bytes:
            self._bytes -= len(self._frames.popleft().frame)
        return True


class Injector:
    """Sends frames with their virtio-net header out of an interface: towards a TAP's reader.

    The socket is as for `LiveTap`, and taken over. Give the interface the queueing discipline `noqueue`: with any other
    a full TAP drops without telling the sender, and only its `tx_dropped` says so.
    """

    def __init__(self, sock: socket.socket, *, interface: str) -> None:
        self.interface = interface
        self._sock = sock
        self.retries = 0
        """Refusals of a full queue so far. Each may stand in the interface's drop counter and in captures of it."""
        try:
            self.vnet_header_bytes = _use_vnet_header(sock)
            _large_buffer(sock, receive=False)
            # Protocol 0: this socket receives nothing.
            sock.bind((interface, 0))
        except OSError as error:
            raise EnvironmentLackError(f"cannot send out of {interface}: {error}") from error

    def send(self, vnet_header: bytes, frame: bytes, *, deadline_ns: int) -> None:
        """Send one frame; a full queue is tried again until CLOCK_MONOTONIC reaches `deadline_ns`.

        A header of another size is cut or filled with zeros. Raises `TestbedError`: the frame was not sent.
        """
        message = vnet_header[: self.vnet_header_bytes].ljust(self.vnet_header_bytes, b"\0") + frame
        while True:
            try:
                self._sock.send(message)
                return
            except OSError as error:
                full = error.errno in (errno.ENOBUFS, errno.EAGAIN)
                if not full or time.monotonic_ns() >= deadline_ns:
                    raise TestbedError(f"sending {len(frame)} bytes out of {self.interface}: {error}") from error
            self.retries += 1
            time.sleep(0.0002)

    def send_all(self, frames: Iterable[LiveFrame], *, deadline_ns: int) -> int:
        """Send frames in order; returns their number. Raises `TestbedError` at the first that could not be sent."""
        sent = 0
        for frame in frames:
            self.send(frame.vnet_header, frame.frame, deadline_ns=deadline_ns)
            sent += 1
        return sent

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _use_vnet_header(sock: socket.socket) -> int:
    """Ask for the virtio-net header; returns its size: 12 bytes since Linux 6.4, 10 before."""
    try:
        sock.setsockopt(_SOL_PACKET, _VNET_HDR_SZ, 12)
        return 12
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    return 10


def _large_buffer(sock: socket.socket, *, receive: bool) -> None:
    force, polite = (_SO_RCVBUFFORCE, socket.SO_RCVBUF) if receive else (_SO_SNDBUFFORCE, socket.SO_SNDBUF)
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
    except PermissionError:  # root of a user namespace only; the system-wide limit then rules
        sock.setsockopt(socket.SOL_SOCKET, polite, _BUFFER_BYTES)


def _with_tag(header: bytes, frame: bytes, tag: bytes) -> tuple[bytes, bytes]:
    """Put back a VLAN tag that the kernel took out; the checksum's start moves with it."""
    flags, kind, header_length, size, start, offset = struct.unpack_from("=BBHHHH", header)
    if flags & _NEEDS_CHECKSUM:
        start += len(tag)
    if header_length:
        header_length += len(tag)
    fixed = struct.pack("=BBHHHH", flags, kind, header_length, size, start, offset)
    return fixed + header[10:], frame[:12] + tag + frame[12:]
