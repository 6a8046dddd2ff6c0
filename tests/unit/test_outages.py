"""Outages, delays, phases and announcements from ledgers whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether

from harness.analysis.announce import AnnouncementKind, find_announcements, first_frame_ns, mac_number, mac_text
from harness.analysis.calibration import DropTrial, calibrate, null_run, outage_trial
from harness.analysis.clockmap import fit_clock, with_clock
from harness.analysis.columns import decode
from harness.analysis.evidence import Captures, Evidence, StreamRecords
from harness.analysis.ledger import Ledger, account
from harness.analysis.outages import delays, find_outages, longest_gap_ns, network_downtime
from harness.analysis.pcapng import INBOUND, OUTBOUND
from harness.analysis.phases import Milestones, PhaseName, phase_of, phases, sent_by_phase
from harness.analysis.sightings import StopWindow
from harness.analysis.synthetic import capture_of, frames_batch, probe_batch, received_file, sent_file
from harness.model.scenario import Direction

# A slow example on a busy machine is no failure.
unhurried = settings(deadline=None)

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
US = 1_000


def to_guest(
    *, count: int = 200, lost: range = range(0), carried: range = range(0), windows: tuple[StopWindow, ...] = (),
    send_delay_ns: dict[int, int] | None = None, guest_lag_ns: int = 0, received_ns: np.ndarray | None = None,
) -> Ledger:  # fmt: skip
    """One packet a millisecond to the guest, 20 us from port to TAP; `carried` ones are written to the destination's
    TAP at RESUME, `lost` ones are on no TAP."""
    sent = T0 + np.arange(count, dtype=np.int64) * MS
    for seq, delay in (send_delay_ns or {}).items():
        sent[seq] += delay
    seqs = np.arange(count)
    gone, moved = np.isin(seqs, lost), np.isin(seqs, carried)
    resume = windows[-1].resume_ns if windows else 0
    after = ~gone & ~moved & (sent >= resume if windows else False)
    before = ~gone & ~moved & ~after
    peer = capture_of(probe_batch(seqs, time_ns=sent, direction=INBOUND))
    source = capture_of(probe_batch(seqs[before], time_ns=sent[before] + 20 * US, direction=OUTBOUND))
    there = after | moved
    times = np.where(moved, resume - 50 * US, sent + 20 * US)[there]
    destination = capture_of(probe_batch(seqs[there], time_ns=times, direction=OUTBOUND))
    arriving = seqs[~gone]
    records = StreamRecords(
        name="udp",
        direction=Direction.TO_GUEST,
        sent=sent_file(seqs, sent_ns=sent),
        received=received_file(
            arriving, received_ns=sent[~gone] + guest_lag_ns if received_ns is None else received_ns
        ),
    )
    evidence = Evidence(
        captures=Captures(peer=peer, source=source, destination=destination),
        passed=frozenset((1, seq) for seq in carried),
        windows=windows,
    )
    return account([records], evidence=evidence)["udp"]


def from_guest(seqs: list[int], times: list[int]) -> Ledger:
    """What a guest sent: seen at its TAP and at the peer's port at the given times."""
    tap = capture_of(probe_batch(seqs, time_ns=times, direction=INBOUND))
    peer = capture_of(probe_batch(seqs, time_ns=np.array(times, dtype=np.int64) + 5 * US, direction=OUTBOUND))
    records = StreamRecords(
        name="udp",
        direction=Direction.FROM_GUEST,
        sent=sent_file(seqs, sent_ns=0),
        received=received_file(seqs, received_ns=times),
    )
    return account([records], evidence=Evidence(captures=Captures(peer=peer, source=tap)))["udp"]


@unhurried
@given(first=st.integers(1, 100), length=st.integers(2, 80))
def test_the_outage_of_lost_packets(first: int, length: int) -> None:
    ledger = to_guest(lost=range(first, first + length))
    (outage,) = find_outages(ledger, interval_ns=MS)
    assert outage.duration_ns == length * MS
    assert outage.start_ns == T0 + (first - 1) * MS + 20 * US
    assert outage.recovered
    assert longest_gap_ns(ledger) == (length + 1) * MS


