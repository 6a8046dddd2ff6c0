"""TCP bulk through switchovers: who loses a segment, and who waits for a retransmission timeout (RTO). `python -m bench.netpass_tcp`.

All arms by turns in one lab of the reference build, for each hold: bulk data to the guest (with `--rate 0` as fast as it goes) and from it.
The silence of a switchover is the time around RESUME in which nothing more of the data to the guest was acknowledged. A timeout belongs to the
switchover if in that silence the peer sent something again after 190 ms or more, or if its kernel counted a timeout and the silence was that
long: one that expires while its segment still waits in a queue of the host sends nothing. Linux's shortest RTO is 200 ms and the peer's clock
goes on while no machine runs, so a longer stop must time out whatever the mechanism does. What the two kernels count (TCPTimeouts) is for the
whole run: a postcopy guest that waits for its pages, or a busy host, makes further ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.netpass import HOLD_BACK, pair_of
from harness.analysis.columns import TCP, read_capture
from harness.analysis.tcp import find_connections
from harness.plugin.loop import LoopThread
from harness.plugin.pair import GuestPair

ARMS: dict[str, dict[str, Any]] = {
    "none precopy": {"mechanism": "none"},
    "none postcopy": {"mechanism": "none", "mode": "postcopy"},
    "netpass precopy": {"mechanism": "netpass"},
    "netpass postcopy": {"mechanism": "netpass", "mode": "postcopy"},
    "netpass precopy, hold-back": {"mechanism": "netpass", "parameters": HOLD_BACK},
    "netpass postcopy, hold-back": {"mechanism": "netpass", "mode": "postcopy", "parameters": HOLD_BACK},
}
LONGEST_PROBE_NS = 190_000_000
"""Earlier than that, a segment sent again is a tail loss probe, or was asked for; a timer may fire a jiffy early."""
UP_PPS, DOWN_PPS = 200, 500
BEFORE_S, AFTER_S = 0.5, 1.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One switchover. Times in ms. `early` and `late`: segments to the guest sent again in the silence, before and after 190 ms of it.

    `timeouts`: the peer's kernel, then the guest's; `whole`: every byte arrived, and both connections ended in order.
    """

    arm: str
    hold: float
    stop: float
    silence: float
    early: int
    late: int
    timeouts: tuple[int, int]
    fast: int
    again: int
    lost: int
    whole: bool
    run: str

    @property
    def timed_out(self) -> bool:
        return bool(self.late or (self.timeouts[0] and self.silence * 1e6 >= LONGEST_PROBE_NS))


def switch(pair: GuestPair, arm: str, hold_ms: float, *, rate_pps: int, **plan: Any) -> Row:
    """One switchover under bulk data both ways."""
    pace: dict[str, Any] = {"rate_pps": rate_pps} if rate_pps else {}
    with pair.udp(rate_pps=200) as datagrams, pair.tcp(**pace) as down, pair.tcp(rate_pps=UP_PPS, direction="from-guest") as up:
        pair.succeed(f"sleep {BEFORE_S}")
        record = pair.migrate(hold_ms=hold_ms, **plan)
        pair.succeed(f"sleep {AFTER_S}")
    assert record.stop_ns is not None
    assert record.resume_ns is not None
    ends = [down.connection, up.connection]
    counters = down.result.tcp_counters
    silence_ms, early, late = _silence(pair.run_directory / "capture" / "peer.pcapng", server=down.connection.server, resume_ns=record.resume_ns)
    return Row(
        arm=arm, hold=hold_ms, stop=(record.resume_ns - record.stop_ns) / 1e6, silence=silence_ms, early=early, late=late,
        timeouts=(counters["peer"].get("TCPTimeouts", 0), counters["mobile"].get("TCPTimeouts", 0)),
        fast=sum(end.fast_retransmits for end in ends), again=sum(end.retransmitted_segments for end in ends), lost=datagrams.ledger.lost,
        whole=all(end.survived and end.bytes == end.confirmed_bytes for end in ends), run=pair.run_directory.name,
    )  # fmt: skip


