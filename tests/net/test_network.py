"""The lab's network: bridges, TAPs, port flags, and changes in one batch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from harness.capture.live import Injector, LiveTap
from harness.errors import TestbedError
from harness.host.bridge import PortFlags, forward_to, port_message
from harness.host.network import TAP_QUEUE_FRAMES, Network
from harness.host.tap import allow_super_frames, queue_is_empty, read_queue
from harness.host.warden import Warden

MAC = "52:54:00:77:00:02"
TUNSETQUEUE, IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x400454D9, 0x0200, 0x0400


def frame(number: int, *, to: str = MAC) -> bytes:
    """An Ethernet frame of an experimental type with a number in it."""
    head = bytes.fromhex(to.replace(":", "")) + bytes.fromhex("525400770001") + struct.pack("!H", 0x88B5)
    return head + struct.pack("!I", number).ljust(60, b"\0")


def numbers(frames: list[bytes]) -> list[int]:
    return [struct.unpack_from("!I", f, 14)[0] for f in frames if f[12:14] == b"\x88\xb5"]


def test_port_flags_are_what_was_asked_for(run):
    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            opened = await network.add_tap("sw-a")
            closed = await network.add_tap("sw-b", flags=PortFlags.closed())
            first = await network.port_flags(opened), await network.port_flags(closed)
            network.set_port(closed, PortFlags.opened())
            return *first, await network.port_flags(closed)

    assert run(body()) == (PortFlags.opened(), PortFlags.closed(), PortFlags.opened())


def test_a_batch_moves_the_traffic_from_one_port_to_the_other(run):
    """Frames are in exactly one queue, and in order, across the change."""

    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            source = await network.add_tap("sw-s")
            destination = await network.add_tap("sw-d", flags=PortFlags.closed())
            sender = await network.add_tap("sw-x")
            network.control.apply([forward_to(MAC, source.ifindex)])
            (fd,) = sender.fds
            for number in range(10):
                os.write(fd, bytes(12) + frame(number))
            network.control.apply(
                [
                    port_message(destination.ifindex, PortFlags.opened()),
                    forward_to(MAC, destination.ifindex),
                    port_message(source.ifindex, PortFlags.closed()),
                ]
            )
            for number in range(10, 20):
                os.write(fd, bytes(12) + frame(number))
            return (
                numbers(read_queue(source.fds)), numbers(read_queue(destination.fds)),
                await network.forwarding_entries(source), await network.forwarding_entries(destination),
            )  # fmt: skip

    at_source, at_destination, left, moved = run(body())
    assert at_source == list(range(10))
    assert at_destination == list(range(10, 20))
    assert (left, moved) == ([], [MAC])


def test_the_kernels_refusal_names_the_change(run):
    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            port = await network.add_tap("sw-a")
            network.control.apply([forward_to(MAC, port.ifindex), port_message(9999, PortFlags.opened())])

    with pytest.raises(TestbedError, match="change 2 of 2"):
        run(body())


def test_a_closed_port_gets_no_broadcast_and_an_open_one_does(run):
    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            closed = await network.add_tap("sw-c", flags=PortFlags.closed())
            opened = await network.add_tap("sw-o")
            sender = await network.add_tap("sw-x")
            os.write(sender.fds[0], bytes(12) + frame(1, to="ff:ff:ff:ff:ff:ff"))
            return queue_is_empty(closed.fds[0]), numbers(read_queue(opened.fds))

    assert run(body()) == (True, [1])


def test_a_tap_keeps_thousands_of_frames_for_a_reader_that_stopped(run):
    count = TAP_QUEUE_FRAMES - 100

    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            port = await network.add_tap("sw-a")
            with Injector(await network.packet_socket(), interface="sw-a") as injector:
                for number in range(count):
                    injector.send(bytes(12), frame(number), deadline_ns=2**62)
            return numbers(read_queue(port.fds)), (await network.counters(port)).tx_dropped

    kept, dropped = run(body())
    assert kept == list(range(count))
    assert dropped == 0


def test_the_live_view_sees_what_waits_in_the_queue(run):
    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            port = await network.add_tap("sw-a")
            with (
                LiveTap(await network.packet_socket(), interface="sw-a") as live,
                Injector(await network.packet_socket(), interface="sw-a") as injector,
            ):
                for number in range(50):
                    injector.send(bytes(12), frame(number), deadline_ns=2**62)
                return numbers([f.frame for f in live.frames()]), numbers(read_queue(port.fds))

    seen, waiting = run(body())
    assert seen == waiting == list(range(50))


def test_the_view_of_a_queue_sees_what_its_reader_gets_and_nothing_else(run):
    """Also after a queue was given up and taken again, as a guest does it that changes how many it uses."""

    def flows(round_: int) -> list[bytes]:
        return [
            bytes(Ether(dst=MAC, src="52:54:00:77:00:01") / IP(src="10.77.0.1", dst="10.77.0.2") / UDP(sport=1000 + number, dport=round_) / b"x")
            for number in range(64)
        ]

    def attach(fd: int, flag: int) -> None:
        fcntl.ioctl(fd, TUNSETQUEUE, struct.pack("16xH22x", flag))

    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            port = await network.add_tap("sw-a", queues=4)
            with contextlib.ExitStack() as open_:
                views = [open_.enter_context(LiveTap(await network.packet_socket(), interface="sw-a", queue=queue)) for queue in range(4)]
                whole = open_.enter_context(LiveTap(await network.packet_socket(), interface="sw-a"))
                injector = open_.enter_context(Injector(await network.packet_socket(), interface="sw-a"))
                found = []
                for round_, used in enumerate((4, 1, 2, 4, 3), start=1):
                    for queue in range(1, 4):
                        with contextlib.suppress(OSError):  # it is as it should be
                            attach(port.fds[queue], IFF_ATTACH_QUEUE if queue < used else IFF_DETACH_QUEUE)
                    begins = [view.drain() for view in (*views, whole)]
                    for each in flows(round_):
                        injector.send(bytes(12), each, deadline_ns=2**62)
                    seen = [[f.frame for f in view.frames(first=first)] for view, first in zip((*views, whole), begins, strict=True)]
                    found.append((used, seen, [read_queue([fd]) for fd in port.fds]))
                return found

    for round_, (used, seen, got) in enumerate(run(body()), start=1):
        assert seen[:4] == got
        assert sorted(seen[4]) == sorted(flows(round_))
        assert [bool(frames) for frames in got] == [queue < used for queue in range(4)]


def test_the_peers_namespace_reaches_the_bridge(run):
    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            tap = await network.add_tap("sw-a")
            await network.add_peer_namespace("sw-peer", mac="52:54:00:77:00:01", addresses=[("10.77.0.1", 24), ("fd77::1", 64)])
            await network.add_peer_neighbour("10.77.0.2", MAC)
            sock = await warden.socket(netns="peer", family=socket.AF_INET, type=socket.SOCK_DGRAM)
            with sock:
                sock.sendto(b"hello", ("10.77.0.2", 7))
            return read_queue(tap.fds)

    frames = run(body())
    assert any(f.endswith(b"hello") and f[:6] == bytes.fromhex("525400770002") for f in frames)


def test_two_labs_do_not_see_each_other(run):
    async def body():
        async with Warden() as one, Warden() as two, Network(one) as left, Network(two) as right:
            await left.start()
            await right.start()
            a = await left.add_tap("sw-a")
            b = await right.add_tap("sw-a")
            sender = await left.add_tap("sw-x")
            os.write(sender.fds[0], bytes(12) + frame(5, to="ff:ff:ff:ff:ff:ff"))
            return numbers(read_queue(a.fds)), numbers(read_queue(b.fds))

    assert run(body()) == ([5], [])


def test_a_super_frame_enters_a_fresh_tap_whole_only_when_it_is_allowed(run):
    """The kernel cuts it for a TAP whose reader has not said that it takes such."""
    payload = bytes(10 * 1000)
    segment = bytes(Ether(dst=MAC, src="52:54:00:00:00:09") / IP(dst="10.0.0.1") / TCP(flags="A") / payload)
    header = struct.pack("<BBHHHHH", 1, 1, 54, 1000, 34, 16, 0)  # its checksum is still to be made; TCPv4 in parts of 1000 bytes

    async def body():
        async with Warden() as warden, Network(warden) as network:
            await network.start()
            port = await network.add_tap("sw-a")
            with Injector(await network.packet_socket(), interface="sw-a") as injector:
                injector.send(header, segment, deadline_ns=2**62)
                cut = read_queue(port.fds)
                allow_super_frames(port.fds, gso_types={0, 1})
                injector.send(header, segment, deadline_ns=2**62)
                return cut, read_queue(port.fds)

    cut, whole = run(body())
    assert [len(frame) for frame in cut] == [1054] * 10
    assert [len(frame) for frame in whole] == [10_054]
