"""UDP probe streams: numbered packets on schedule, recorded at both ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.streams import UdpStream
from harness.traffic.endpoint import Endpoint
from harness.traffic.swgen import SwgenPair

__all__ = ["UdpTraffic"]


class UdpTraffic:
    """All UDP streams of a run. Receivers are up before the first packet is sent and stay until the last one had time to arrive."""

    def __init__(self, streams: tuple[UdpStream, ...], *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._pair = SwgenPair(streams, mobile=mobile, peer=peer, nonce=nonce)

    async def start(self, *, deadline: Deadline) -> None:
        await self._pair.start(deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """A sender that is slow to obey may send for a while yet: what is on its way counts from its own word that it has stopped."""
        await self._pair.stop_sending()
        await self._pair.stopped(deadline=deadline)
        await asyncio.sleep(drain_s)
        return await self._pair.finish(folder, deadline=deadline)
