"""TCP bulk through switchovers: who loses a segment, and who waits for a retransmission timeout (RTO). `python -m bench.netpass_tcp`.

All arms by turns in one lab of the reference build, for each hold: bulk data to the guest (with `--rate 0` as fast as it goes) and from it.
An RTO is counted twice: in the capture at the peer's port, and by the sender's kernel (TCPTimeouts). Linux's shortest RTO is 200 ms, and the
peer's clock goes on while no machine runs, so a stop longer than that must time out whatever the mechanism does: each run's own stop and
longest stall stand beside its count.
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
SHORTEST_RTO_MS = 200.0
UP_PPS, DOWN_PPS = 200, 500
BEFORE_S, AFTER_S = 0.5, 1.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One switchover. Times in ms; the stall is that of the data to the guest. `timeouts`: the peer's kernel, then the guest's."""

    arm: str
    hold: float
    stop: float
    stall: float
    rtos: int
    timeouts: tuple[int, int]
    probes: int
    fast: int
    again: int
    lost: int
    whole: bool
    run: str

    @property
    def timed_out(self) -> bool:
        return bool(self.rtos or any(self.timeouts))


def switch(pair: GuestPair, arm: str, hold_ms: float, *, rate_pps: int, **plan: Any) -> Row:
    """One switchover under bulk data both ways."""
    pace = {"rate_pps": rate_pps} if rate_pps else {}
    with pair.udp(rate_pps=200) as datagrams, pair.tcp(**pace) as down, pair.tcp(rate_pps=UP_PPS, direction="from-guest") as up:
        pair.succeed(f"sleep {BEFORE_S}")
        record = pair.migrate(hold_ms=hold_ms, **plan)
        pair.succeed(f"sleep {AFTER_S}")
    assert record.stop_ns is not None
    assert record.resume_ns is not None
    ends = [down.connection, up.connection]
    counters = down.result.tcp_counters
    stall = down.connection.longest_stall_ms.value
    return Row(
        arm=arm, hold=hold_ms, stop=(record.resume_ns - record.stop_ns) / 1e6, stall=float("nan") if stall is None else stall,
        rtos=sum(end.rto_events for end in ends), timeouts=(counters["peer"].get("TCPTimeouts", 0), counters["mobile"].get("TCPTimeouts", 0)),
        probes=sum(end.tail_loss_probes for end in ends), fast=sum(end.fast_retransmits for end in ends),
        again=sum(end.retransmitted_segments for end in ends), lost=datagrams.ledger.lost,
        whole=all(end.survived and end.bytes == end.confirmed_bytes for end in ends), run=pair.run_directory.name,
    )  # fmt: skip


def campaign(pair: GuestPair, *, rounds: int, holds_ms: Sequence[float], rate_pps: int) -> list[Row]:
    rows: list[Row] = []
    switch(pair, "first", 0.0, rate_pps=rate_pps, mechanism="none")  # the first migration of a process is slower than later ones
    for turn in range(rounds):
        todo = [(arm, hold, plan) for hold in holds_ms for arm, plan in ARMS.items()]
        for arm, hold, plan in todo if turn % 2 == 0 else reversed(todo):
            rows.append(switch(pair, arm, hold, rate_pps=rate_pps, **plan))
        print(f"  round {turn + 1} of {rounds}: {sum(row.timed_out for row in rows)} of {len(rows)} runs with an RTO", file=sys.stderr, flush=True)
    return rows


def show(rows: Sequence[Row], *, holds_ms: Sequence[float]) -> None:
    print("\nTCP bulk both ways; RTO: runs with one, by the capture or by a kernel; counts are sums over the runs\n")
    print(
        "| hold, ms | arm | runs | all bytes | RTO | capture, peer, guest | loss probes | fast | sent again | UDP lost |"
        " STOP..RESUME, ms | stall, ms | stall without RTO | with RTO |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for hold in holds_ms:
        for arm in ARMS:
            mine = [row for row in rows if (row.arm, row.hold) == (arm, hold)]
            peers, guests = (sum(row.timeouts[end] for row in mine) for end in (0, 1))
            print(
                f"| {hold:g} | {arm} | {len(mine)} | {sum(row.whole for row in mine)} | {sum(row.timed_out for row in mine)} |"
                f" {sum(row.rtos for row in mine)}, {peers}, {guests} | {sum(row.probes for row in mine)} | {sum(row.fast for row in mine)} |"
                f" {sum(row.again for row in mine)} | {sum(row.lost for row in mine)} | {_spread([row.stop for row in mine])} |"
                f" {_spread([row.stall for row in mine])} | {_spread([row.stall for row in mine if not row.timed_out])} |"
                f" {_spread([row.stall for row in mine if row.timed_out])} |"
            )
    early = [row for row in rows if row.timed_out and row.stall < SHORTEST_RTO_MS]
    print(f"\nRuns with an RTO and a stall below {SHORTEST_RTO_MS:g} ms: {[(row.arm, row.hold, row.stop, row.stall, row.run) for row in early]}")


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
        rows = campaign(pair, rounds=arguments.rounds, holds_ms=arguments.holds, rate_pps=arguments.rate)
    (arguments.results / "netpass-tcp.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    show(rows, holds_ms=arguments.holds)


if __name__ == "__main__":
    main()