@unhurried
@given(stop_ms=st.integers(20, 50), length_us=st.integers(5_000, 100_000), offset_us=st.integers(0, 999))
def test_carried_packets_are_an_outage_to_one_interval(stop_ms: int, length_us: int, offset_us: int) -> None:
    stop = T0 + stop_ms * MS + offset_us * US
    window = StopWindow(stop_ns=stop, resume_ns=stop + length_us * US)
    waiting = [seq for seq in range(200) if stop <= T0 + seq * MS + 20 * US and T0 + seq * MS < window.resume_ns]
    ledger = to_guest(carried=range(waiting[0], waiting[-1] + 1), windows=(window,))
    assert ledger.counts.delivered == 200
    downtime = network_downtime(find_outages(ledger, interval_ns=MS), windows=(window,))
    assert downtime is not None
    assert abs(downtime.duration_ns - length_us * US) <= MS
    found = delays(ledger)
    assert found is not None
    assert length_us * US - MS <= found.max_ns <= length_us * US + 20 * US


def test_a_gap_that_the_sender_made_is_no_outage() -> None:
    late = {seq: 30 * MS - (seq - 100) * MS for seq in range(100, 130)}
    ledger = to_guest(send_delay_ns=late)
    assert longest_gap_ns(ledger) == 31 * MS
    assert find_outages(ledger, interval_ns=MS) == ()
    assert network_downtime((), windows=()) is None


@unhurried
@given(late_us=st.integers(0, 5000), offset_us=st.integers(0, 999))
def test_a_sender_that_is_late_as_the_stop_begins_is_allowed_for(late_us: int, offset_us: int) -> None:
    """Packet 50 is sent late, between it and packet 49 the stop begins: the outage is told to the interval that was kept there."""
    stop = T0 + 49 * MS + offset_us * US + 30 * US
    window = StopWindow(stop_ns=stop, resume_ns=stop + 40 * MS)
    delayed = {seq: max(0, late_us * US - (seq - 50) * MS) for seq in range(50, 56)}
    ledger = to_guest(carried=range(50, 90), windows=(window,), send_delay_ns=delayed)
    downtime = network_downtime(find_outages(ledger, interval_ns=MS), windows=(window,))
    assert downtime is not None
    assert downtime.interval_ns == max(MS, MS + late_us * US - 20 * US)
    assert downtime.duration_ns <= 40 * MS + 20 * US
    assert downtime.duration_ns >= 40 * MS - downtime.interval_ns


def test_the_moving_guests_own_silence_is_an_outage() -> None:
    times = [T0 + seq * MS + (150 * MS if seq >= 50 else 0) for seq in range(100)]
    (outage,) = find_outages(from_guest(list(range(100)), times), interval_ns=MS)
    assert outage.duration_ns == 150 * MS


def test_several_outages_are_not_summed() -> None:
    ledger = to_guest(lost=range(20, 30))
    both = dataclasses.replace(to_guest(lost=range(60, 100)), name="b")
    assert len(find_outages(ledger, interval_ns=MS)) == 1
    merged = np.where(ledger.delivered_ns == -1, -1, both.delivered_ns)
    fate = np.minimum(ledger.fate, both.fate)
    two = dataclasses.replace(ledger, delivered_ns=merged, fate=fate)
    outages = find_outages(two, interval_ns=MS)
    assert [outage.duration_ns for outage in outages] == [10 * MS, 40 * MS]
    early = StopWindow(stop_ns=T0 + 22 * MS, resume_ns=T0 + 25 * MS)
    assert network_downtime(outages, windows=(early,)) == outages[0]
    assert network_downtime(outages, windows=()) == outages[1]
    elsewhere = StopWindow(stop_ns=T0 + 150 * MS, resume_ns=T0 + 151 * MS)
    assert network_downtime(outages, windows=(elsewhere,)) is None


