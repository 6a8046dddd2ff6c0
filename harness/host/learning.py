"""What the lab's bridges learn, as it happens: RTM_NEWNEIGH and RTM_DELNEIGH of the bridge family."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from harness.model.events import Event

__all__ = ["BridgeWatch", "parse_learning"]

_NEWNEIGH, _DELNEIGH = 28, 29
_AF_BRIDGE, _RTMGRP_NEIGH = 7, 4
_NDA_LLADDR, _NTF_SELF, _NUD_PERMANENT = 2, 0x02, 0x80
_BUFFER_BYTES = 1 << 20
_SO_RCVBUFFORCE = 33


def parse_learning(data: bytes) -> list[tuple[str, str, int]]:
    """("learned" or "forgotten", MAC address, interface index) of each entry that a bridge changed by itself."""
    found = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16 or length > len(data):
            break
        if kind in (_NEWNEIGH, _DELNEIGH) and length >= 28:
            family, ifindex, state, flags = struct.unpack_from("=BxxxiHB", data, 16)
            mac = _address(data[28:length])
            if family == _AF_BRIDGE and mac and not state & _NUD_PERMANENT and not flags & _NTF_SELF:
                found.append(("learned" if kind == _NEWNEIGH else "forgotten", mac, ifindex))
        data = data[(length + 3) & ~3 :]
    return found


def _address(attributes: bytes) -> str:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if length < 4:
            break
        if kind == _NDA_LLADDR and length == 10 <= len(attributes):
            return attributes[4:10].hex(":")
        attributes = attributes[(length + 3) & ~3 :]
    return ""


class BridgeWatch:
    """Listens in a thread of its own. The times are those at which the message was read: never early, late by what this
    process was kept waiting.

    `events` may be read at any time; a lost message (the socket's queue ran over) is an event too.
    """

    def __init__(self, sock: socket.socket, *, name_of: Callable[[int], str]) -> None:
        self.events: list[Event] = []
        self._sock, self._name_of = sock, name_of
        with contextlib.suppress(OSError):  # allowed to root in the first user namespace only
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.bind((0, _RTMGRP_NEIGH))
        sock.settimeout(0.2)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="bridge-watch", daemon=True)
        self._thread.start()

    def forget(self, *, before_ns: int) -> None:
        """Drop the events before that time."""
        del self.events[: next((n for n, event in enumerate(self.events) if event.t_ns >= before_ns), len(self.events))]

    def close(self) -> None:
        """Stop listening. May be called again."""
        self._ending.set()
        self._thread.join()
        self._sock.close()

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                self._add(time.time_ns(), "FDB_LOST", {"error": error.strerror or str(error)})
                continue
            t_ns = time.time_ns()
            for change, mac, ifindex in parse_learning(data):
                self._add(t_ns, "FDB", {"mac": mac, "port": self._name_of(ifindex), "change": change})

    def _add(self, t_ns: int, name: str, data: dict[str, str]) -> None:
        self.events.append(Event(t_ns=t_ns, source="bridge", name=name, data=dict(data)))
