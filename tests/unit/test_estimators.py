"""The published formulas on series whose downtime is known, and ping's log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.analysis.estimators import Exchanges, estimate, read_ping_log
from harness.analysis.sightings import NEVER
from harness.errors import UsageError

MS = 1_000_000
T0 = 1_700_000_000_000_000_000


def series(*, lost: set[int], count: int = 100, interval_ns: int = 10 * MS, rtt_ns: int = MS) -> Exchanges:
    sent = T0 + np.arange(count, dtype=np.int64) * interval_ns
    return Exchanges(sent_ns=sent, received_ns=np.where(np.isin(np.arange(count), list(lost)), NEVER, sent + rtt_ns))


def values(exchanges: Exchanges, interval_ns: int = 10 * MS) -> dict[str, float | None]:
    found = estimate(exchanges, interval_ns=interval_ns).estimates
    return {each.name: None if each.downtime_ns is None else each.downtime_ns / MS for each in found}


def test_one_outage() -> None:
    assert values(series(lost=set(range(20, 30)))) == {
        "lost-times-interval": 100,
        "lost-plus-one": 110,
        "longest-single-gap": 110,
        "first-loss-to-last-recovery": 110,
        "largest-reply-gap": 110,
        "switchover": 100,
    }


def test_two_outages_are_summed_by_some() -> None:
    assert values(series(lost={20, 21, 60, 61, 62})) == {
        "lost-times-interval": 50,
        "lost-plus-one": 60,
        "longest-single-gap": 40,
        "first-loss-to-last-recovery": 440,
        "largest-reply-gap": 40,
        "switchover": 30,
    }


def test_a_delay_without_loss_is_seen_by_gaps_only() -> None:
    exchanges = series(lost=set())
    held = exchanges.received_ns.copy()
    held[20:30] = held[30]
    assert values(Exchanges(sent_ns=exchanges.sent_ns, received_ns=held)) == {
        "lost-times-interval": 0,
        "lost-plus-one": 0,
        "longest-single-gap": 0,
        "first-loss-to-last-recovery": 0,
        "largest-reply-gap": 110,
        "switchover": 100,
    }


def test_nothing_happened() -> None:
    found = estimate(series(lost=set()), interval_ns=10 * MS)
    assert (found.sent, found.lost, found.kept_interval_ns) == (100, 0, 10 * MS)
    assert values(series(lost=set()))["switchover"] == 0


def test_no_recovery_and_no_reply() -> None:
    never = values(series(lost=set(range(50, 100))))
    assert never["first-loss-to-last-recovery"] is None
    nothing = values(series(lost=set(range(100))))
    assert nothing["largest-reply-gap"] is None
    assert nothing["switchover"] is None
    assert nothing["lost-times-interval"] == 1000


def test_bad_series() -> None:
    with pytest.raises(UsageError, match="no request"):
        estimate(Exchanges(sent_ns=np.empty(0, np.int64), received_ns=np.empty(0, np.int64)), interval_ns=1)
    with pytest.raises(UsageError, match="positive"):
        estimate(series(lost=set()), interval_ns=0)


def reply(seq: int, time_s: float, rtt_ms: float = 0.5, tail: str = "") -> str:
    return f"[{time_s:.6f}] 64 bytes from 10.0.0.2: icmp_seq={seq % 65536} ttl=64 time={rtt_ms} ms{tail}"


def silence(seq: int, time_s: float) -> str:
    return f"[{time_s:.6f}] no answer yet for icmp_seq={seq % 65536}"


def write(path: Path, *lines: str) -> Path:
    head = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data."
    tail = ["", "--- 10.0.0.2 ping statistics ---", "9 packets transmitted, 7 received, 22% packet loss, time 80ms"]
    path.write_text("\n".join([head, *lines, *tail]) + "\n")
    return path


def test_a_ping_log(tmp_path: Path) -> None:
    lines = [reply(seq, 1000 + seq / 100) for seq in range(1, 5)]
    lines += [silence(seq, 1000 + (seq + 1) / 100) for seq in (5, 6, 7)]
    lines += [reply(seq, 1000 + seq / 100) for seq in (8, 9)]
    found = read_ping_log(write(tmp_path / "log", *lines), interval_ns=10 * MS)
    assert found.lost.tolist() == [False] * 4 + [True] * 3 + [False] * 2
    assert found.sent_ns.tolist() == [
        1000_000_000_000 + seq * 10 * MS - (0 if 5 <= seq <= 7 else MS // 2) for seq in range(1, 10)
    ]
    assert found.received_ns[0] == 1000_010_000_000
    assert values(found)["lost-times-interval"] == 30
    assert values(found)["switchover"] == 30


def test_a_late_answer_is_no_loss_and_a_copy_counts_once(tmp_path: Path) -> None:
    lines = [reply(1, 10.0), silence(2, 10.02), reply(2, 10.025, 15), reply(3, 10.026), reply(3, 10.027, 2, " (DUP!)")]
    found = read_ping_log(write(tmp_path / "log", *lines), interval_ns=10 * MS)
    assert found.lost.tolist() == [False] * 3
    assert found.received_ns[1:].tolist() == [10_025_000_000, 10_026_000_000]
    assert found.sent_ns[1] == 10_010_000_000


def test_the_sequence_number_wraps(tmp_path: Path) -> None:
    numbers = [seq for seq in range(65_530, 65_545) if seq not in (65_535, 65_536)]
    found = read_ping_log(write(tmp_path / "log", *(reply(s, 100 + s / 100) for s in numbers)), interval_ns=10 * MS)
    assert len(found.sent_ns) == 15
    assert np.flatnonzero(found.lost).tolist() == [5, 6]
    assert (np.abs(np.diff(found.sent_ns) - 10 * MS) < 10_000).all()


def test_unreachable_is_lost(tmp_path: Path) -> None:
    lines = [reply(1, 10.0), "[10.010000] From 10.0.0.1 icmp_seq=2 Destination Host Unreachable", reply(3, 10.02)]
    assert read_ping_log(write(tmp_path / "log", *lines), interval_ns=10 * MS).lost.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "not a log of ping"),
        (["64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.5 ms"], ":2: no time stamp"),
        ([reply(1, 10.0), reply(2, 9.0)], ":3: the clock went back by 1000.000 ms"),
    ],
)
def test_bad_logs(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_ping_log(write(tmp_path / "log", *lines), interval_ns=10 * MS)


def test_a_missing_log(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_ping_log(tmp_path / "nothing", interval_ns=1)
