"""Rings, live taps and injection on real interfaces, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.flood import flood
from harness.analysis.columns import NO_VLAN, TCP, UDP, Capture, read_capture
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.synthetic import probe_frame
from harness.capture.bpf import drop_probes_bytecode
from harness.capture.live import Injector, LiveFrame, LiveTap
from harness.capture.ring import CapturePoint, CaptureSet, PacketRing
from harness.errors import EnvironmentLackError, TestbedError

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
VNET_HEADER = 12


def ip(command: str, *, program: str = "ip") -> None:
    subprocess.run([program, *command.split()], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test runs in a fresh network namespace; needs root, or `unshare -Urn` around pytest."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no new network namespace: {os.strerror(ctypes.get_errno())}; run pytest under unshare -Urn")
        try:
            ip("link set dev lo up")
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


@pytest.fixture
def veth(namespace: None) -> None:
    """`near` and `far`, connected, without IPv6, which would send on its own."""
    ip("link add name near type veth peer name far")
    for name in ("near", "far"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip(f"link set dev {name} up")
    wait_for_carrier("near", "far")


def wait_for_carrier(*names: str) -> None:
    """Until the kernel's link watcher has noticed: it drops silently what is sent before."""
    deadline = time.monotonic() + 10
    for name in names:
        while json.loads(subprocess.check_output(["ip", "-j", "link", "show", name]))[0]["operstate"] != "UP":
            assert time.monotonic() < deadline, f"{name} has no carrier"
            time.sleep(0.005)