def test_a_stream_that_never_comes_back() -> None:
    (outage,) = find_outages(to_guest(lost=range(100, 200)), interval_ns=MS)
    assert not outage.recovered
    assert outage.end_ns == T0 + 199 * MS
    (everything,) = find_outages(to_guest(lost=range(200)), interval_ns=MS)
    assert not everything.recovered
    assert everything.duration_ns == 198 * MS


def test_tolerance_is_what_the_null_run_showed() -> None:
    ledger = to_guest(lost=range(50, 53))
    assert len(find_outages(ledger, interval_ns=MS, tolerance_ns=2 * MS)) == 1
    assert find_outages(ledger, interval_ns=MS, tolerance_ns=3 * MS) == ()


def test_no_packet_at_all() -> None:
    ledger = to_guest(count=0)
    assert find_outages(ledger, interval_ns=MS) == ()
    assert longest_gap_ns(ledger) is None
    assert delays(ledger) is None


STOP, RESUME = T0 + 50 * MS, T0 + 80 * MS


def test_phases_of_a_postcopy_migration() -> None:
    milestones = Milestones(
        start_ns=T0, end_ns=T0 + 200 * MS, migrate_ns=T0 + 20 * MS, stop_ns=STOP, resume_ns=RESUME,
        announced_ns=RESUME + 10 * MS, completed_ns=RESUME + 40 * MS, postcopy=True,
    )  # fmt: skip
    found = phases(milestones)
    assert [phase.name.value for phase in found] == [
        "before", "precopy", "stopped", "unannounced", "postcopy-tail", "after"
    ]  # fmt: skip
    counts = {each.phase: each for each in sent_by_phase(to_guest(lost=range(60, 70)), found)}
    assert {name.value: each.sent for name, each in counts.items()} == {
        "before": 20, "precopy": 30, "stopped": 30, "unannounced": 10, "postcopy-tail": 30, "after": 80
    }  # fmt: skip
    assert {name.value: each.lost for name, each in counts.items() if each.lost} == {"stopped": 10}


@unhurried
@given(st.lists(st.one_of(st.none(), st.integers(0, 200)), min_size=5, max_size=5), st.booleans())
def test_every_packet_has_exactly_one_phase(times: list[int | None], postcopy: bool) -> None:
    points = sorted(each for each in times if each is not None)
    filled = [None if each is None else T0 + points.pop(0) * MS for each in times]
    milestones = Milestones(
        start_ns=T0, end_ns=T0 + 200 * MS, migrate_ns=filled[0], stop_ns=filled[1], resume_ns=filled[2],
        announced_ns=filled[3], completed_ns=filled[4], postcopy=postcopy,
    )  # fmt: skip
    found = phases(milestones)
    index = phase_of(T0 + np.arange(-5, 206, dtype=np.int64) * MS, found)
    assert (index >= 0).all()
    assert sum(each.sent for each in sent_by_phase(to_guest(), found)) == 200


def test_without_a_migration_all_is_before() -> None:
    (only,) = phases(Milestones(start_ns=T0, end_ns=T0 + MS))
    assert only.name is PhaseName.BEFORE


MAC = "52:54:00:00:00:01"


def test_announcements_are_found() -> None:
    frames = [
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff", type=0x8035) / ARP(op=3, hwsrc=MAC, psrc="0.0.0.0", pdst="0.0.0.0"),
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.1"),
        Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NA(),
        Ether(src=MAC, dst="02:00:00:00:00:02") / IPv6(src="fe80::1", dst="fe80::2") / ICMPv6ND_NA(),
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"),
        Ether(src="02:00:00:00:00:09", dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc="10.0.0.9", pdst="10.0.0.9"),
    ]
    times = T0 + np.arange(len(frames)) * MS
    columns = decode(frames_batch([bytes(frame) for frame in frames], time_ns=times, direction=INBOUND))
    found = find_announcements(columns, mac=MAC)
    assert [(each.kind, each.time_ns) for each in found] == [
        (AnnouncementKind.RARP, T0), (AnnouncementKind.ARP, T0 + MS), (AnnouncementKind.NEIGHBOUR, T0 + 2 * MS)
    ]  # fmt: skip
    assert {each.mac for each in found} == {MAC}
    assert len(find_announcements(columns)) == 4
    assert find_announcements(columns, direction=OUTBOUND) == ()
    assert first_frame_ns(columns, mac=MAC) == T0
    assert first_frame_ns(columns, mac=MAC, after_ns=T0 + 1) == T0 + MS
    assert first_frame_ns(columns, mac="02:00:00:00:00:77") is None
    assert mac_text(mac_number(MAC)) == MAC


