"""irtt, as a witness: a server in the mobile guest, a client at the peer; round trips of numbered UDP packets."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.addresses import MOBILE
from harness.model.streams import Witness
from harness.traffic.endpoint import Endpoint, Program
from harness.traffic.witness import keep, until_listening

__all__ = ["Irtt"]

_REPORT = "irtt.json"
_MOST_PACKETS = 200_000
"""irtt takes memory for all packets of a test before it sends the first: for a day of them a small guest has not enough."""


class Irtt:
    """Leaves `<id>.irtt.json`, the client's report with each round trip."""

    def __init__(self, witness: Witness, *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._witness = witness
        self._mobile = mobile
        self._peer = peer
        self._tag = f"{nonce:08x}-irtt-{witness.id}"
        self._server: Program | None = None
        self._client: Program | None = None

    def _address(self) -> str:
        address, port = MOBILE.ip(self._witness.ip), self._witness.port
        return f"[{address}]:{port}" if self._witness.ip == 6 else f"{address}:{port}"

    def server_argv(self) -> list[str]:
        """Without `-i 1ms` the server allows no interval below 10 ms, without `-d 0` no test above a minute."""
        return ["irtt", "server", "-i", "1ms", "-d", "0", "-b", self._address()]

    def client_argv(self) -> list[str]:
        witness = self._witness
        interval_us = round((witness.interval_s or 0.01) * 1e6)
        argv = ["irtt", "client", "-i", f"{interval_us}us", "-d", f"{_MOST_PACKETS * interval_us}us", "-l", str(witness.size), "-q"]
        return [*argv, "-o", _REPORT, self._address()]

    async def start(self, *, deadline: Deadline) -> None:
        self._server = await self._mobile.launch(f"{self._tag}-server", self.server_argv(), deadline=deadline)
        await until_listening(self._mobile, self._witness.port, who="irtt", udp=True, deadline=deadline)
        self._client = await self._peer.launch(self._tag, self.client_argv(), output=_REPORT, deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        if self._client is not None:
            output = await self._client.end(signal.SIGINT, deadline=deadline)
            await asyncio.to_thread(keep, output, folder / f"{self._witness.id}.irtt.json")
        if self._server is not None:
            await self._server.end(signal.SIGTERM, deadline=deadline)
        return []
