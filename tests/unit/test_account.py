"""Which frames the guest got, told from the lengths in its receive ring, and the device's receive filter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.migrate.account import FrameAccount, StopPoint, missing_by_lengths
from harness.vm.virtqueue import ReceiveFilter

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
