"""What a guest really received, told from outside by its receive ring's used index.

QEMU reads a TAP in order. So of the frames that the host sent to the TAP (all of them, not only probes) the first ones
are in the guest's ring, the next one or two may be inside QEMU, parked or purged, and the rest is still in the TAP's
queue. The used index says how many buffers the first ones took.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_WRAP = 1 << 16


class RingReading(msgspec.Struct, frozen=True, kw_only=True):
    """The used index (16 bits, wrapping) at a moment when the first `frames` frames had been received, no more."""

    used_index: int
    frames: int


def frames_in_ring(
    frame_bytes: Sequence[int], *, base: RingReading, used_index: int, buffer_bytes: int, header_bytes: int = 12
) -> int | None:
    """How many of the frames, from number 0 on, the guest has: a number between `base.frames` and all.

    `frame_bytes`: lengths of all frames sent to the TAP that pass the device's address filter. With mergeable
    buffers a frame takes several of `buffer_bytes`; without, one, however long: give a `buffer_bytes` above all.
    The index wraps: of several possible answers, which are at least 65536 buffers apart, the one nearest to the end is
    taken, as QEMU keeps few frames and the TAP's queue holds far fewer than 65536. `None` when the index fits no
    boundary between two frames: then it, or the list, is not what it is taken for, and proves nothing.
    """
    wanted = (used_index - base.used_index) % _WRAP
    total = 0
    answer = base.frames if wanted == 0 else None
    for number in range(base.frames, len(frame_bytes)):
        total += -(-(header_bytes + frame_bytes[number]) // buffer_bytes)
        if total % _WRAP == wanted:
            answer = number + 1
    return answer


def swallowed_frames(*, sent: int, in_ring: int, in_queue: int) -> range | None:
    """Numbers of the frames inside QEMU: taken from the TAP, not in the ring.

    `sent`: frames sent to the TAP; `in_queue`: those read back from its queue after the source's end, which are
    the last ones. Frames that the queue refused must not be among `sent`. `None` when the figures contradict.
    """
    taken = sent - in_queue
    return range(in_ring, taken) if 0 <= in_ring <= taken else None
