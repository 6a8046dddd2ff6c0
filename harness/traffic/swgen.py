"""Our own generator (swgen) at both ends, driving one set of streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.streams import TcpStream, UdpStream
from harness.traffic.endpoint import Endpoint, Running

__all__ = ["SwgenPair"]


class SwgenPair:
    """One process at each end. Whoever receives or listens is up before the first packet is sent."""

    def __init__(self, streams: Sequence[UdpStream | TcpStream], *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._streams = tuple(streams)
        self._ends = {"mobile": mobile, "peer": peer}
        self._nonce = nonce
        self._running: dict[str, Running] = {}

    async def start(self, *, deadline: Deadline) -> None:
        """Bring up both ends, then let both send."""
        running = await asyncio.gather(*(self._launch(name, deadline=deadline) for name in self._ends))
        self._running = dict(zip(self._ends, running, strict=True))
        await asyncio.gather(*(each.start_sending() for each in running))

    async def _launch(self, end: str, *, deadline: Deadline) -> Running:
        arguments = ["--nonce", str(self._nonce)]
        for stream in self._streams:
            sends = stream.sender_is_peer == (end == "peer")
            arguments += ["--stream", stream.sender() if sends else stream.receiver()]
        return await self._ends[end].start(f"{self._nonce:08x}-{self._streams[0].id}", arguments, deadline=deadline)

    async def stop_sending(self) -> None:
        """Both ends stop sending, and go on receiving."""
        await asyncio.gather(*(running.stop_sending() for running in self._running.values()))

    async def stopped(self, *, deadline: Deadline) -> None:
        """Wait until both ends have stopped sending, with the other's last word where there is one."""
        await asyncio.gather(*(running.stopped(deadline=deadline) for running in self._running.values()))

    async def finish(self, folder: Path, *, deadline: Deadline) -> list[dict[str, Any]]:
        """End both, fetch all records; their summaries, each with the name of its `endpoint`."""
        work = (running.finish(folder, deadline=deadline) for running in self._running.values())
        return [{"endpoint": end} | summary for end, summary in zip(self._running, await asyncio.gather(*work), strict=True)]
