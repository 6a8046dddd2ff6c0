"""netpass: campaigns on real guests, by turns in one lab. `python -m bench.netpass [loss] [cap] [purge] [snapshot] [--rounds N]`.

`loss` and `cap` need the reference build; `purge` and `snapshot` compare it with another QEMU (`--stock`). Figures of an emulated CPU (TCG) are not those of
another accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.analysis.statistics import median
from harness.host.deadline import Deadline
from harness.model.plan import MigrationPlan
from harness.model.result import RunResult
from harness.model.scenario import MigrationSection
from harness.plugin.loop import LoopThread
from harness.plugin.pair import GuestPair, Settings
from harness.store.frames import read_frames

HOLD_BACK = {"netpass-hold-back": 500}
LOSS_ARMS: dict[str, dict[str, Any]] = {
    "none precopy": {"mechanism": "none"},
    "none postcopy": {"mechanism": "none", "mode": "postcopy"},
    "tap-handover precopy": {"mechanism": "tap-handover"},
    "netpass precopy": {"mechanism": "netpass"},
    "netpass postcopy": {"mechanism": "netpass", "mode": "postcopy"},
    "netpass precopy, hold-back": {"mechanism": "netpass", "parameters": HOLD_BACK},
    "netpass postcopy, hold-back": {"mechanism": "netpass", "mode": "postcopy", "parameters": HOLD_BACK},
}
BARE_ARMS: dict[str, dict[str, Any]] = {"none, no hold": {"mechanism": "none"}, "netpass, no hold": {"mechanism": "netpass"}}
SHORTEST_HOLD_MS, LONGEST_HOLD_MS = 5.0, 500.0
STOPS_PER_BLOCK = 20
PURGE_RATE_PPS = 2000
CAP_RATE_PPS, CAP_HOLD_MS, CAP_PACKETS = 5000, 1000, 1000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One switchover of a campaign; times in ms. `reported` is what query-migrate said."""

    arm: str
    hold: float
    compute: float
    reported: float
    sent: int
    lost: int
    duplicated: int
    reordered: int
    passed: int
    unexplained: int
    outcome: str


@contextlib.contextmanager
def pair_of(qemu: str, *, results: Path, loop: LoopThread) -> Iterator[GuestPair]:
    """A pair whose guests have the NIC under test alone: QEMU's figures are for all NICs together."""
    settings = Settings(
        qemu=qemu, qemu_destination=qemu, kernel=None, image=None, accel="auto", results=results, name="bench-netpass",
        guest={"management": False},
    )  # fmt: skip
    with GuestPair.open(settings, loop=loop) as pair:
        yield pair


def switch(pair: GuestPair, arm: str, hold_ms: float, *, rate_pps: int = 1000, **plan: Any) -> tuple[Row, RunResult]:
    """One switchover under traffic to the guest."""
    with pair.udp(rate_pps=rate_pps, direction="to-guest") as stream:
        pair.succeed("sleep 0.2")
        record = pair.migrate(hold_ms=hold_ms, **plan)
        pair.succeed("sleep 0.2")
    ledger = stream.ledger
    assert record.stop_ns is not None
    assert record.resume_ns is not None
    reported = stream.result.downtime.reported_ms.value
    row = Row(
        arm=arm, hold=hold_ms, compute=(record.resume_ns - record.stop_ns) / 1e6, reported=float("nan") if reported is None else reported,
        sent=ledger.sent, lost=ledger.lost, duplicated=ledger.duplicated, reordered=ledger.reordered, passed=ledger.passed,
        unexplained=ledger.ledger.unexplained, outcome=str(stream.result.outcome),
    )  # fmt: skip
    return row, stream.result


