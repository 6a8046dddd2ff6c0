# SPDX-License-Identifier: GPL-2.0-or-later
"""The traffic generator's connections: what it promises in images/guest/README.md."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from swgen import ADDRESSES, ESTABLISHED, Launch, probe, read_records


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("rate", ["", ",rate=200"], ids=["full speed", "paced"])
def test_bulk_bytes_arrive_whole_and_are_confirmed(launch: Launch, port: int, address: str, rate: str) -> None:
    server = launch(f"id=1,role=tcp-serve,src={address},port={port}")
    client = launch(f"id=1,role=tcp-bulk,dst={address},port={port},size=8192{rate}", options=("--wait",))
    began = time.monotonic()
    client.start()
    time.sleep(0.4)
    client.stop()
    sent = client.finish()[1]
    took_s = time.monotonic() - began  # how long it took at most: a stop is seen a little later than it was said
    got = server.finish()[1]

    assert sent["tcp"]["closed"]
    assert got["tcp"]["closed"]
    assert sent["tcp"]["bytes"] == sent["tcp"]["confirmed_bytes"] == got["tcp"]["bytes"] > 100_000
    assert got["corrupt"] == 0
    if rate:
        assert sent["tcp"]["bytes"] <= (200 * took_s + 1) * 8192
    for generator in (client, server):
        header, records = read_records(generator.out / "1.tcp.rec")
        assert (header.kind, header.stream, header.nonce) == (4, 1, 7)
        assert (records[0].event, records[-1].event) == (1, 3), "opened first, closed last"
        assert records[0].state == ESTABLISHED
        assert [record.app_bytes for record in records] == sorted(record.app_bytes for record in records)
        assert len(records) > 2, "one each 10 ms, where the host lets it"
    last = read_records(client.out / "1.tcp.rec")[1][-1]
    assert last.bytes_acked >= last.app_bytes == sent["tcp"]["bytes"]


def test_a_stall_shows_with_its_beginning_and_its_end(launch: Launch, port: int) -> None:
    server = launch(f"id=1,role=tcp-serve,port={port}")
    client = launch(f"id=1,role=tcp-bulk,dst=127.0.0.1,port={port},size=4096,rate=1000", options=("--wait",))
    client.start()
    time.sleep(0.1)
    client.pause(0.2)
    time.sleep(0.1)
    client.stop()
    client.finish()
    server.finish()
    _, records = read_records(server.out / "1.tcp.rec")
    stalls_ns = [record.time_ns - record.progress_ns for record in records if record.event == 2]
    assert max(stalls_ns) > 190_000_000


@pytest.mark.parametrize("size", [32, 5000])
def test_each_request_is_answered_once_on_schedule(launch: Launch, port: int, size: int) -> None:
    server = launch(f"id=4,role=tcp-serve,port={port}")
    client = launch(
        f"id=4,role=tcp-request,dst=127.0.0.1,port={port},rate=500,size={size},count=100", options=("--wait",)
    )
    client.send_all()
    asked, answered = client.finish()[4], server.finish()[4]

    assert asked["tcp"]["closed"]
    assert answered["tcp"]["closed"]
    _, sent = read_records(client.out / "4.sent.rec")
    _, replies = read_records(client.out / "4.replies.rec")
    _, requests = read_records(server.out / "4.received.rec")
    assert [record.seq for record in sent] == [record.seq for record in requests] == [record.seq for record in replies]
    assert [record.seq for record in sent] == list(range(100))
    assert {record.udp_length for record in replies} == {size}
    assert {record.flags for record in requests} == {0x20001}
    assert {record.flags for record in replies} == {0x20002}
    for record in sent:
        assert record.due_ns - sent[0].due_ns == record.seq * 2_000_000


def test_an_idle_connection_is_asked_once_at_the_end(launch: Launch, port: int) -> None:
    server = launch(f"id=2,role=tcp-serve,port={port}")
    client = launch(f"id=2,role=tcp-idle,dst=127.0.0.1,port={port},sample_ms=50", options=("--wait",))
    client.start()
    time.sleep(0.2)
    client.stop()
    figures = client.finish()[2]
    assert server.finish()[2]["tcp"]["bytes"] == 1
    assert figures["tcp"]["closed"]
    assert figures["tcp"]["round_trip_ns"] > 0
    _, records = read_records(client.out / "2.tcp.rec")
    assert {record.app_bytes for record in records[:-2]} == {0}


def test_a_connection_whose_other_end_dies_says_why(launch: Launch, port: int) -> None:
    server = launch(f"id=2,role=tcp-serve,port={port}")
    client = launch(f"id=2,role=tcp-idle,dst=127.0.0.1,port={port}", options=("--wait",))
    client.start()
    time.sleep(0.1)
    server.close()
    client.stop()
    figures = client.finish()[2]
    assert not figures["tcp"]["closed"]
    assert figures["tcp"]["error"] in (errno.ECONNABORTED, errno.ECONNRESET)
    assert read_records(client.out / "2.tcp.rec")[1][-1].event == 4


def test_a_server_that_is_not_there_is_an_error_of_the_stream_alone(launch: Launch, port: int) -> None:
    client = launch(f"id=2,role=tcp-bulk,dst=127.0.0.1,port={port}", options=("--wait",))
    client.send_all()
    figures = client.finish()[2]
    assert not figures["tcp"]["connected"]
    assert figures["tcp"]["error"] == errno.ECONNREFUSED
    assert read_records(client.out / "2.tcp.rec")[1] == []


def test_a_server_takes_its_own_client_only(launch: Launch, port: int) -> None:
    server = launch(f"id=2,role=tcp-serve,port={port}")
    for hello in (
        probe(stream=2, nonce=8, seq=32, flags=0x10),
        probe(stream=3, nonce=7, seq=32, flags=0x10),
        bytes(64),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(hello[:32])
            assert stranger.recv(1) == b""
    client = launch(f"id=2,role=tcp-bulk,dst=127.0.0.1,port={port},count=3", options=("--wait",))
    client.send_all()
    assert client.finish()[2]["tcp"]["confirmed_bytes"] == 3 * 65536
    figures = server.finish()[2]
    assert (figures["foreign"], figures["tcp"]["bytes"]) == (3, 3 * 65536)