def _silence(capture: Path, *, server: str, resume_ns: int) -> tuple[float, int, int]:
    """How long the data to `server` went unacknowledged around `resume_ns`, and the segments sent again in that time: before 190 ms of it, and after."""
    columns = read_capture(capture).columns
    (connection,) = (each for each in find_connections(columns) if each.flows[0].receiver == server)
    acknowledged_ns = connection.acknowledged[0][0]
    after = int(np.searchsorted(acknowledged_ns, resume_ns, side="right"))
    begin_ns, end_ns = int(acknowledged_ns[after - 1]), int(acknowledged_ns[after])
    port = int(server.rpartition(":")[2])
    mine = (columns.protocol == TCP) & (columns.destination_port == port) & (columns.payload_bytes > 0)
    seqs = columns.tcp_seq[mine].astype(np.int64)
    times_ns = columns.time_ns[mine]
    ends = (seqs - seqs[0] + columns.payload_bytes[mine]) & 0xFFFFFFFF  # a run sends less than 4 GiB
    again = ends <= np.concatenate(([0], np.maximum.accumulate(ends)[:-1]))
    inside = times_ns[again & (times_ns > begin_ns) & (times_ns <= end_ns)] - begin_ns
    return (end_ns - begin_ns) / 1e6, int(np.count_nonzero(inside < LONGEST_PROBE_NS)), int(np.count_nonzero(inside >= LONGEST_PROBE_NS))


def campaign(pair: GuestPair, *, rounds: int, holds_ms: Sequence[float], rate_pps: int, kept: Path) -> list[Row]:
    rows: list[Row] = []
    switch(pair, "first", 0.0, rate_pps=rate_pps, mechanism="none")  # the first migration of a process is slower than later ones
    for turn in range(rounds):
        todo = [(arm, hold, plan) for hold in holds_ms for arm, plan in ARMS.items()]
        for arm, hold, plan in todo if turn % 2 == 0 else reversed(todo):
            rows.append(switch(pair, arm, hold, rate_pps=rate_pps, **plan))
        kept.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
        print(f"  round {turn + 1} of {rounds}: {sum(row.timed_out for row in rows)} of {len(rows)} switchovers with an RTO", file=sys.stderr, flush=True)
    return rows


def show(rows: Sequence[Row], *, holds_ms: Sequence[float]) -> None:
    print("\nTCP bulk both ways. RTO: switchovers with one. Counts are sums; times are shortest .. median .. longest, in ms\n")
    print(
        "| hold, ms | arm | runs | all bytes | RTO | STOP..RESUME | silence | silence where no RTO | sent again before 190 ms | fast | all sent again |"
        " TCPTimeouts of the whole run, peer and guest | UDP lost |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for hold in holds_ms:
        for arm in ARMS:
            mine = [row for row in rows if (row.arm, row.hold) == (arm, hold)]
            peers, guests = (sum(row.timeouts[end] for row in mine) for end in (0, 1))
            print(
                f"| {hold:g} | {arm} | {len(mine)} | {sum(row.whole for row in mine)} | {sum(row.timed_out for row in mine)} |"
                f" {_spread([row.stop for row in mine])} | {_spread([row.silence for row in mine])} |"
                f" {_spread([row.silence for row in mine if not row.timed_out])} | {sum(row.early for row in mine)} | {sum(row.fast for row in mine)} |"
                f" {sum(row.again for row in mine)} | {peers}, {guests} | {sum(row.lost for row in mine)} |"
            )


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.0f} .. {np.median(values):.0f} .. {max(values):.0f}" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.netpass_tcp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--holds", type=float, nargs="+", default=[50.0, 300.0], metavar="MS")
    parser.add_argument("--rate", type=int, default=DOWN_PPS, metavar="PPS", help="blocks of 4096 bytes a second to the guest; 0: as fast as it goes")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where run directories go")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    with LoopThread() as loop, pair_of("reference", results=arguments.results, loop=loop) as pair:
        rows = campaign(
            pair, rounds=arguments.rounds, holds_ms=arguments.holds, rate_pps=arguments.rate, kept=arguments.results / "netpass-tcp.json"
        )  # fmt: skip
    show(rows, holds_ms=arguments.holds)


if __name__ == "__main__":
    main()
