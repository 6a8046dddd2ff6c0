"""A relay between two interfaces, with delay and loss: for kernels without netem. Run as a program, in their namespace.

    python relay.py INTERFACE INTERFACE DELAY_MS LOSS_PERCENT SEED

Frames keep their order. The interfaces' other ends must leave neither checksums nor segmentation to others (`plain_wire`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import deque

__all__ = ["plain_wire", "relay"]

_SIOCETHTOOL = 0x8946
_STXCSUM, _STSO, _SGSO, _SGRO = 0x17, 0x1F, 0x24, 0x2C
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_BUFFER_BYTES = 16 << 20
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_LONGEST_FRAME = 65_536


def plain_wire(sock: socket.socket, name: str) -> None:
    """Switch the offloads of an interface off, through a socket of its namespace: what leaves it is what a wire would carry."""
    for command in (_SGRO, _SGSO, _STSO, _STXCSUM):
        value = bytearray(struct.pack("II", command, 0))
        request = struct.pack("16sP", name.encode(), ctypes.addressof((ctypes.c_char * len(value)).from_buffer(value)))
        with contextlib.suppress(OSError):  # it may not have that offload
            fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _open(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    sock.bind((name, _ETH_P_ALL))
    sock.setblocking(False)
    return sock


def relay(names: tuple[str, str], *, delay_s: float, loss: float, seed: int) -> tuple[int, int]:
    """Until SIGTERM; returns how many frames were passed and dropped. `loss`: a share of 1."""
    ends = [_open(name) for name in names]
    waiting: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    chance = random.Random(seed)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    passed = dropped = 0
    poller = select.epoll()
    for end in ends:
        poller.register(end, select.EPOLLIN)
    by_descriptor = {end.fileno(): number for number, end in enumerate(ends)}
    while not ended:
        now = time.monotonic()
        due = min((queue[0][0] for queue in waiting if queue), default=now + 0.2)
        for descriptor, _ in poller.poll(max(0.0, due - now)):
            number = by_descriptor[descriptor]
            for _ in range(256):
                try:
                    frame, origin = ends[number].recvfrom(_LONGEST_FRAME)
                except BlockingIOError:
                    break
                if origin[2] == _PACKET_OUTGOING:  # our own
                    continue
                if loss and chance.random() < loss:
                    dropped += 1
                    continue
                waiting[1 - number].append((time.monotonic() + delay_s, frame))
        now = time.monotonic()
        for end, queue in zip(ends, waiting, strict=True):
            while queue and queue[0][0] <= now:
                try:
                    end.send(queue[0][1])
                    passed += 1
                except BlockingIOError:
                    break
                except OSError:
                    dropped += 1
                queue.popleft()
    return passed, dropped


if __name__ == "__main__":
    a, b, delay_ms, loss_percent, seed = sys.argv[1:]
    print(*relay((a, b), delay_s=float(delay_ms) / 1000, loss=float(loss_percent) / 100, seed=int(seed)))