def test_a_null_run_sets_the_tolerances() -> None:
    run = null_run(to_guest(), interval_ns=MS)
    assert run.sound
    assert (run.max_delay_ns, run.longest_gap_ns, run.tolerance_ns) == (20 * US, MS, MS)
    bad = null_run(to_guest(lost=range(5, 6)), interval_ns=MS)
    assert not bad.sound
    assert calibrate(null_runs=[run, bad]).sound is False
    with pytest.raises(ValueError, match="null run"):
        calibrate(null_runs=[])


def test_a_calibration_takes_the_worst_error() -> None:
    run = null_run(to_guest(), interval_ns=MS)
    window = StopWindow(stop_ns=T0, resume_ns=T0 + 100 * MS)
    trials = [outage_trial(window=window, measured_ns=each) for each in (100 * MS, 102 * MS, 97 * MS)]
    result = calibrate(null_runs=[run], outages=trials, drops=[DropTrial(truth=7, counted=7)])
    assert (result.outages, result.bias_ns, result.worst_ns, result.resolution_ns) == (3, 0, 3 * MS, 3 * MS)
    assert result.late_ns == 20 * US + MS
    assert result.sound
    assert not calibrate(null_runs=[run], drops=[DropTrial(truth=7, counted=8)]).sound
    missed = outage_trial(window=window, measured_ns=None)
    assert calibrate(null_runs=[run], outages=[missed]).worst_ns == 100 * MS


@unhurried
@given(
    offset_s=st.integers(-1000, 1000),
    drift_ppm=st.integers(-50, 50),
    seed=st.integers(0, 1000),
    stopped_ms=st.integers(10, 400),
)
def test_the_clock_map_finds_offset_drift_and_step(offset_s: int, drift_ppm: int, seed: int, stopped_ms: int) -> None:
    count = 4000
    stop = T0 + 2000 * MS + 500 * US
    window = StopWindow(stop_ns=stop, resume_ns=stop + stopped_ms * MS)
    waiting = range(2001, 2001 + stopped_ms)
    host = T0 + np.arange(count, dtype=np.int64) * MS + 20 * US
    host[waiting.start : waiting.stop] = window.resume_ns
    # Short enough that nothing is on its way into the guest when it stops.
    delay = np.minimum(np.random.default_rng(seed).exponential(200 * US, count), 400 * US).astype(np.int64) + 30 * US
    true_host = host + delay
    running = true_host - np.where(true_host > stop, np.minimum(true_host, window.resume_ns) - stop, 0)
    guest = running + offset_s * 1000 * MS + ((running - T0) * drift_ppm // 1_000_000)
    ledger = to_guest(count=count, carried=waiting, windows=(window,), received_ns=guest)
    clock = fit_clock([ledger], windows=(window,))
    assert clock is not None
    (step,) = clock.steps
    assert abs(step.step_ns + stopped_ms * MS) < 200 * US
    refined = with_clock(ledger, clock)
    error = refined.delivered_ns - true_host
    assert np.abs(error).max() < 200 * US
    waited = ledger.delivered_ns == window.resume_ns
    assert (refined.delivered_ns[~waited] >= ledger.delivered_ns[~waited]).all()


def test_a_clock_cannot_be_mapped_from_too_few_packets() -> None:
    assert fit_clock([to_guest(count=5)], windows=()) is None
    assert fit_clock([], windows=()) is None
    assert fit_clock([from_guest([0], [T0])], windows=()) is None
