"""Every way to migrate, each with the account of every packet. The trials are those of the table in `harness.migrate.trials`."""

from __future__ import annotations

import pytest

from harness.migrate.trials import TRIALS, Trial

RATE_PPS = 500
SMOKE = (
    "tcp", "tcp6", "fd", "exec", "file", "multifd", "multifd-zstd", "tls-authz", "postcopy-preempt", "postcopy-release-ram", "x-ignore-shared",
    "background-snapshot", "dirty-bitmaps",
)  # fmt: skip
"""One of each kind; the others are for the nightly run."""


def marked(trial: Trial):
    marks = [pytest.mark.switchover(requires=list(trial.requires), **trial.guest, **trial.network)]
    if trial.name in SMOKE:
        return pytest.param(trial, id=f"smoke-{trial.name}", marks=marks)
    return pytest.param(trial, id=trial.name, marks=[*marks, pytest.mark.nightly])


@pytest.mark.parametrize("trial", [marked(trial) for trial in TRIALS])
def test_every_packet_is_accounted_for(guest_pair, udp, trial):
    with udp(rate_pps=RATE_PPS, direction="to-guest") as down, udp(rate_pps=RATE_PPS, direction="from-guest") as up:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism=trial.mechanism, **trial.migration)
        guest_pair.succeed("sleep 0.3")
    assert record.status == "completed"
    assert record.moved is not trial.stays
    for stream in (down, up):
        assert stream.ledger.ledger.unexplained == 0, stream.result.notes
        assert stream.ledger.duplicated == 0
    assert up.ledger.lost == 0
