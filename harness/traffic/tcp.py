"""TCP connections: bulk, request and idle, followed with TCP_INFO at both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.streams import TcpStream
from harness.traffic.endpoint import Endpoint
from harness.traffic.swgen import SwgenPair

__all__ = ["TcpTraffic"]

_FAREWELL_S = 15.0
"""The generator itself gives up on a connection's last word after 5 s, and each end may have to wait once."""


class TcpTraffic:
    """All TCP connections of a run. Each is ended in order: its client has the server's last word, or says why it has not."""

    def __init__(self, streams: tuple[TcpStream, ...], *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._pair = SwgenPair(streams, mobile=mobile, peer=peer, nonce=nonce)

    async def start(self, *, deadline: Deadline) -> None:
        await self._pair.start(deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """`drain_s` is of no use here: each end waits for the other's last word."""
        await self._pair.stop_sending()
        await self._pair.stopped(deadline=deadline.within(_FAREWELL_S))
        return await self._pair.finish(folder, deadline=deadline)
