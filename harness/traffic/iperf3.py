"""iperf3, as a witness: a server in the mobile guest, a client at the peer, one TCP connection under load."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.addresses import MOBILE
from harness.model.scenario import Direction
from harness.model.streams import Witness
from harness.traffic.endpoint import Endpoint, Program
from harness.traffic.witness import keep, until_listening

__all__ = ["Iperf3"]

_LONG_S = 86_000
"""The client is told to go on for this long (iperf3 allows a day), and interrupted when the run says so."""


class Iperf3:
    """Leaves `<id>.iperf3.json` (the client's report) and `<id>.iperf3-server.json`."""

    def __init__(self, witness: Witness, *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._witness = witness
        self._mobile = mobile
        self._peer = peer
        self._tag = f"{nonce:08x}-iperf3-{witness.id}"
        self._server: Program | None = None
        self._client: Program | None = None

    def server_argv(self) -> list[str]:
        return ["iperf3", "-s", "-1", "-J", "-p", str(self._witness.port)]

    def client_argv(self) -> list[str]:
        witness = self._witness
        argv = ["iperf3", "-c", MOBILE.ip(witness.ip), f"-{witness.ip}", "-p", str(witness.port), "-J"]
        argv += ["-t", str(_LONG_S), "-l", str(witness.size)]
        if witness.rate_pps is not None:
            argv += ["-b", str(round(witness.rate_pps * witness.size * 8))]
        if witness.direction is Direction.FROM_GUEST:
            argv.append("-R")
        return argv

    async def start(self, *, deadline: Deadline) -> None:
        self._server = await self._mobile.launch(f"{self._tag}-server", self.server_argv(), deadline=deadline)
        await until_listening(self._mobile, self._witness.port, who="iperf3", deadline=deadline)
        self._client = await self._peer.launch(self._tag, self.client_argv(), deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """The client's report comes with its interruption; the server's with the client's end."""
        for program, name in ((self._client, "iperf3"), (self._server, "iperf3-server")):
            if program is not None:
                output = await program.end(signal.SIGINT, deadline=deadline)
                await asyncio.to_thread(keep, output, folder / f"{self._witness.id}.{name}.json")
        return []
