"""A TAP's queue, seen from a descriptor that we hold beside QEMU's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
from collections.abc import Iterable

__all__ = ["allow_super_frames", "queue_is_empty", "read_queue"]

_TUNGETVNETHDRSZ = 0x800454D7
_TUNSETOFFLOAD = 0x400454D0
_CHECKSUM = 1
_OFFLOADS = {1: 2, 4: 4, 5: 0x60}  # GSO type of a virtio-net header -> TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4 | TUN_F_USO6
_ECN_BIT, _TSO_ECN = 0x80, 8
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


def allow_super_frames(descriptors: Iterable[int], *, gso_types: Iterable[int]) -> None:
    """Let GSO super-frames of these types (as in virtio-net headers; 0: plain) into a TAP's queue as they are.

    A TAP whose QEMU has not yet learnt what its guest can do has all offloads off, and the kernel cuts each super-frame into dozens
    of frames on its way into the queue, which holds 1000. QEMU sets them anew when it does know. Types that tun can't take are left out.
    """
    wanted = 0
    for gso_type in gso_types:
        wanted |= _OFFLOADS.get(gso_type & ~_ECN_BIT, 0) | (_TSO_ECN if gso_type & _ECN_BIT else 0)
    if wanted:
        for fd in descriptors:
            with contextlib.suppress(OSError):  # EINVAL: a kernel without one of them cuts such frames, as it always did
                fcntl.ioctl(fd, _TUNSETOFFLOAD, wanted | _CHECKSUM)
