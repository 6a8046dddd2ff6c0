# SPDX-License-Identifier: GPL-2.0-or-later
"""The traffic generator's datagrams, orders and errors: what it promises in images/guest/README.md."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from swgen import ADDRESSES, NS_PER_S, Launch, probe, read_records


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", [32, 33, 1400, 65507])
def test_each_packet_is_recorded_once_at_both_ends(launch: Launch, port: int, address: str, size: int) -> None:
    receiver = launch(f"id=5,role=receive,src={address},port={port}")
    sender = launch(f"id=5,role=send,dst={address},port={port},size={size},rate=1000,count=200", options=("--wait",))
    sender.send_all()
    sent_figures, received_figures = sender.finish(), receiver.finish()

    header, sent = read_records(sender.out / "5.sent.rec")
    assert (header.kind, header.stream, header.nonce, header.overflowed) == (1, 5, 7, 0)
    assert [record.seq for record in sent] == list(range(200))
    assert {record.error for record in sent} == {0}
    assert all(record.sent_ns >= record.due_ns for record in sent)
    assert sent_figures[5]["late_max_ns"] >= max(record.sent_ns - record.due_ns for record in sent) - 100_000_000

    header, received = read_records(receiver.out / "5.received.rec")
    assert (header.kind, header.stream, header.nonce) == (2, 5, 7)
    assert [record.seq for record in received] == list(range(200))
    assert {record.udp_length for record in received} == {size}
    assert {record.flags for record in received} == {0}, "kernel time stamps, plain probes, intact patterns"
    assert [record.sent_ns for record in received] == [record.sent_ns for record in sent]
    assert all(record.received_ns >= record.sent_ns for record in received)
    assert received_figures[5]["received"] == sent_figures[5]["sent"] == 200
    assert received_figures[5]["socket_drops"] == received_figures[5]["foreign"] == received_figures[5]["corrupt"] == 0


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_echo_comes_back_once_and_carries_its_request_s_send_time(launch: Launch, port: int, address: str) -> None:
    echo = launch(f"id=9,role=echo,src={address},port={port}")
    sender = launch(f"id=9,role=send,dst={address},port={port},size=100,rate=500,echo=1,count=100", options=("--wait",))
    sender.send_all(receiving=1)
    echo_figures, figures = echo.finish(), sender.finish()  # it answers what it has got before it ends

    _, sent = read_records(sender.out / "9.sent.rec")
    _, requests = read_records(echo.out / "9.received.rec")
    header, replies = read_records(sender.out / "9.replies.rec")
    assert header.kind == 3
    assert [record.seq for record in replies] == [record.seq for record in requests] == list(range(100))
    assert [record.sent_ns for record in replies] == [record.sent_ns for record in sent]
    assert {record.flags for record in requests} == {1}
    assert {record.flags for record in replies} == {2}
    assert figures[9]["received"] == echo_figures[9]["sent"] == 100


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_sender_s_port_is_its_own(launch: Launch, address: str) -> None:
    """Else the kernel gives the same one to another, now and then, and one of them gets the replies of both."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as other:
        receiver.bind((address, 0))
        receiver.settimeout(20)
        sender = launch(f"id=1,role=send,dst={address},port={receiver.getsockname()[1]},rate=100,count=1")
        _, its_own = receiver.recvfrom(2048)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((address, its_own[1]))
        sender.finish()


def test_the_schedule_is_exact_and_lateness_never_skips_a_packet(launch: Launch, port: int) -> None:
    sender = launch(f"id=1,role=send,dst=127.0.0.1,port={port},rate=333.3,count=200", options=("--wait",))
    sender.start()
    sender.pause(0.1)
    sender.wait_until_sent()
    figures = sender.finish()

    _, sent = read_records(sender.out / "1.sent.rec")
    assert [record.seq for record in sent] == list(range(200))
    for record in sent:
        assert abs(record.due_ns - sent[0].due_ns - record.seq * NS_PER_S / 333.3) <= 2
    late_ns = [record.sent_ns - record.due_ns for record in sent]
    assert max(late_ns) > 50_000_000, "the pause shows as lateness"
    assert figures[1]["late_max_ns"] > 50_000_000
    assert late_ns[-1] < max(late_ns), "what was late went out at once"


