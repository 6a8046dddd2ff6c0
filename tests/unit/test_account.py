"""Which frames the guest got, told from the lengths in its receive ring, and the device's receive filter."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.capture.live import LiveFrame
from harness.errors import DeadlineError, TestbedError
from harness.host.deadline import Deadline
from harness.host.vhost import VhostWorker
from harness.migrate import account as account_module
from harness.migrate.account import FrameAccount, StopPoint, frames_in_buffers, missing_by_lengths, missing_from_ring
from harness.vm.argv import NicSpec
from harness.vm.virtqueue import ReceiveFilter, ReceiveRing, read_receive_filter, read_receive_ring

HEADER = 12
BUFFER = 1536


def ring_of(frames: list[int], *, size: int = 256) -> list[int]:
    """What a device with mergeable buffers of BUFFER bytes writes for these frames: the last `size` lengths."""
    lengths = []
    for frame in frames:
        left = frame + HEADER
        while left > 0:
            lengths.append(min(left, BUFFER))
            left -= lengths[-1]
    return lengths[-size:]


@given(
    delivered=st.lists(st.integers(60, 9000), min_size=1, max_size=60),
    missing=st.lists(st.integers(60, 9000), max_size=10),
)
def test_the_true_number_is_always_among_those_that_fit(delivered, missing):
    assert len(missing) in missing_by_lengths([*delivered, *missing], ring_of(delivered), header_bytes=HEADER)


def test_frames_of_different_lengths_leave_one_answer():
    delivered = [100, 2000, 60, 7000, 333, 64]
    assert missing_by_lengths([*delivered, 500, 900], ring_of(delivered), header_bytes=HEADER) == [2]


def test_frames_of_one_length_leave_many():
    frames = [100] * 50
    assert len(missing_by_lengths(frames, ring_of(frames), header_bytes=HEADER)) > 1


def test_lengths_that_fit_nothing_leave_none():
    assert missing_by_lengths([100, 200, 300], [77, 78, 79], header_bytes=HEADER) == []


def test_a_ring_that_reaches_back_less_than_the_frames_is_enough():
    delivered = [60 + 7 * i % 1400 for i in range(400)]
    assert 0 in missing_by_lengths(delivered, ring_of(delivered, size=64), header_bytes=HEADER)


def test_swallowed_frames_are_those_between_the_guest_and_the_queue():
    assert StopPoint(first_undelivered=10, first_unread=12, used_index=0).swallowed == 2
    assert StopPoint(first_undelivered=10, first_unread=10, used_index=0).swallowed == 0


def test_a_freed_frame_that_is_given_back_does_not_count_twice():
    account = FrameAccount(*(None,) * 2, network=None, port=None, nic="net0")
    account._offset = 0xFFFF
    account.suspend("stopped and went on")
    assert not account.synchronised
    assert account.reason == "stopped and went on"
    account.continue_without(2)
    assert account.synchronised
    assert account._offset == 1


def test_an_account_that_never_held_does_not_come_to_hold():
    account = FrameAccount(*(None,) * 2, network=None, port=None, nic="net0")
    account.suspend("stopped and went on")
    account.continue_without(0)
    assert not account.synchronised


MAC, OTHER, GROUP = bytes.fromhex("525400770002"), bytes.fromhex("525400770009"), bytes.fromhex("01005e000001")


def filter_(**changes) -> ReceiveFilter:
    plain = {
        "promiscuous": False, "main_mac": MAC, "unicast": "normal", "multicast": "normal",
        "unicast_table": frozenset(), "multicast_table": frozenset({GROUP}),
    }  # fmt: skip
    return ReceiveFilter(**(plain | changes))


def test_the_filter_lets_through_what_the_device_does():
    frame = lambda to: to + bytes(54)  # noqa: E731
    assert filter_().passes(frame(MAC))
    assert filter_().passes(frame(b"\xff" * 6))
    assert filter_().passes(frame(GROUP))
    assert not filter_().passes(frame(OTHER))
    assert not filter_().passes(frame(bytes.fromhex("01005e7fffff")))
    assert filter_(multicast="all").passes(frame(bytes.fromhex("01005e7fffff")))
    assert filter_(unicast_table=frozenset({OTHER})).passes(frame(OTHER))
    assert filter_(unicast="all").passes(frame(OTHER))
    assert not filter_(unicast="none").passes(frame(MAC))
    assert filter_(promiscuous=True).passes(frame(OTHER))


def segment(number: int, length: int, *, protocol: int = 6, time_ns: int = 0) -> LiveFrame:
    frame = MAC + OTHER + b"\x08\x00" + bytes(9) + bytes([protocol]) + bytes(length - 24)
    return LiveFrame(number, time_ns, bytes(12), frame)


def ring(frames: list[LiveFrame]) -> ReceiveRing:
    lengths = ring_of([len(frame.frame) for frame in frames])
    return ReceiveRing(used_index=len(lengths), size=256, lengths=tuple(lengths))


def test_what_qemu_did_not_read_is_missing_whatever_the_lengths_allow():
    # all of one length: the lengths alone would allow any number
    frames = [segment(number, 3000, protocol=17, time_ns=number) for number in range(40)]
    with pytest.raises(TestbedError, match="numbers fit"):
        missing_from_ring(ring(frames[:30]), frames, stop_ns=29, first_unread=31)
    mixed = [segment(n, 3000 + 7 * (n % 5), protocol=17, time_ns=n) for n in range(40)]
    assert missing_from_ring(ring(mixed[:30]), mixed, stop_ns=29, first_unread=31) == (10, 0)


def test_tcp_segments_in_doubt_are_called_missing():
    frames = [segment(number, 3000, time_ns=number) for number in range(40)]
    # QEMU read number 30 and parked it; numbers 27 to 29 look like it
    assert missing_from_ring(ring(frames[:30]), frames, stop_ns=29, first_unread=31) == (14, 5)


def test_a_datagram_among_those_in_doubt_makes_the_answer_indefinite():
    frames = [segment(number, 3000, protocol=17 if number == 28 else 6, time_ns=number) for number in range(40)]
    with pytest.raises(TestbedError, match="of like length"):
        missing_from_ring(ring(frames[:30]), frames, stop_ns=29, first_unread=31)


def test_a_ring_that_fits_no_number_is_said_so():
    frames = [segment(number, 3000 + number) for number in range(40)]
    with pytest.raises(TestbedError, match="fit no number"):
        missing_from_ring(ring([segment(0, 77)] * 5), frames, stop_ns=0, first_unread=40)


@given(
    lengths=st.lists(st.integers(60, 9000), min_size=3, max_size=80),
    unread=st.integers(0, 30), swallowed=st.integers(0, 2), data=st.data(),
)
def test_the_true_number_lies_between_the_fewest_and_the_most(lengths, unread, swallowed, data):
    frames = [segment(number, length) for number, length in enumerate(lengths)]
    unread = min(unread, len(frames) - 1)
    swallowed = min(swallowed, len(frames) - 1 - unread)
    truth = unread + swallowed
    most, doubtful = missing_from_ring(
        ring(frames[: len(frames) - truth]), frames, stop_ns=0, first_unread=len(frames) - unread
    )
    assert most - doubtful <= truth <= most


class Tap:
    """A live tap to which `arriving` frames more are sent at each of the first looks."""

    interface, dropped, oldest = "tap0", 0, 0

    def __init__(self, frames: int, *, arriving: list[int]) -> None:
        self.count, self.arriving = frames, arriving

    def drain(self) -> int:
        if self.arriving:
            self.count += self.arriving.pop(0)
        return self.count

    def frames(self, *, first: int) -> list[LiveFrame]:
        return [segment(number, 100, protocol=17) for number in range(first, self.count)]


def missing(monkeypatch, *, frames: int, used: int, arriving: tuple[int, ...] = (), seconds: float = 5.0, suspended: int = 1) -> int:
    """What an account that began at frame 0, buffer 65530 finds missing when the guest has `used` buffers more."""

    async def read_filter(machine, *, nic):
        return filter_()

    async def read_ring(machine, *, nic, pair=0, lengths=False):
        return ReceiveRing(used_index=(65530 + used) % 65536, size=256)

    monkeypatch.setattr(account_module, "read_receive_filter", read_filter)
    monkeypatch.setattr(account_module, "read_receive_ring", read_ring)
    machine = SimpleNamespace(spec=SimpleNamespace(name="m0", nics=()))
    account = FrameAccount(machine, Tap(frames, arriving=list(arriving)), network=None, port=None, nic="net0")
    account._offset = -65530 % 65536
    for _ in range(suspended):
        account.suspend("its machine was stopped and went on")
    return asyncio.run(account.missing(deadline=Deadline(seconds)))


def test_what_never_came_to_the_ring_is_counted_when_all_is_quiet(monkeypatch):
    assert missing(monkeypatch, frames=30, used=30) == 0
    assert missing(monkeypatch, frames=30, used=27) == 3
    assert [missing(monkeypatch, frames=30, used=27, suspended=times) for times in (0, 2)] == [3, 3]
    assert missing(monkeypatch, frames=30, used=35, arriving=(0, 2, 1, 3, 0, 0)) == 1


def test_what_does_not_come_to_rest_is_not_counted(monkeypatch):
    with pytest.raises(TestbedError, match="quiet moment"):
        missing(monkeypatch, frames=30, used=30, arriving=(1,) * 1000, seconds=0.0)


def test_a_ring_with_more_frames_than_were_sent_is_no_count(monkeypatch):
    """A guest that left a group: the frames it had got for it pass its filter no more."""
    with pytest.raises(TestbedError, match="2 frames more than were sent"):
        missing(monkeypatch, frames=30, used=32)


class VhostWorld:
    """A machine with vhost, its TAP and the counters: `sent` frames, of which `taken` were read and `written` stand in the ring."""

    def __init__(self, monkeypatch, *, sent: int = 5) -> None:
        self.sent, self.taken, self.written, self.idle = sent, sent, sent, True
        self.spec = SimpleNamespace(name="m0", nics=(NicSpec(id="net0", mac="52:54:00:77:00:02", vhost=True),))
        self.qmp, self.oldest, self.dropped, self.count = self, 0, 0, sent
        monkeypatch.setattr(account_module, "vhost_workers", lambda: [VhostWorker(task=7, owner=6, machine="m0", idle=self.idle, wakeups=1)])
        port = SimpleNamespace(name="sw-m0", fds=[9])
        self.account = FrameAccount(self, self, network=self, port=port, nic="net0")
        self.account._read_before = 2  # two frames came before the live view

    async def command(self, name: str, **arguments):
        assert name == "x-query-virtio-queue-status"  # and no receive filter is asked for: there is none
        return {"used-idx": 0, "vring-num": 256, "vring-used": 0x1000}

    async def guest_memory(self, address: int, size_bytes: int) -> bytes:
        entries = b"".join(struct.pack("<II", number, 112) for number in range(256))
        return (struct.pack("<HH", 0, 100 + self.written) + entries)[:size_bytes]

    async def counters(self, port):
        return SimpleNamespace(tx_packets=self.taken + 2)

    def drain(self) -> int:
        return self.sent

    def frames(self, *, first: int = 0) -> list[LiveFrame]:
        return [segment(number, 100) for number in range(first, self.sent)]


def test_with_vhost_the_index_is_the_ring_s_own_and_no_filter_stands_before_the_guest(monkeypatch):
    world = VhostWorld(monkeypatch)
    assert asyncio.run(read_receive_ring(world, nic="net0")) == ReceiveRing(105, 256)
    assert asyncio.run(read_receive_ring(world, nic="net0", lengths=True)) == ReceiveRing(105, 256, (112,) * 256)
    assert asyncio.run(read_receive_filter(world, nic="net0")).passes(OTHER + bytes(54))


@pytest.mark.parametrize("behind", [{"taken": 4}, {"idle": False}])
def test_with_vhost_an_account_begins_only_when_the_worker_is_done(monkeypatch, behind):
    world = VhostWorld(monkeypatch)
    for name, value in behind.items():
        setattr(world, name, value)
    with pytest.raises(DeadlineError, match="a quiet moment"):
        asyncio.run(world.account.sync(deadline=Deadline(0.02)))
    assert not world.account.synchronised
    world.taken, world.idle = 5, True
    asyncio.run(world.account.sync(deadline=Deadline(5)))
    assert world.account.synchronised


def test_with_vhost_what_was_sent_before_has_to_be_known(monkeypatch):
    world = VhostWorld(monkeypatch)
    world.account._read_before = None
    with pytest.raises(TestbedError, match="before the guest came is not known"):
        asyncio.run(world.account.sync(deadline=Deadline(5)))


def test_with_vhost_the_stop_says_what_waits_and_what_qemu_took(monkeypatch):
    world = VhostWorld(monkeypatch)
    asyncio.run(world.account.sync(deadline=Deadline(5)))
    world.sent, world.taken, world.written = 12, 9, 8  # QEMU parked one, three wait
    stop = asyncio.run(world.account.at_stop(stop_ns=0))
    assert (stop.first_undelivered, stop.first_unread, stop.swallowed, stop.used_index) == (8, 9, 1, 108)


def test_what_qemu_reads_after_it_was_asked_is_known_when_it_has_ended(monkeypatch):
    """A frame that comes to a stopped machine is parked; the first one may come after the stop was asked about."""
    world = VhostWorld(monkeypatch)
    asyncio.run(world.account.sync(deadline=Deadline(5)))
    stop = asyncio.run(world.account.at_stop(stop_ns=0))
    assert stop.swallowed == 0
    world.sent, world.taken = 8, 6
    ended = asyncio.run(world.account.ended(stop))
    assert (ended.first_undelivered, ended.swallowed) == (5, 1)
    several = dataclasses.replace(stop, queues=(stop, stop))
    assert asyncio.run(world.account.ended(several)) is several


@pytest.mark.parametrize(
    ("frames", "buffers", "count"),
    [
        ([], [], 0),
        ([100], [], 0),
        ([100, 100], [112], 1),
        ([8042, 8042, 8042], [4054, 4000, 4054, 4000], 2),
        ([8042, 8042], [4054], None),  # half a frame: the mark or the list is not what it is taken for
        ([100], [112, 112], None),  # more than was sent
        ([8042, 60], [4054, 4000, 72], 2),
    ],
)
def test_frames_are_counted_off_in_the_buffers_they_fill(frames, buffers, count):
    assert frames_in_buffers(frames, buffers) == count


class LargeFrames:
    """Frames of 8042 bytes, each in two buffers of a ring of 256; `delivered` of the `sent` came to it."""

    def __init__(self) -> None:
        self.sent = self.delivered = self.taken = 0
        self.spec = SimpleNamespace(name="m0", nics=(NicSpec(id="net0", mac="52:54:00:77:00:02"),))
        self.qmp, self.oldest, self.dropped, self.count = self, 0, 0, 0
        self.account = FrameAccount(self, self, network=self, port=SimpleNamespace(name="sw-m0", fds=[9]), nic="net0")

    async def command(self, name: str, /, **arguments):
        if name == "query-rx-filter":
            return [{"name": "net0", "promiscuous": True, "main-mac": "52:54:00:77:00:02", "unicast": "normal", "multicast": "normal",
                     "unicast-overflow": False, "multicast-overflow": False, "unicast-table": [], "multicast-table": []}]  # fmt: skip
        return {"used-idx": 2 * self.delivered % 65536, "vring-num": 256, "vring-used": 0x1000}

    async def guest_memory(self, address: int, size_bytes: int) -> bytes:
        entries = b"".join(struct.pack("<II", 0, (4054, 4000)[number % 2]) for number in range(256))
        return (struct.pack("<HH", 0, 2 * self.delivered % 65536) + entries)[:size_bytes]

    async def counters(self, port):
        return SimpleNamespace(tx_packets=self.taken)

    def drain(self) -> int:
        return self.sent

    def frames(self, *, first: int = 0) -> list[LiveFrame]:
        return [segment(number, 8042, protocol=17) for number in range(first, self.sent)]

    def deliver(self, count: int) -> None:
        self.sent += count
        self.taken += count
        self.delivered += count

    async def stops(self, *, looks: bool) -> StopPoint:
        """The account from the first frame to a stop; one frame purged, one parked, three wait. `looks`: a little before."""
        await self.account.sync(deadline=Deadline(5))
        for _ in range(100):
            self.deliver(50)
            if looks:
                await self.account.look()
        self.deliver(7)
        self.sent, self.taken = self.sent + 5, self.taken + 2
        return await self.account.at_stop(stop_ns=time.time_ns())


def test_frames_of_like_length_are_counted_from_a_quiet_moment_before_the_stop():
    world = LargeFrames()
    stop = asyncio.run(world.stops(looks=True))
    assert world.account.wants_marks
    assert (stop.first_undelivered, stop.first_unread, stop.swallowed, stop.doubtful) == (5007, 5009, 2, 0)


def test_frames_of_like_length_without_a_quiet_moment_are_not_guessed_at():
    with pytest.raises(TestbedError, match="does not tell which frames the guest got"):
        asyncio.run(LargeFrames().stops(looks=False))


def test_a_quiet_moment_after_the_stop_says_nothing_of_it():
    """A frame that the stopped machine parked is in no ring, and nothing moves all the same."""
    world = LargeFrames()

    async def scene() -> None:
        await world.account.sync(deadline=Deadline(5))
        world.deliver(200)
        stop_ns = time.time_ns()
        world.sent, world.taken = 201, 201
        await world.account.look()
        await world.account.at_stop(stop_ns=stop_ns)

    with pytest.raises(TestbedError, match="does not tell which frames the guest got"):
        asyncio.run(scene())


def test_a_frame_that_the_guest_can_t_get_is_not_missing(monkeypatch):
    world = VhostWorld(monkeypatch)
    asyncio.run(world.account.sync(deadline=Deadline(5)))
    world.account.never(5)
    world.sent, world.taken, world.written = 8, 8, 7
    assert asyncio.run(world.account.missing(deadline=Deadline(5))) == 0
    world.sent = world.taken = 9
    assert asyncio.run(world.account.missing(deadline=Deadline(5))) == 1
