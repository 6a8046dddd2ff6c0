"""The nested lab for real: vhost rows under another host kernel, each with its ledger. 75 s for a row under TCG in TCG, three times that on a busy host."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis.ledger import Fate, Ledger
from harness.store.analyze import analyze_run
from harness.store.rundir import RunDirectory

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(4 * 3600)]

ROUNDS = 5
RATE_PPS = 50
EDGE = 3
"""Lost packets at either edge of the stop. QEMU takes vhost away before it says STOP, and gives it back after it said RESUME: some milliseconds, TCG in TCG."""
NONE, HANDOVER, NETPASS = "vhost-none", "vhost-tap-handover", "vhost-netpass"
OF_THE_SYSTEM = ":qemu.source=system,qemu.destination=system"
LINK = f"{NONE}:network.topology=two-hosts,migration.transport=tcp,network.link_delay_ms=20,network.link_loss_percent=0.1"
BAR = (NONE, HANDOVER)
ONCE = (NETPASS, NONE + OF_THE_SYSTEM, HANDOVER + OF_THE_SYSTEM, LINK)
"""What these show is a sentence, a version and a queueing discipline, and no rate of anything: once is enough, and a night is short."""


@dataclass(frozen=True)
class Row:
    """One run inside: its result, and its account of what went to the guest."""

    result: dict[str, Any]
    ledger: Ledger

    @property
    def to_guest(self) -> dict[str, Any]:
        return next(stream for stream in self.result["streams"] if stream["direction"] == "to-guest")

    @property
    def notes(self) -> list[str]:
        return self.result["notes"]

    @property
    def stop_ns(self) -> tuple[int, int]:
        (phase,) = [phase for phase in self.result["phases"] if phase["name"] == "stopped"]
        return phase["start_ns"], phase["end_ns"]


def run_inside(results: Path, arms: tuple[str, ...], *, rounds: int) -> dict[str, list[Row]]:
    """All runs of one first-level guest, by arm."""
    program = [sys.executable, "-c", "from harness.cli import main; main()"]
    words = ["run", *arms, "--host-kernel", "debian", "--repeat", str(rounds), "--results", str(results), "--json"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    console = results / "nested-console.log"
    # failed or inconclusive: each row's own test says which, and why
    assert done.returncode in (0, 1, 5), f"{done.stderr[-1000:]}\n{console.read_text()[-3000:] if console.exists() else ''}"
    found = json.loads(done.stdout)
    assert len(found) == rounds * len(arms), console.read_text()[-3000:]
    rows: dict[str, list[Row]] = {}
    for number, result in enumerate(found):
        analysis = analyze_run(RunDirectory.open(results / result["run_id"]))
        rows.setdefault(arms[number % len(arms)], []).append(Row(result, analysis.ledgers["udp-to-guest"]))
    return rows


@pytest.fixture(scope="module")
def bar(tmp_path_factory):
    return run_inside(tmp_path_factory.mktemp("bar"), BAR, rounds=ROUNDS)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return run_inside(tmp_path_factory.mktemp("once"), ONCE, rounds=1)


def is_whole(row: Row) -> None:
    """The run came to its end, the kernel's own workers carried the frames at both machines, and every packet has a fate."""
    assert row.result["outcome"] == "completed", row.notes
    assert row.result["host"]["kernel"].endswith("-cloud-amd64"), row.result["host"]
    assert [stream["ledger"]["unexplained"] for stream in row.result["streams"]] == [0, 0], row.notes
    assert row.result["figures"]["vhost_woken_m0"] > 0, row.result["figures"]
    assert row.result["figures"]["vhost_woken_m1"] > 0, row.result["figures"]
    assert any(note.startswith("vhost: vhost-") for note in row.notes), row.notes


def loses_rate_times_stop(row: Row) -> None:
    """What was sent between STOP and RESUME is lost, all of it and, but for the edges, only that; and it is as much as the rate says."""
    is_whole(row)
    ledger, (stop_ns, resume_ns) = row.ledger, row.stop_ns
    lost = ledger.fate != Fate.DELIVERED
    stopped = (ledger.host_sent_ns >= stop_ns) & (ledger.host_sent_ns < resume_ns)
    assert lost[stopped].all(), f"{np.count_nonzero(~lost[stopped])} that were sent while nobody ran arrived"
    assert np.diff(np.flatnonzero(lost)).max() == 1, "one outage, and nothing delivered in it"
    outside = lost & ~stopped
    before, after = (np.count_nonzero(outside & where) for where in (ledger.host_sent_ns < stop_ns, ledger.host_sent_ns >= resume_ns))
    assert max(before, after) <= EDGE, (before, after)
    # A train of packets that are sent when they are due has so many in any interval, or one more or less.
    interval_ns = 1_000_000_000 // RATE_PPS
    due_ns = ledger.seq.astype(np.int64) * interval_ns
    late_ns = ledger.sent_ns - due_ns - (ledger.sent_ns - due_ns).min()
    slack = 1 + late_ns[lost].max() / interval_ns
    expected = (resume_ns - stop_ns) / interval_ns
    assert abs(np.count_nonzero(stopped) - expected) <= slack, f"{np.count_nonzero(stopped)} sent in the stop, rate x stop {expected:.1f}, slack {slack:.1f}"
    assert row.to_guest["duplicated"] == 0


def loses_nothing(row: Row) -> None:
    is_whole(row)
    stream = row.to_guest
    assert (stream["lost"], stream["duplicated"], stream["reordered"]) == (0, 0, 0), row.notes
    assert row.result["figures"]["copied"] > 0


@pytest.mark.parametrize("number", range(ROUNDS))
def test_without_a_mechanism_rate_times_stop_is_lost(bar, number):
    loses_rate_times_stop(bar[NONE][number])


@pytest.mark.parametrize("number", range(ROUNDS))
def test_tap_handover_loses_doubles_and_reorders_nothing(bar, number):
    loses_nothing(bar[HANDOVER][number])


def test_netpass_says_that_it_leaves_vhost_out_and_why(once):
    (row,) = once[NETPASS]
    loses_rate_times_stop(row)
    assert row.to_guest["passed"] == 0
    assert any("frames of netdev 'net0-netdev' are not passed: Vhost is not supported" in note for note in row.notes), row.notes


def test_the_system_s_qemu_is_the_same_with_vhost(once):
    for arm, check in ((NONE, loses_rate_times_stop), (HANDOVER, loses_nothing)):
        (row,) = once[arm + OF_THE_SYSTEM]
        assert {side["name"] for side in row.result["qemu"].values()} == {"system"}
        check(row)


def test_netem_shapes_the_migration_link_where_the_host_kernel_has_it(once):
    (row,) = once[LINK]
    loses_rate_times_stop(row)
    assert row.result["figures"]["link_relayed"] == 0
    (note,) = [note for note in row.notes if note.startswith("link: ")]
    for host in ("host-a", "host-b"):
        assert f"netem, 20 ms, 0.1 % loss towards {host}: " in note
    # by the kernel's own count, of some 40000 frames of the guest's memory
    assert row.result["figures"]["link_dropped"] > 0, note
    assert row.result["figures"]["link_frames"] > 1000, note
