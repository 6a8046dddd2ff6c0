"""UDP probe streams: numbered packets on schedule, recorded at both ends by the guest traffic generator (swgen)."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.streams import UdpStream
from harness.traffic.endpoint import Endpoint, Running

__all__ = ["UdpTraffic"]


@dataclass(eq=False)
class UdpTraffic:
    """All UDP streams of a run. Receivers are up before the first packet is sent and stay until the last one had time to arrive."""

    streams: tuple[UdpStream, ...]
    mobile: Endpoint
    peer: Endpoint
    nonce: int = field(default_factory=lambda: secrets.randbits(32))
    _running: list[Running] = field(default_factory=list)

    async def start(self, *, deadline: Deadline) -> None:
        """Bring up all receivers, then let all senders begin."""
        self._running = list(
            await asyncio.gather(
                *(self._launch(end, sends=sends, deadline=deadline) for end, sends in ((self.mobile, False), (self.peer, True)))
            )
        )
        await asyncio.gather(*(running.start_sending() for running in self._running))

    async def _launch(self, endpoint: Endpoint, *, sends: bool, deadline: Deadline) -> Running:
        """`sends`: whether this end sends the streams whose sender is the peer."""
        arguments = ["--nonce", str(self.nonce)]
        for stream in self.streams:
            arguments += ["--stream", stream.sender() if stream.sender_is_peer is sends else stream.receiver()]
        return await endpoint.start(f"{self.nonce:08x}-{self.streams[0].id}", arguments, deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """Stop sending, wait `drain_s` for what is on its way, fetch all records into `folder`; the generators' summaries."""
        await asyncio.gather(*(running.stop_sending() for running in self._running))
        await asyncio.sleep(drain_s)
        return list(await asyncio.gather(*(running.finish(folder, deadline=deadline) for running in self._running)))
