"""What a campaign's figures are worth: shown on runs whose truth is known from another source.

A null run (no migration) shows how late and how far apart deliveries are when nothing happens; injected outages
(`stop`, N ms, `cont`) have the STOP and RESUME events as truth; packets dropped on purpose are counted by the filter
that drops them. Nothing smaller than the errors found here is ever claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from harness.analysis.ledger import Ledger
from harness.analysis.outages import delays, longest_gap_ns
from harness.analysis.sightings import StopWindow


class NullRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream showed without a migration."""

    stream: str
    interval_ns: int
    lost: int
    duplicated: int
    reordered: int
    unexplained: int
    max_delay_ns: int | None
    longest_gap_ns: int | None
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Nothing lost, doubled or reordered, and nothing known against the captures."""
        return not (self.lost or self.duplicated or self.reordered or self.unexplained or self.problems)

    @property
    def tolerance_ns(self) -> int:
        """What `find_outages` must tolerate: the longest gap of this run beyond its interval, at least one interval."""
        return max((self.longest_gap_ns or 0) - self.interval_ns, self.interval_ns)


class OutageTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One injected outage; `measured_ns` is `None` where none was found."""

    truth_ns: int
    measured_ns: int | None

    @property
    def error_ns(self) -> int:
        """Measured less true; an outage that was not found counts as 0 long."""
        return (self.measured_ns or 0) - self.truth_ns


class DropTrial(msgspec.Struct, frozen=True, kw_only=True):
    """Packets dropped on purpose, and what the ledger put into `dropped_by_host`."""

    truth: int
    counted: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of all trials, and the resolution that follows from them."""

    outages: int
    bias_ns: int | None
    """Median error."""
    worst_ns: int | None
    """Largest error, regardless of its sign."""
    resolution_ns: int
    """Differences below are not claimed: the worst error, at least one sending interval."""
    late_ns: int | None
    """The threshold for `late`: the longest delay of the null runs and one sending interval."""
    tolerance_ns: int
    drops_exact: bool
    """Every drop on purpose was counted exactly; true also without such a trial."""
    sound: bool
    """All null runs were sound and all drops exact."""


def null_run(ledger: Ledger, *, interval_ns: int) -> NullRun:
    """The figures of one stream of a run in which nothing was done."""
    found = delays(ledger)
    return NullRun(
        stream=ledger.name,
        interval_ns=interval_ns,
        lost=ledger.counts.lost,
        duplicated=ledger.counts.duplicated,
        reordered=ledger.counts.reordered,
        unexplained=ledger.counts.unexplained,
        max_delay_ns=found.max_ns if found else None,
        longest_gap_ns=longest_gap_ns(ledger),
        problems=ledger.problems,
    )


def outage_trial(*, window: StopWindow, measured_ns: int | None) -> OutageTrial:
    """A trial whose truth is the STOP and RESUME events."""
    return OutageTrial(truth_ns=window.resume_ns - window.stop_ns, measured_ns=measured_ns)


def calibrate(
    *, null_runs: Sequence[NullRun], outages: Sequence[OutageTrial] = (), drops: Sequence[DropTrial] = ()
) -> Calibration:
    """Put the trials together; raises `ValueError` without a null run."""
    if not null_runs:
        raise ValueError("a calibration needs at least one null run")
    interval_ns = max(run.interval_ns for run in null_runs)
    errors = np.array([trial.error_ns for trial in outages], dtype=np.int64)
    worst = int(np.abs(errors).max()) if errors.size else None
    delays_ns = [run.max_delay_ns for run in null_runs if run.max_delay_ns is not None]
    exact = all(trial.truth == trial.counted for trial in drops)
    return Calibration(
        outages=errors.size,
        bias_ns=int(np.median(errors)) if errors.size else None,
        worst_ns=worst,
        resolution_ns=max(worst or 0, interval_ns),
        late_ns=max(delays_ns) + interval_ns if delays_ns else None,
        tolerance_ns=max(run.tolerance_ns for run in null_runs),
        drops_exact=exact,
        sound=exact and all(run.sound for run in null_runs),
    )