def packet_socket(interface: str | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if interface:
        sock.bind((interface, 0))
    return sock


def point(tmp_path: Path, interface: str) -> CapturePoint:
    return CapturePoint(sock=packet_socket(), interface=interface, path=tmp_path / f"{interface}.pcapng")


@contextlib.contextmanager
def tap(name: str, *, offload: int = 0) -> Iterator[int]:
    """A TAP with a 12 byte vnet header, as QEMU opens it; yields its descriptor (not blocking)."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        pytest.skip(f"/dev/net/tun: {error.strerror}")
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, offload)
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip(f"link set dev {name} up")
        ip(f"qdisc replace dev {name} root noqueue", program="tc")
        yield descriptor
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> list[bytes]:
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(os.read(descriptor, 70_000))
    return frames


@pytest.mark.usefixtures("veth")
def test_every_frame_of_both_directions_is_in_the_file(tmp_path: Path) -> None:
    count = 900  # each way; the kernel queues 1000 for a receiver that it has no time for, and drops what is beyond
    with packet_socket("near") as near, packet_socket("far") as far:
        captures = CaptureSet.start({name: point(tmp_path, name) for name in ("near", "far")})
        for seq in range(count):
            near.send(probe_frame(stream=1, seq=seq))
            far.send(probe_frame(stream=2, seq=seq, frame_bytes=1400))
        summaries = captures.stop()
    for name, outbound in (("near", 1), ("far", 2)):
        assert (summaries[name].packets, summaries[name].dropped) == (2 * count, 0)
        assert (summaries[name].shortened, summaries[name].interruptions) == (0, 0)
        capture = read_capture(tmp_path / f"{name}.pcapng")
        assert (capture.interfaces, capture.received, capture.dropped) == ((name,), 2 * count, 0)
        for stream in (1, 2):
            mine = capture.columns.select(capture.columns.probe_stream == stream)
            assert (mine.probe_seq == np.arange(count)).all()
            assert (mine.direction == (OUTBOUND if stream == outbound else INBOUND)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.pcapng", "near.pcapng"]


@pytest.mark.usefixtures("veth")
def test_the_last_frame_before_stop_is_there(tmp_path: Path) -> None:
    for seq in range(10):
        with packet_socket("near") as near:
            captures = CaptureSet.start({"far": point(tmp_path, "far")})
            near.send(probe_frame(stream=1, seq=seq))
            summary = captures.stop()["far"]
        assert summary.packets == 1
        assert read_capture(summary.path).columns.probe_seq[0] == seq


@pytest.mark.usefixtures("veth")
def test_times_are_the_kernels_in_real_time(tmp_path: Path) -> None:
    with packet_socket("near") as near, CaptureSet.start({"far": point(tmp_path, "far")}) as captures:
        before = time.time_ns()
        near.send(probe_frame(stream=1))
        after = time.time_ns()
        time.sleep(0.1)  # the block is read long after the frame came
        path = captures.stop()["far"].path
    (seen,) = read_capture(path).columns.time_ns
    assert before <= seen <= after + 20_000_000


@pytest.mark.usefixtures("veth")
def test_a_ring_that_nobody_reads_counts_what_it_drops(tmp_path: Path) -> None:
    count, blocks, block_bytes = 5000, 4, 1 << 16
    # Where frames leave, none can be lost before the ring.
    ring = PacketRing(
        packet_socket(), interface="near", spool=tmp_path / "spool", block_bytes=block_bytes, blocks=blocks
    )
    with packet_socket("near") as near:
        for seq in range(count):
            near.send(probe_frame(stream=1, seq=seq, frame_bytes=200))
    deadline = time.monotonic() + 5
    ring.drain()
    while not ring.settled():
        assert time.monotonic() < deadline
        time.sleep(0.01)
        ring.drain()
    ring.close()
    assert ring.dropped > 0
    assert ring.packets + ring.dropped == count
    assert 0 < ring.packets <= blocks * block_bytes // 200


@pytest.mark.usefixtures("veth")
def test_a_capture_that_dropped_says_so_in_its_file(tmp_path: Path) -> None:
    captures = CaptureSet.start({"far": point(tmp_path, "far")})
    ring = captures._rings["far"]
    ring._received += 3  # as if the kernel had counted three that no block held
    ring.dropped += 3
    with packet_socket("near") as near:
        near.send(probe_frame(stream=1))
    summary = captures.stop()["far"]
    capture = read_capture(summary.path)
    assert (summary.packets, summary.dropped) == (1, 3)
    assert (capture.received, capture.dropped) == (4, 3)


@pytest.mark.usefixtures("veth")
def test_a_vlan_tag_that_the_kernel_took_out_is_put_back(tmp_path: Path) -> None:
    plain = probe_frame(stream=1, seq=7)
    tagged = plain[:12] + struct.pack("!HH", 0x8100, 0x2000 | 42) + plain[12:]
    with packet_socket("near") as near, CaptureSet.start({"far": point(tmp_path, "far")}) as captures:
        near.send(tagged)
        near.send(plain)
        path = captures.stop()["far"].path
    columns = read_capture(path).columns
    assert list(columns.vlan) == [42, NO_VLAN]
    assert list(columns.frame_bytes) == [len(tagged), len(plain)]
    assert list(columns.probe_seq) == [7, 7]
    assert list(columns.status) == [0, 0]
    assert list(columns.source_mac) == [0x020000000001] * 2


def capture_tcp(tmp_path: Path, total: int) -> Capture:
    """A TCP transfer over a veth into another namespace, captured at the near end."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        deadline = time.monotonic() + 5
        here = Path("/proc/self/ns/net").resolve()
        while Path(f"/proc/{holder.pid}/ns/net").resolve() == here:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ip("link add name near type veth peer name far")
        ip(f"link set dev far netns {holder.pid}")
        enter = f"-t {holder.pid} -n ip "
        for command in ("addr add 10.9.0.2/24 dev far", "link set dev far up"):
            ip(enter + command, program="nsenter")
        ip("addr add 10.9.0.1/24 dev near")
        ip("link set dev near up")
        with socket.create_server(("10.9.0.1", 7001)) as server:
            script = (
                f"import socket; s=socket.create_connection(('10.9.0.1',7001)); s.sendall(bytes({total})); s.close()"
            )
            captures = CaptureSet.start({"near": point(tmp_path, "near")})
            sender = subprocess.Popen(["nsenter", "-t", str(holder.pid), "-n", "python3", "-c", script])
            connection, _ = server.accept()
            received = 0
            while piece := connection.recv(1 << 20):
                received += len(piece)
            assert received == total
            connection.close()
            assert sender.wait(10) == 0
        return read_capture(captures.stop()["near"].path)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.usefixtures("namespace")
def test_super_frames_keep_all_their_bytes(tmp_path: Path) -> None:
    total = 3_000_000
    columns = capture_tcp(tmp_path, total).columns
    data = columns.select((columns.protocol == TCP) & (columns.direction == INBOUND))
    assert data.frame_bytes.max() > 9000
    assert (data.status == 0).all()
    assert data.payload_bytes.astype(np.int64).sum() >= total
    span = (data.tcp_seq + data.payload_bytes).max() - data.tcp_seq.min()
    assert span == total + 2  # SYN and FIN take one number each


@pytest.mark.usefixtures("veth")
def test_the_benchmarks_sender_sends_what_it_says(tmp_path: Path) -> None:
    with CaptureSet.start({"far": point(tmp_path, "far")}) as captures:
        # More than the transmit ring holds, so that its slots are used again.
        done = flood("near", rate_pps=50_000, seconds=0.25, frame_bytes=100)
        summary = captures.stop()["far"]
    assert done.asked == 12_500
    assert done.sent == summary.packets == done.asked
    assert set(read_capture(summary.path).columns.frame_bytes.tolist()) == {100}


@pytest.mark.usefixtures("veth")
def test_an_interface_that_goes_down_is_an_interruption(tmp_path: Path) -> None:
    with packet_socket("near") as near, CaptureSet.start({"far": point(tmp_path, "far")}) as captures:
        near.send(probe_frame(stream=1, seq=0))
        ip("link set dev far down")
        ip("link set dev far up")
        wait_for_carrier("near", "far")
        near.send(probe_frame(stream=1, seq=1))
        summary = captures.stop()["far"]
    assert summary.interruptions == 1
    assert summary.packets == 2


@pytest.mark.usefixtures("namespace")
def test_a_tap_that_goes_away_keeps_its_frames(tmp_path: Path) -> None:
    with tap("tap0"), packet_socket("tap0") as sender:
        captures = CaptureSet.start({"tap": point(tmp_path, "tap0")})
        sender.send(probe_frame(stream=1, seq=3))
    time.sleep(0.05)
    busy = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - busy < 0.15, "the capture thread spins"
    summary = captures.stop()["tap"]
    assert (summary.packets, summary.dropped) == (1, 0)
    assert summary.interruptions >= 1
    assert list(read_capture(summary.path).columns.probe_seq) == [3]


@pytest.mark.usefixtures("veth")
def test_points_join_a_running_capture(tmp_path: Path) -> None:
    with packet_socket("near") as near, CaptureSet.start({"near": point(tmp_path, "near")}) as captures:
        near.send(probe_frame(stream=1, seq=0))
        captures.add("far", point(tmp_path, "far"))
        near.send(probe_frame(stream=1, seq=1))
        with pytest.raises(ValueError, match="in use"):
            captures.add("far", point(tmp_path, "far"))
        summaries = captures.stop()
        assert captures.stop() == {}
    assert {name: summary.packets for name, summary in summaries.items()} == {"near": 2, "far": 1}


@pytest.mark.usefixtures("veth")
def test_a_wrong_interface_or_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLackError, match="cannot capture on nowhere"):
        CaptureSet.start({"near": point(tmp_path, "near"), "nowhere": point(tmp_path, "nowhere")})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as early:
        with pytest.raises(ValueError, match="protocol 0"):
            PacketRing(early, interface="near", spool=tmp_path / "spool")
        with pytest.raises(ValueError, match="protocol 0"):
            LiveTap(early, interface="near")


