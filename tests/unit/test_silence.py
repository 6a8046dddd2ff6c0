"""The silence of an end of a TCP connection, and what its clock lost there: segments whose truth is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from harness.analysis.columns import Columns, decode
from harness.analysis.sightings import StopWindow
from harness.analysis.silence import TICK_NS, find_silence
from harness.analysis.synthetic import frames_batch
from harness.analysis.tcp import find_connections

MS = 1_000_000
T0 = 1_700_000_000_000_000_000
STOP_MS = 1200


def emitted(
    *, stop_ms: float = STOP_MS, stopped_ms: float = 200, every_ms: float = 1.0, begin: int = 5_000, tick_ns: int = TICK_NS,
    late_ms: float = 0.0, end_ms: float = 1500,
) -> NDArray[np.int64]:
    """A guest that sends every `every_ms` of its own time and stands still from `stop_ms` on for `stopped_ms`. The last 50 ms before
    the stop and the first `late_ms` after it run, but nothing leaves in the latter.
    """
    guest_ms = np.arange(0, end_ms, every_ms) + 0.37
    host_ms = np.where(guest_ms < stop_ms, guest_ms, guest_ms + stopped_ms)
    waits = (guest_ms >= stop_ms) & (guest_ms < stop_ms + late_ms)
    host_ms[waits] = stop_ms + stopped_ms + late_ms
    stamped_ms = np.where(waits, stop_ms + late_ms, guest_ms)
    stamps = (begin + stamped_ms * MS // tick_ns).astype(np.int64) % 2**32
    return np.stack([T0 + (host_ms * MS).astype(np.int64), stamps])


def window(*, stop_ms: float = STOP_MS, stopped_ms: float = 200) -> tuple[StopWindow, ...]:
    return (StopWindow(stop_ns=T0 + round(stop_ms * MS), resume_ns=T0 + round((stop_ms + stopped_ms) * MS)),)


@given(
    stopped_ms=st.floats(min_value=5, max_value=2000), stop_ms=st.floats(min_value=1000, max_value=1300),
    every_ms=st.sampled_from([0.2, 1.0, 3.3]), begin=st.integers(min_value=1, max_value=2**32 - 1),
)  # fmt: skip
def test_both_figures_find_the_stop(stopped_ms: float, stop_ms: float, every_ms: float, begin: int) -> None:
    found = find_silence(
        emitted(stopped_ms=stopped_ms, stop_ms=stop_ms, every_ms=every_ms, begin=begin),
        windows=window(stop_ms=stop_ms, stopped_ms=stopped_ms),
    )
    assert found is not None
    assert found.usual_ns == pytest.approx(every_ms * MS, abs=2)
    assert abs(found.duration_ns - stopped_ms * MS) <= every_ms * MS + 2
    assert found.clock_lost_ns is not None
    assert abs(found.clock_lost_ns - stopped_ms * MS) <= TICK_NS


def test_a_guest_that_answers_late_is_silent_for_longer_but_its_clock_lost_no_more() -> None:
    found = find_silence(emitted(late_ms=30), windows=window())
    assert found is not None
    assert found.duration_ns == pytest.approx(230 * MS, abs=MS)
    assert found.clock_lost_ns == pytest.approx(200 * MS, abs=TICK_NS)


def test_of_a_longer_silence_elsewhere_nothing_is_said_where_the_stop_is_known() -> None:
    wire = emitted(stop_ms=1200, stopped_ms=50, end_ms=4000)
    keep = (wire[0] < T0 + 2500 * MS) | (wire[0] > T0 + 2900 * MS)
    found = find_silence(wire[:, keep], windows=window(stopped_ms=50))
    assert found is not None
    assert found.duration_ns == pytest.approx(50 * MS, abs=MS)
    longest = find_silence(wire[:, keep])
    assert longest is not None
    assert longest.duration_ns == pytest.approx(400 * MS, abs=MS)
    assert longest.clock_lost_ns == pytest.approx(0, abs=TICK_NS), "it was silent, but it ran"


def test_a_late_stamp_and_one_that_was_overtaken_don_t_matter() -> None:
    wire = emitted()
    at = int(np.searchsorted(wire[0], T0 + 800 * MS))
    wire[1, [at, at + 1]] = wire[1, [at + 1, at]]
    wire[0, at + 40 : at + 60] = wire[0, at + 59]
    found = find_silence(wire, windows=window())
    assert found is not None
    assert found.clock_lost_ns == pytest.approx(200 * MS, abs=TICK_NS)


@pytest.mark.parametrize("tick_ns", [4 * MS, 10 * MS, 1000])
def test_timestamps_of_another_tick_say_nothing(tick_ns: int) -> None:
    found = find_silence(emitted(tick_ns=tick_ns), windows=window())
    assert found is not None
    assert found.duration_ns == pytest.approx(200 * MS, abs=MS)
    assert found.clock_lost_ns is None


def test_without_timestamps_the_silence_is_known_alone() -> None:
    wire = emitted()
    wire[1] = 0
    found = find_silence(wire, windows=window())
    assert found is not None
    assert found.clock_lost_ns is None


@pytest.mark.parametrize(
    "wire", [np.empty((2, 0), dtype=np.int64), emitted(every_ms=100), emitted()[:, 1190:], emitted(end_ms=1100)],
    ids=["none", "seldom", "not before", "not after"],
)
def test_too_few_segments_tell_nothing(wire: NDArray[np.int64]) -> None:
    assert find_silence(wire, windows=window()) is None


def segments(*options: tuple[str, object]) -> Columns:
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    frames = [
        bytes(ether / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1000, dport=80, seq=number, ack=1, flags="A", options=list(options)))
        for number in range(3)
    ]
    return decode(frames_batch(frames, time_ns=[T0 + 3 - number for number in range(3)], direction=1))


@pytest.mark.parametrize(
    ("options", "stamp"),
    [
        ([("NOP", None), ("NOP", None), ("Timestamp", (0xFEDCBA98, 7))], 0xFEDCBA98),
        ([("NOP", None), ("NOP", None), ("SAck", (5, 9)), ("NOP", None), ("NOP", None), ("Timestamp", (17, 7))], 17),
        ([("NOP", None), ("NOP", None), ("SAck", (5, 9))], 0),
        ([(8, b"\x01\x02\x03\x04"), ("NOP", None)], 0),
    ],
    ids=["alone", "behind SACK", "none", "of a wrong length"],
)
def test_the_senders_own_time_is_decoded(options: list[tuple[str, object]], stamp: int) -> None:
    columns = segments(*options)
    assert columns.tcp_timestamp.tolist() == [stamp] * 3
    (connection,) = find_connections(columns)
    assert connection.emitted[0].tolist() == [[T0 + 1, T0 + 2, T0 + 3], [stamp] * 3]
    assert connection.emitted[1].shape == (2, 0)
