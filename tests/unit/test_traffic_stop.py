"""The end of the traffic: nobody stops receiving while the other end may still send."""

from __future__ import annotations

import asyncio

from harness.host.deadline import Deadline
from harness.model.scenario import TrafficSection
from harness.model.streams import plan_traffic
from harness.traffic.udp import UdpTraffic


class End:
    """An endpoint and its generator; `obeys_s`: how long after the order it stops sending."""

    def __init__(self, name: str, *, obeys_s: float, log: list[str]) -> None:
        self.name, self.log = name, log
        self._obeys_s = obeys_s

    async def start(self, tag, arguments, *, deadline):
        return self

    async def start_sending(self):
        self.log.append(f"{self.name} sends")

    async def stop_sending(self):
        self._stopping = asyncio.create_task(self._stop())

    async def _stop(self):
        await asyncio.sleep(self._obeys_s)
        self.log.append(f"{self.name} stopped")

    async def stopped(self, *, deadline):
        await self._stopping

    async def finish(self, folder, *, deadline):
        self.log.append(f"{self.name} ends")
        return {"streams": []}


def test_a_sender_that_is_slow_to_obey_is_waited_for(tmp_path):
    log: list[str] = []

    async def run() -> None:
        mobile, peer = End("mobile", obeys_s=0.2, log=log), End("peer", obeys_s=0.0, log=log)
        streams = tuple(plan_traffic((TrafficSection(),)))
        traffic = UdpTraffic(streams, mobile=mobile, peer=peer, nonce=1)
        await traffic.start(deadline=Deadline(5.0))
        assert log == ["mobile sends", "peer sends"]
        await traffic.stop(tmp_path, drain_s=0.0, deadline=Deadline(5.0))

    asyncio.run(run())
    assert log[2:] == ["peer stopped", "mobile stopped", "mobile ends", "peer ends"]
