"""A TAP's queue, seen from a descriptor that we hold beside QEMU's."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterable

__all__ = ["queue_is_empty", "read_queue"]

_TUNGETVNETHDRSZ = 0x800454D7
_LONGEST_FRAME_BYTES = 1 << 17


def read_queue(descriptors: Iterable[int]) -> list[bytes]:
    """Take every frame that waits in the queues, without the virtio-net headers.

    The header's length is asked for: QEMU sets it to 10 bytes with its device's reset and to 12 when the guest's driver
    (or the incoming state) has chosen mergeable buffers.
    """
    frames = []
    for fd in descriptors:
        (header_bytes,) = struct.unpack("i", fcntl.ioctl(fd, _TUNGETVNETHDRSZ, bytes(4)))
        while True:
            try:
                frames.append(os.read(fd, _LONGEST_FRAME_BYTES)[header_bytes:])
            except BlockingIOError:
                break
    return frames


def queue_is_empty(fd: int) -> bool:
    """Whether nothing waits in this queue."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return not poller.poll(0)