@pytest.mark.usefixtures("veth")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    captures = CaptureSet.start({"far": point(tmp_path, "far")})
    ring = captures._rings["far"]
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, ring._out)
    os.close(full)
    with packet_socket("near") as near:
        near.send(probe_frame(stream=1))
    with pytest.raises(TestbedError, match="No space left"):
        captures.stop()


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.usefixtures("veth")
def test_probes_are_dropped_on_purpose_and_counted(tmp_path: Path, count: int) -> None:
    ip("link add name bridge type bridge mcast_snooping 0")
    ip("link set dev far master bridge")
    Path("/proc/sys/net/ipv6/conf/bridge/disable_ipv6").write_text("1")
    ip("link set dev bridge up")
    ip("link set dev bridge promisc on")  # the bridge then gets a copy of all that it forwards
    ip("qdisc add dev far clsact", program="tc")
    program = drop_probes_bytecode(stream=1, first=20, count=count)
    filter_command = "filter add dev far ingress protocol all bpf da bytecode"
    subprocess.run(["tc", *filter_command.split(), program], check=True)
    with packet_socket("near") as near:
        deadline = time.monotonic() + 5
        points = {name: point(tmp_path, name) for name in ("far", "bridge")}
        with CaptureSet.start(points) as captures:
            while not captures.packets("bridge"):  # until the port forwards
                assert time.monotonic() < deadline
                near.send(probe_frame(stream=3))
                time.sleep(0.01)
            for seq in range(200):
                for stream in (1, 2):
                    near.send(probe_frame(stream=stream, seq=seq))
            captures.stop()
    at_port, behind = (read_capture(tmp_path / f"{name}.pcapng").columns for name in ("far", "bridge"))
    gone = list(range(20, 20 + count))
    for stream, missing in ((1, gone), (2, [])):
        assert at_port.probe_seq[at_port.probe_stream == stream].tolist() == list(range(200))
        passed = behind.probe_seq[behind.probe_stream == stream].tolist()
        assert sorted(set(range(200)) - set(passed)) == missing
    shown = subprocess.run(["tc", "-s", "-j", "qdisc", "show", "dev", "far"], check=True, capture_output=True).stdout
    assert [each["drops"] for each in json.loads(shown) if each["kind"] == "clsact"] == [count]


