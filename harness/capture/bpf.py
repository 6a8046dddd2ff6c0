"""The classic BPF programs of this package: two for packet sockets, one that drops probes on purpose."""

from __future__ import annotations

import ctypes
import socket

from harness.analysis.columns import PROBE_MAGIC

_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_PKTTYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_QUEUE = 0xFFFFF018  # SKF_AD_OFF + SKF_AD_QUEUE
_LOAD, _LOAD_HALF, _LOAD_BYTE, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x35, 0x06
_ACT_SHOT, _ACT_UNSPEC = 2, 0xFFFFFFFF


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def _attach(sock: socket.socket, instructions: list[tuple[int, int, int, int]]) -> None:
    # The kernel reads the program through this pointer, during the call.
    array = (_Instruction * len(instructions))(*(_Instruction(*each) for each in instructions))
    program = _Program(len(instructions), array)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


def let_nothing_in(sock: socket.socket) -> None:
    """From now on the socket receives no frame; what is queued stays."""
    _attach(sock, [(_RETURN, 0, 0, 0)])


def keep_beginnings(sock: socket.socket, *, most_bytes: int) -> None:
    """From now on the socket receives every frame, but of each at most so many bytes."""
    _attach(sock, [(_RETURN, 0, 0, most_bytes)])


def let_outgoing_in(sock: socket.socket, *, queue: int | None = None) -> None:
    """From now on the socket receives only frames that the host sends out of the interface; with `queue` only those to that queue of it.

    The kernel has chosen the queue when a socket sees a frame, and a TAP goes by it.
    """
    tests = [(_PKTTYPE, _PACKET_OUTGOING)] if queue is None else [(_PKTTYPE, _PACKET_OUTGOING), (_QUEUE, queue)]
    program: list[tuple[int, int, int, int]] = []
    length = 2 * len(tests) + 2
    for word, value in tests:
        program.append((_LOAD_HALF, 0, 0, word))
        program.append((_EQUAL, 0, length - len(program) - 2, value))
    _attach(sock, [*program, (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)])


def drop_probes_bytecode(*, stream: int, first: int, count: int) -> str:
    """A program for `tc filter add dev PORT ingress protocol all bpf da bytecode ...` on a port that has `clsact`.

    It drops the stream's probes and requests with the numbers `first` to `first + count - 1` (below 2^32), in IPv4
    without options and untagged, and lets all else pass on. The drops stand in the `clsact` queueing discipline's
    statistics. A capture at the port sees the probes all the same: it comes before.
    """
    tests = [
        (_LOAD_HALF, 12, _EQUAL, 0x0800),
        (_LOAD_BYTE, 14, _EQUAL, 0x45),
        (_LOAD_BYTE, 23, _EQUAL, 17),
        (_LOAD, 42, _EQUAL, PROBE_MAGIC),
        (_LOAD, 50, _EQUAL, stream),
        (_LOAD, 58, _EQUAL, 0),
        (_LOAD, 62, _AT_LEAST, first),
    ]
    program: list[tuple[int, int, int, int]] = []
    length = 2 * len(tests) + 3
    for load, offset, jump, value in tests:
        program.append((load, 0, 0, offset))
        program.append((jump, 0, length - len(program) - 2, value))
    program += [(_AT_LEAST, 1, 0, first + count), (_RETURN, 0, 0, _ACT_SHOT), (_RETURN, 0, 0, _ACT_UNSPEC)]
    return ",".join([str(len(program)), *(" ".join(map(str, each)) for each in program)])
