"""Bridge ports and forwarding entries, changed in one message to the kernel.

pyroute2 builds the lab; here the messages are encoded by hand because a handover must change several things
within some tens of microseconds: a batch goes to the kernel in one `send` and is carried out in order.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import TestbedError

__all__ = ["BridgeControl", "PortFlags", "forward_to", "port_message"]

_RTM_NEWLINK, _RTM_SETLINK, _RTM_NEWNEIGH, _RTM_DELNEIGH = 16, 19, 28, 29
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE, _NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
_NLMSG_ERROR, _NLA_F_NESTED = 2, 0x8000
_AF_BRIDGE = 7
_IFLA_PROTINFO = 12
_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD, _BRPORT_MCAST_FLOOD, _BRPORT_BCAST_FLOOD = 8, 9, 27, 30
_NDA_LLADDR, _NTF_MASTER, _NUD_REACHABLE = 2, 0x04, 0x02


@dataclass(frozen=True)
class PortFlags:
    """What a bridge port does with frames that have no forwarding entry, and whether it learns."""

    learning: bool
    flooding: bool

    @classmethod
    def opened(cls) -> PortFlags:
        return cls(learning=True, flooding=True)

    @classmethod
    def closed(cls) -> PortFlags:
        return cls(learning=False, flooding=False)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0) + body


def port_message(ifindex: int, flags: PortFlags, *, sequence: int = 0) -> bytes:
    """Netlink message that sets a port's learning and its three kinds of flooding."""
    values = (
        (_BRPORT_LEARNING, flags.learning),
        (_BRPORT_UNICAST_FLOOD, flags.flooding),
        (_BRPORT_MCAST_FLOOD, flags.flooding),
        (_BRPORT_BCAST_FLOOD, flags.flooding),
    )
    nested = b"".join(_attribute(kind, bytes([value])) for kind, value in values)
    body = struct.pack("=BxHiII", _AF_BRIDGE, 0, ifindex, 0, 0) + _attribute(_IFLA_PROTINFO | _NLA_F_NESTED, nested)
    return _message(_RTM_SETLINK, 0, body, sequence)


def forward_to(mac: str, ifindex: int, *, sequence: int = 0) -> bytes:
    """Netlink message that points the forwarding entry of `mac` at a port (dynamic: it moves again on learning)."""
    body = struct.pack("=BxxxiHBB", _AF_BRIDGE, ifindex, _NUD_REACHABLE, _NTF_MASTER, 0)
    body += _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    return _message(_RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body, sequence)


class BridgeControl:
    """Sends batches over a netlink socket of the lab's namespace."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.bind((0, 0))
        self._sequence = 1

    def close(self) -> None:
        self._sock.close()

    def apply(self, messages: Sequence[bytes]) -> None:
        """Carry out `messages` in order; `TestbedError` names the first one the kernel refused."""
        batch = bytearray()
        first = self._sequence
        for message in messages:
            numbered = bytearray(message)
            struct.pack_into("=I", numbered, 8, self._sequence)
            batch += numbered
            self._sequence += 1
        self._sock.send(bytes(batch))
        waiting = set(range(first, self._sequence))
        while waiting:
            if not select.select([self._sock], [], [], 5.0)[0]:
                raise TestbedError("the kernel did not answer a bridge change within 5 s")
            data = self._sock.recv(1 << 16)
            while len(data) >= 16:
                length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", data, 16)
                    waiting.discard(sequence)
                    if code != 0:
                        raise TestbedError(
                            f"the kernel refused change {sequence - first + 1} of {len(messages)} to the bridge:"
                            f" {os.strerror(-code)} ({errno.errorcode.get(-code, -code)})"
                        )
                data = data[(length + 3) & ~3 :]
