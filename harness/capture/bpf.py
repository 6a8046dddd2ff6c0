"""The two classic BPF programs that packet sockets need here."""

from __future__ import annotations

import ctypes
import socket

_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_PKTTYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE


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
    _attach(sock, [(0x06, 0, 0, 0)])


def let_outgoing_in(sock: socket.socket) -> None:
    """From now on the socket receives only frames that the host sends out of the interface."""
    _attach(sock, [(0x28, 0, 0, _PKTTYPE), (0x15, 0, 1, _PACKET_OUTGOING), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)])