def loss(rounds: int, *, results: Path, loop: LoopThread) -> None:
    """What each way loses, doubles and reorders over holds of 5 to 500 ms; what netpass costs; what the downtimes say."""
    rows: list[Row] = []
    with pair_of("reference", results=results, loop=loop) as pair:
        switch(pair, "first", 0.0, mechanism="none")  # the first migration of a process is slower than later ones
        for turn, hold_ms in enumerate(np.geomspace(SHORTEST_HOLD_MS, LONGEST_HOLD_MS, rounds)):
            todo = [(arm, float(hold_ms), plan) for arm, plan in LOSS_ARMS.items()] + [(arm, 0.0, plan) for arm, plan in BARE_ARMS.items()]
            for arm, hold, plan in todo if turn % 2 == 0 else reversed(todo):
                rows.append(switch(pair, arm, round(hold, 1), **plan)[0])
            print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
    (results / "loss.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    print(f"\n1000 packets/s to the guest, holds of {SHORTEST_HOLD_MS:g} to {LONGEST_HOLD_MS:g} ms, {rounds} rounds by turns\n")
    print("| arm | runs | exactly once | lost | doubled | reordered | unexplained | passed | lost - 1000/s x STOP..RESUME | reported - STOP..RESUME, ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm in (*LOSS_ARMS, *BARE_ARMS):
        mine = [row for row in rows if row.arm == arm]
        once = sum(row.lost == row.duplicated == row.unexplained == 0 for row in mine)
        total = {name: sum(getattr(row, name) for row in mine) for name in ("lost", "duplicated", "reordered", "unexplained", "passed")}
        excess = [row.lost - row.compute for row in mine]
        apart = [row.reported - row.compute for row in mine]
        print(
            f"| {arm} | {len(mine)} | {once} | {total['lost']} | {total['duplicated']} | {total['reordered']} | {total['unexplained']} | {total['passed']} |"
            f" {min(excess):.1f} .. {max(excess):.1f} | {min(apart):.2f} .. {max(apart):.2f}, within 2 ms: {sum(abs(a) <= 2 for a in apart)} |"
        )
    bare = [[row.compute for row in rows if row.arm == arm] for arm in BARE_ARMS]
    for arm, values in zip(BARE_ARMS, bare, strict=True):
        print(f"\n{arm}: STOP..RESUME {_shown(values)}")
    print(f"\nadded by netpass, round by round: {_shown([b - a for a, b in zip(*bare, strict=True)])}")


def _shown(values: list[float]) -> str:
    found = median(values)
    interval = "too few for an interval" if found.low is None else f"interval {found.low:.2f} .. {found.high:.2f}"
    return f"median {found.median:.2f} ms, {interval} (n = {len(values)})"


def cap(rounds: int, *, results: Path, loop: LoopThread) -> None:
    """Beyond the limit exactly the rest is dropped, and QEMU's count is the ledger's."""
    print(f"\n{CAP_RATE_PPS} packets/s, a hold of {CAP_HOLD_MS} ms, netpass-max-packets = {CAP_PACKETS}\n")
    print("| round | undelivered at the source | captured | dropped | left in the TAP | rest | passed | probes dropped | lost by the ledger | doubled | unexplained |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with pair_of("reference", results=results, loop=loop) as pair:
        for turn in range(rounds):
            limit = {"netpass-max-packets": CAP_PACKETS}
            row, result = switch(pair, "cap", CAP_HOLD_MS, rate_pps=CAP_RATE_PPS, mechanism="netpass", parameters=limit)
            capture = pair.run_directory / "capture"
            frames, left = read_frames(capture / "undelivered.pcapng"), read_frames(capture / "stranded.pcapng")
            captured, dropped, passed = (int(result.figures[f"netpass-source-{name}"]) for name in ("captured", "dropped", "passed"))
            # Dropped are those that follow the first so many, without a gap.
            probes = int(np.count_nonzero(frames.probe[CAP_PACKETS : CAP_PACKETS + dropped]))
            print(
                f"| {turn + 1} | {len(frames)} | {captured} | {dropped} | {len(left)} | {len(frames) - captured - dropped - len(left)} |"
                f" {passed} | {probes} | {row.lost} | {row.duplicated} | {row.unexplained} |", flush=True,
            )


def purge(cancels: int, *, results: Path, loop: LoopThread, stock: str) -> None:
    """Packets that cancelled switchovers cost, with the series net-stop-purge (in the reference) and without (`stock`)."""
    section = msgspec.convert({"hold_ms": 5, "cancel_at_switchover": True}, MigrationSection)
    _freed("cancelled switchovers", section, number=cancels, results=results, loop=loop, stock=stock)


def snapshot(snapshots: int, *, results: Path, loop: LoopThread, stock: str) -> None:
    """As `purge`, for background snapshots: each stops the running guest for a moment, by the same path."""
    section = msgspec.convert({"mode": "background-snapshot", "transport": "file"}, MigrationSection)
    _freed("background snapshots", section, number=snapshots, results=results, loop=loop, stock=stock)


def _freed(what: str, section: MigrationSection, *, number: int, results: Path, loop: LoopThread, stock: str) -> None:
    """Stops after which the source's guest runs on: what they cost with each of the two QEMUs, by turns."""
    plan = MigrationPlan.from_section(section, mechanism="none")
    counts: dict[str, dict[str, int]] = {}
    with pair_of(stock, results=results, loop=loop) as old, pair_of("reference", results=results, loop=loop) as mended:
        versions = {stock: old.features[0].version, "reference": mended.features[0].version}
        for start in range(0, number, STOPS_PER_BLOCK):
            for name, pair in ((stock, old), ("reference", mended)):
                now = min(STOPS_PER_BLOCK, number - start)
                with pair.udp(rate_pps=PURGE_RATE_PPS, direction="to-guest") as stream:
                    for _ in range(now):
                        pair.do(pair.lab.migrate(plan, deadline=Deadline(60.0)))
                    pair.succeed("sleep 0.2")
                classes, total = stream.ledger.ledger, counts.setdefault(name, {})
                seen = {
                    "stops": now, "sent": stream.ledger.sent, "lost": stream.ledger.lost, "doubled": stream.ledger.duplicated,
                    "dropped by host or guest": classes.dropped_by_host + classes.dropped_by_guest,
                }
                for key, value in seen.items():
                    total[key] = total.get(key, 0) + value
            print(f"  {start + now} of {number}: {counts}", file=sys.stderr)
    print(f"\n{number} {what} at {PURGE_RATE_PPS} packets/s; what is lost and was dropped by nobody else was freed by the stop path\n")
    print("| QEMU | version | stops | sent | lost | dropped by host or guest | freed | doubled |")
    print("|---|---|---|---|---|---|---|---|")
    for name, total in counts.items():
        freed = total["lost"] - total["dropped by host or guest"]
        print(
            f"| {name} | {versions[name]} | {total['stops']} | {total['sent']} | {total['lost']} | {total['dropped by host or guest']} | {freed} |"
            f" {total['doubled']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.netpass", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="loss|cap|purge|snapshot", default=["loss", "cap", "purge", "snapshot"])
    parser.add_argument("--rounds", type=int, default=20, help="of loss; cap takes a quarter, purge ten stops for each, snapshot two")
    parser.add_argument("--stock", default="system", metavar="QEMU", help="beside which purge and snapshot set the reference (default: the host's own)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where run directories go")
    arguments = parser.parse_args()
    common: dict[str, Any] = {"results": arguments.results}
    versus = common | {"stock": arguments.stock}
    known: dict[str, tuple[Callable[..., None], int, dict[str, Any]]] = {
        "loss": (loss, arguments.rounds, common), "cap": (cap, max(1, arguments.rounds // 4), common),
        "purge": (purge, 10 * arguments.rounds, versus), "snapshot": (snapshot, 2 * arguments.rounds, versus),
    }  # fmt: skip
    if unknown := [name for name in arguments.campaigns if name not in known]:
        parser.error(f"unknown campaign {unknown[0]}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    with LoopThread() as loop:
        for name in arguments.campaigns:
            work, rounds, settings = known[name]
            work(rounds, loop=loop, **settings)


if __name__ == "__main__":
    main()