def udp_to_tap(name: str) -> socket.socket:
    """A socket whose datagrams leave by the TAP."""
    ip(f"addr add 10.8.0.1/24 dev {name}")
    ip(f"neigh add 10.8.0.2 lladdr 02:00:00:00:00:02 dev {name} nud permanent")
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(("10.8.0.2", 7000))
    return sender


def udp_checksum_is_right(frame: bytes) -> bool:
    udp = frame[34:]
    words = frame[26:34] + struct.pack("!HH", UDP, len(udp)) + udp + bytes(len(udp) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


@pytest.mark.usefixtures("namespace")
def test_a_live_tap_sees_a_frame_at_once_and_no_inbound_one() -> None:
    with tap("tap0", offload=TUN_F_CSUM) as descriptor, udp_to_tap("tap0") as sender:
        with LiveTap(packet_socket(), interface="tap0") as live:
            for number in range(50):
                before = time.time_ns()
                sender.send(f"datagram {number}".encode())
                assert live.drain() == number + 1
                newest = live.frames(first=number)[0]
                assert newest.number == number
                assert newest.frame.endswith(f"datagram {number}".encode())
                assert before <= newest.time_ns <= time.time_ns()
                os.write(descriptor, bytes(VNET_HEADER) + probe_frame(stream=1))
            assert live.drain() == live.count == 50
            assert live.dropped == 0
        assert len(live.frames()) == 50


@pytest.mark.usefixtures("namespace")
def test_a_frame_with_a_partial_checksum_is_carried_over_intact() -> None:
    """What a reader of the second TAP gets must be what one of the first got; without offload, finished."""
    with tap("tap0", offload=TUN_F_CSUM) as old, tap("tap1", offload=TUN_F_CSUM) as new, tap("tap2") as plain:
        with udp_to_tap("tap0") as sender, LiveTap(packet_socket(), interface="tap0") as live:
            sender.send(b"carry me over")
            (frame,) = live.frames()
        assert frame.vnet_header[0] == 1, "the kernel left the checksum to be done"
        assert not udp_checksum_is_right(frame.frame)
        deadline_ns = time.monotonic_ns() + 1_000_000_000
        for target in ("tap1", "tap2"):
            with Injector(packet_socket(), interface=target) as injector:
                assert injector.send_all([frame], deadline_ns=deadline_ns) == 1
        assert read_all(new) == read_all(old)
        (whole,) = read_all(plain)
        assert whole[0] == 0
        assert udp_checksum_is_right(whole[VNET_HEADER:])


@pytest.mark.usefixtures("veth")
def test_a_tag_and_its_checksum_survive_the_way_through_a_live_tap() -> None:
    plain = probe_frame(stream=1)
    tagged = plain[:12] + struct.pack("!HH", 0x8100, 42) + plain[12:]
    header = struct.pack("=BBHHHHH", 1, 0, 0, 0, 14 + 4 + 20, 6, 0)
    with tap("tap0", offload=TUN_F_CSUM) as old, tap("tap1", offload=TUN_F_CSUM) as new:
        ip("link add name bridge type bridge mcast_snooping 0")
        for name in ("far", "tap0"):
            ip(f"link set dev {name} master bridge")
        ip("link set dev bridge up")
        deadline_ns = time.monotonic_ns() + 5_000_000_000
        with LiveTap(packet_socket(), interface="tap0") as live:
            frames: list[LiveFrame] = []
            with Injector(packet_socket(), interface="near") as injector:
                while not frames:  # a bridge's port begins to forward when the kernel has seen its link come up
                    assert time.monotonic_ns() < deadline_ns
                    injector.send(header, tagged, deadline_ns=deadline_ns)
                    time.sleep(0.01)
                    frames = [frame for frame in live.frames() if frame.frame.endswith(plain[14:])]
        assert frames[0].frame == tagged
        with Injector(packet_socket(), interface="tap1") as injector:
            injector.send_all(frames[:1], deadline_ns=deadline_ns)
        (got,) = read_all(new)
        assert got == next(frame for frame in read_all(old) if frame.endswith(plain[14:]))


@pytest.mark.usefixtures("namespace")
def test_a_full_tap_is_tried_again_until_the_deadline() -> None:
    with tap("tap0") as descriptor, Injector(packet_socket(), interface="tap0") as injector:
        frame = probe_frame(stream=1)
        flood = [LiveFrame(number, 0, b"", frame) for number in range(5000)]
        with pytest.raises(TestbedError, match="No buffer space"):
            injector.send_all(flood, deadline_ns=time.monotonic_ns() + 50_000_000)
        refused = injector.retries
        assert refused > 0
        reader = threading.Timer(0.1, read_all, [descriptor])
        reader.start()
        injector.send(b"", frame, deadline_ns=time.monotonic_ns() + 5_000_000_000)
        reader.join()
        assert injector.retries > refused


@pytest.mark.usefixtures("namespace")
def test_a_live_tap_forgets_the_oldest_but_goes_on_counting() -> None:
    with (
        tap("tap0"),
        packet_socket("tap0") as sender,
        LiveTap(packet_socket(), interface="tap0", keep_frames=10) as live,
    ):
        for seq in range(30):
            sender.send(probe_frame(stream=1, seq=seq))
        assert live.drain() == 30
        assert live.oldest == 20
        assert [frame.number for frame in live.frames(first=25)] == [25, 26, 27, 28, 29]
        assert live.frames(first=5)[0].number == 20
