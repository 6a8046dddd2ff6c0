"""ping from the peer, as a witness: its log (`-D -O`) is what several published estimators read."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from harness.host.deadline import Deadline
from harness.model.addresses import MOBILE
from harness.model.streams import Witness
from harness.traffic.endpoint import Endpoint, Program
from harness.traffic.witness import keep

__all__ = ["Ping"]


class Ping:
    """Echo requests from the peer to the mobile guest; leaves `<id>.ping.log`."""

    def __init__(self, witness: Witness, *, mobile: Endpoint, peer: Endpoint, nonce: int) -> None:
        self._witness = witness
        self._peer = peer
        self._tag = f"{nonce:08x}-ping-{witness.id}"
        self._program: Program | None = None

    def argv(self) -> list[str]:
        """`-D`: times; `-O`: says what is not answered yet; `-n`: no names."""
        witness = self._witness
        argv = ["ping", f"-{witness.ip}", "-D", "-O", "-n", "-s", str(witness.size)]
        if witness.interval_s is not None:
            argv += ["-i", f"{witness.interval_s:.6g}"]
        return [*argv, MOBILE.ip(witness.ip)]

    async def start(self, *, deadline: Deadline) -> None:
        self._program = await self._peer.launch(self._tag, self.argv(), deadline=deadline)

    async def stop(self, folder: Path, *, drain_s: float, deadline: Deadline) -> list[dict[str, Any]]:
        """The last request may be unanswered: ping has no way to stop asking and go on listening."""
        if self._program is not None:
            output = await self._program.end(signal.SIGINT, deadline=deadline)
            await asyncio.to_thread(keep, output, folder / f"{self._witness.id}.ping.log")
        return []