def test_a_burst_shares_one_deadline_and_keeps_the_mean_rate(launch: Launch, port: int) -> None:
    sender = launch(f"id=1,role=send,dst=127.0.0.1,port={port},rate=1000,burst=8,count=80", options=("--wait",))
    sender.send_all()
    sender.finish()

    _, sent = read_records(sender.out / "1.sent.rec")
    due_ns = [record.due_ns - sent[0].due_ns for record in sent]
    assert due_ns == [seq // 8 * 8_000_000 for seq in range(80)]


def test_nothing_leaves_after_stopped_and_receiving_goes_on(launch: Launch, port: int) -> None:
    generator = launch(
        f"id=1,role=send,dst=127.0.0.1,port={port},rate=2000", f"id=2,role=receive,port={port}", options=("--wait",)
    )
    generator.start()
    time.sleep(0.1)
    generator.stop()
    stopped_ns = time.time_ns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(probe(stream=2, nonce=7, seq=41), ("127.0.0.1", port))
    figures = generator.finish()

    _, sent = read_records(generator.out / "1.sent.rec")
    assert sent
    assert sent[-1].sent_ns <= stopped_ns
    _, received = read_records(generator.out / "2.received.rec")
    assert [record.seq for record in received] == [41]
    assert figures[2]["foreign"] == len(sent), "stream 1's packets came to stream 2's port"


def test_sending_waits_for_the_signal(launch: Launch, port: int) -> None:
    generator = launch(f"id=1,role=send,dst=127.0.0.1,port={port},rate=1000", options=("--wait",))
    time.sleep(0.05)
    assert generator.finish()[1]["sent"] == 0
    assert read_records(generator.out / "1.sent.rec")[1] == []


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"SWOV" * 4, id="short"),
        pytest.param(bytes(200), id="no magic"),
        pytest.param(probe(stream=3, nonce=8, seq=0), id="another run"),
        pytest.param(probe(stream=4, nonce=7, seq=0), id="another stream"),
        pytest.param(probe(stream=3, nonce=7, seq=0, version=2), id="another version"),
        pytest.param(probe(stream=3, nonce=7, seq=0, flags=2), id="a reply nobody asked for"),
    ],
)
def test_foreign_packets_are_counted_and_not_recorded(launch: Launch, port: int, payload: bytes) -> None:
    receiver = launch(f"id=3,role=receive,port={port}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(payload, ("127.0.0.1", port))
        other.sendto(probe(stream=3, nonce=7, seq=1), ("127.0.0.1", port))
    figures = receiver.finish()
    assert (figures[3]["foreign"], figures[3]["received"]) == (1, 1)
    assert [record.seq for record in read_records(receiver.out / "3.received.rec")[1]] == [1]


def test_duplicates_and_damage_are_recorded_as_they_came(launch: Launch, port: int) -> None:
    receiver = launch(f"id=3,role=receive,port={port}")
    good = probe(stream=3, nonce=7, seq=2**40, length=61)
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for payload in (good, good, damaged):
            other.sendto(payload, ("127.0.0.1", port))
    figures = receiver.finish()
    _, received = read_records(receiver.out / "3.received.rec")
    assert [(record.seq, record.udp_length, record.flags) for record in received] == [
        (2**40, 61, 0),
        (2**40, 61, 0),
        (2**40, 61, 0x10000),
    ]
    assert figures[3]["corrupt"] == 1


def test_what_lies_in_the_socket_at_the_end_is_still_taken(launch: Launch, port: int) -> None:
    receiver = launch(f"id=3,role=receive,port={port}")
    receiver.process.send_signal(signal.SIGSTOP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for seq in range(500):
            other.sendto(probe(stream=3, nonce=7, seq=seq), ("127.0.0.1", port))
    receiver.process.send_signal(signal.SIGTERM)
    receiver.process.send_signal(signal.SIGCONT)
    assert receiver.finish()[3]["received"] == 500
    assert [record.seq for record in read_records(receiver.out / "3.received.rec")[1]] == list(range(500))


def test_records_beyond_the_limit_are_counted(launch: Launch, port: int) -> None:
    sender = launch(
        f"id=1,role=send,dst=127.0.0.1,port={port},rate=100000,count=1000", options=("--max-records", "300", "--wait")
    )
    sender.send_all()
    figures = sender.finish()
    header, sent = read_records(sender.out / "1.sent.rec")
    assert [record.seq for record in sent] == list(range(300))
    assert header.overflowed == figures[1]["overflowed"] == 700
    assert figures[1]["sent"] == 1000, "the limit is on records, not on packets"


def test_a_send_that_fails_keeps_its_number_and_its_error(launch: Launch, port: int) -> None:
    # To a broadcast address without cast=broadcast: the kernel refuses each packet.
    sender = launch(f"id=1,role=send,dst=255.255.255.255,port={port},rate=1000,count=5", options=("--wait",))
    sender.send_all()
    figures = sender.finish()
    _, sent = read_records(sender.out / "1.sent.rec")
    assert [(record.seq, record.error) for record in sent] == [(seq, errno.EACCES) for seq in range(5)]
    assert (figures[1]["sent"], figures[1]["send_errors"]) == (0, 5)


@pytest.mark.parametrize(
    ("group", "cast"),
    [("127.255.255.255", "broadcast"), ("239.255.77.1", "multicast")],  # lo has no route for IPv6 multicast
)
def test_broadcast_and_multicast_reach_their_receiver(launch: Launch, port: int, group: str, cast: str) -> None:
    receiver = launch(f"id=6,role=receive,dst={group},port={port},cast={cast},ifname=lo")
    sender = launch(f"id=6,role=send,dst={group},port={port},cast={cast},ifname=lo,ttl=1,rate=1000,count=20", options=("--wait",))
    sender.send_all()
    sender.finish()
    assert receiver.finish()[6]["received"] == 20
    assert [record.error for record in read_records(sender.out / "6.sent.rec")[1]] == [0] * 20


def test_a_background_run_returns_when_it_is_ready(swgen: Path, tmp_path: Path, port: int) -> None:
    out = tmp_path / "out"
    argv: list[str | Path] = [
        swgen,
        "run",
        "--daemon",
        "--wait",
        "--out",
        out,
        "--stream",
        f"id=1,role=receive,port={port}",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    pid = int((out / "pid").read_text())
    try:
        assert done.stdout == "ready\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(probe(stream=1, nonce=0, seq=0), ("127.0.0.1", port))
    finally:
        os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + 60
    while not (out / "status").read_text().endswith("]}\n"):
        assert time.monotonic() < limit
        time.sleep(0.005)
    lines = (out / "status").read_text().splitlines()
    assert lines[0] == "ready"
    assert json.loads(lines[-1])["streams"][0]["received"] == 1
    assert len(read_records(out / "1.received.rec")[1]) == 1


def test_a_background_run_that_cannot_start_says_so(swgen: Path, tmp_path: Path) -> None:
    argv: list[str | Path] = [
        swgen,
        "run",
        "--daemon",
        "--out",
        tmp_path / "out",
        "--stream",
        "id=1,role=receive,src=192.0.2.1,port=9",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert "bind" in done.stderr


@pytest.mark.parametrize(
    ("stream", "named"),
    [
        ("id=1,role=receive", "port"),
        ("role=receive,port=5", "id"),
        ("id=1,port=5", "role"),
        ("id=1,role=sender,port=5", "role"),
        ("id=1,role=send,port=5,rate=1", "dst"),
        ("id=1,role=send,port=5,dst=127.0.0.1", "rate"),
        ("id=1,role=send,port=5,dst=127.0.0.1,rate=0", "rate"),
        ("id=1,role=send,port=5,dst=127.0.0.1,rate=-3", "rate"),
        ("id=1,role=send,port=5,dst=127.0.0.1,rate=nan", "rate"),
        ("id=1,role=send,port=5,dst=localhost,rate=1", "dst"),
        ("id=1,role=send,port=5,dst=127.0.0.1,rate=1,size=31", "size"),
        ("id=1,role=send,port=5,dst=127.0.0.1,rate=1,size=65508", "size"),
        ("id=1,role=send,port=5,dst=127.0.0.1,src=::1,rate=1", "families"),
        ("id=-1,role=receive,port=5", "id"),
        ("id=1,role=receive,port=70000", "port"),
        ("id=1,role=receive,port=5,colour=red", "colour"),
        ("id=1,role=receive,port=5,cast=multicast", "dst"),
        ("id=1,role=receive,port=", "port"),
    ],
)
def test_bad_streams_are_refused_with_the_key_s_name(swgen: Path, tmp_path: Path, stream: str, named: str) -> None:
    argv: list[str | Path] = [swgen, "run", "--out", tmp_path / "out", "--stream", stream]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert named in done.stderr


def test_memory_is_dirtied_at_the_rate_asked_for(swgen: Path) -> None:
    argv: list[str | Path] = [swgen, "dirty", "--rate-mib", "64", "--size-mib", "16"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        summary = json.loads(process.stdout.readline())
    assert process.returncode == 0
    rate_mib = summary["dirtied_bytes"] / summary["elapsed_ns"] * NS_PER_S / 2**20
    assert 16 < rate_mib <= 64.1, "never faster; slower only where the host doesn't let it run at the end"


def test_too_little_entropy_is_refused(swgen: Path) -> None:
    done = subprocess.run([swgen, "reseed"], input=b"short", capture_output=True, timeout=10, check=False)
    assert done.returncode == 2
    assert b"too few" in done.stderr


def test_orders_can_be_written_to_a_fifo(launch: Launch, port: int) -> None:
    receiver = launch(f"id=5,role=receive,src=127.0.0.1,port={port}")
    sender = launch(f"id=5,role=send,dst=127.0.0.1,port={port},rate=500,count=50", options=("--wait",))
    control = sender.out / "control"
    control.write_text("nonsense\nsend\n")
    assert sender.line() == "sending"
    control.write_text("sto")
    control.write_text("p\n")
    assert sender.line() == "stopped"
    (receiver.out / "control").write_text("end\n")
    control.write_text("end\n")
    for generator in (receiver, sender):
        output, errors = generator.process.communicate(timeout=10)
        assert generator.process.returncode == 0, errors
        assert [stream["id"] for stream in json.loads(output.splitlines()[-1])["streams"]] == [5]
    assert len(read_records(receiver.out / "5.received.rec")[1]) == len(read_records(sender.out / "5.sent.rec")[1])


def test_a_transmit_queue_that_is_not_there_is_refused(swgen: Path, tmp_path: Path) -> None:
    argv = [swgen, "run", "--out", tmp_path / "o", "--queue", "nosuch0", "--stream", "id=1,role=receive,port=9"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert run.returncode == 2
    assert "nosuch0" in run.stderr
