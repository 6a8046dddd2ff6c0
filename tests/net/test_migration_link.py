"""The migration link between two hosts: it routes, its rate is bounded, and where the kernel has no netem a relay delays and loses."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest

from harness.errors import EnvironmentLackError
from harness.host.deadline import Deadline
from harness.host.migration_link import LinkQueue, LinkShape
from harness.host.network import Network
from harness.host.warden import Warden
from harness.model.scenario import Topology

RECEIVE = """
import socket
with socket.create_server(("10.79.1.1", 5000)) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    count = 0
    while data := peer.recv(1 << 16):
        count += len(data)
print(count)
"""
SEND = """
import socket, time
began = time.monotonic()
with socket.create_connection(("10.79.1.1", 5000)) as peer:
    peer.sendall(bytes(2 << 20))
"""


async def through(shape: LinkShape, *, pings: int) -> tuple[int, float, int, list[LinkQueue]]:
    """Replies to so many pings, the fastest in milliseconds, the bytes of 2 MiB of TCP that arrived, and the kernel's queues."""
    async with Warden() as warden, Network(warden) as network:
        try:
            await network.start(topology=Topology.TWO_HOSTS, link=shape)
        except EnvironmentLackError as lack:
            pytest.skip(str(lack))
        ping = await warden.spawn("ping", ["ping", "-c", str(pings), "-i", "0.05", "-W", "2", "10.79.1.1"], netns="host-a")
        receiver = await warden.spawn("receive", [sys.executable, "-c", RECEIVE], netns="host-b")

        async def listening() -> bool:
            return b"listening" in receiver.read_output()

        await Deadline(20.0).poll(listening, awaited="the receiver")
        sender = await warden.spawn("send", [sys.executable, "-c", SEND], netns="host-a")
        assert await sender.wait(Deadline(60.0)) == 0, sender.read_output()
        assert await receiver.wait(Deadline(60.0)) == 0, receiver.read_output()
        await ping.wait(Deadline(60.0))
        times = [float(text) for text in re.findall(r"time=([\d.]+)", ping.read_output().decode())]
        assert network.migration_link is not None
        queues = await network.migration_link.queues()
        again = await network.migration_link.queues()
        assert all(later.frames < queue.frames for queue, later in zip(queues, again, strict=True)), "only what went through since"
        return len(times), min(times, default=0.0), int(receiver.read_output().split()[-1]), queues


@pytest.mark.parametrize("shape", [LinkShape(), LinkShape(mbit_s=100)], ids=["as-it-is", "tbf"])
def test_everything_arrives(shape):
    replies, _, count, queues = asyncio.run(through(shape, pings=5))
    assert (replies, count) == (5, 2 << 20)
    assert [(queue.kind, queue.towards) for queue in queues] == ([("tbf", "host-a"), ("tbf", "host-b")] if shape.mbit_s else [])
    assert all(queue.frames > 5 for queue in queues), queues


def test_a_delay_is_there_both_ways():
    replies, fastest_ms, count, _ = asyncio.run(through(LinkShape(delay_ms=10), pings=5))
    assert (replies, count) == (5, 2 << 20)
    assert fastest_ms >= 20


def test_a_link_that_loses_frames_loses_pings_and_tcp_makes_up_for_it():
    replies, _, count, _ = asyncio.run(through(LinkShape(loss_percent=3), pings=200))
    assert 100 < replies < 200
    assert count == 2 << 20
