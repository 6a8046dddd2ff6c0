"""The times of a run's streams: network downtimes by the guest's clock, their parts, and the published estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from harness.analysis.announce import first_frame_ns
from harness.analysis.clockmap import ClockMap, fit_clock, with_clock
from harness.analysis.columns import Capture
from harness.analysis.estimators import Exchanges, estimate
from harness.analysis.ledger import Ledger
from harness.analysis.outages import Outage, find_outages, network_downtime
from harness.analysis.sightings import NEVER, StopWindow
from harness.analysis.split import Mark, marks_of, split_downtime
from harness.model.addresses import MOBILE
from harness.model.events import Event
from harness.model.facts import RunFacts
from harness.model.result import ClockResult, ClockStepResult, MarkResult, StreamResult
from harness.model.scenario import MigrationMode
from harness.model.units import ms

__all__ = ["Measures", "measure"]


@dataclass(frozen=True)
class Measures:
    """What `measure` found. `downtimes` are those of the streams that had one."""

    clock: ClockMap | None
    marks: tuple[Mark, ...]
    downtimes: dict[str, Outage]
    streams: tuple[StreamResult, ...]

    def clock_result(self) -> ClockResult | None:
        if self.clock is None:
            return None
        steps = tuple(
            ClockStepResult(stop_ns=step.stop_ns, stopped_ms=ms(step.stopped_ns), step_ms=ms(step.step_ns))
            for step in self.clock.steps
        )
        return ClockResult(drift_ppm=round(self.clock.drift_ppm, 3), steps=steps)

    def mark_results(self) -> tuple[MarkResult, ...]:
        return tuple(MarkResult(name=mark.name.value, t_ns=mark.time_ns, evidence=mark.evidence) for mark in self.marks)


def measure(
    facts: RunFacts, *, ledgers: Mapping[str, Ledger], drafts: Sequence[StreamResult], events: Sequence[Event],
    windows: Sequence[StopWindow], destination: Capture | None,
) -> Measures:
    """Fill in the times of the streams that `drafts` hold the counts of."""
    clock = fit_clock(list(ledgers.values()), windows=windows)
    marks = _marks(facts, events, destination)
    downtimes: dict[str, Outage] = {}
    finished = []
    intervals = {stream.name: stream.interval_ns for stream in facts.streams}
    for draft in drafts:
        if draft.name not in ledgers:
            finished.append(draft)
            continue
        ledger, interval_ns = ledgers[draft.name], intervals[draft.name]
        refined = ledger if clock is None else with_clock(ledger, clock)
        outage = network_downtime(find_outages(refined, interval_ns=interval_ns), windows=windows) if windows else None
        parts: dict[str, float] = {}
        if outage is not None:
            downtimes[draft.name] = outage
            parts = {part.value: ms(length) for part, length in split_downtime(outage, marks=marks).items()}
        finished.append(
            msgspec.structs.replace(
                draft, earliest_downtime_ms=draft.network_downtime_ms, network_split=parts,
                network_downtime_ms=ms(outage.duration_ns) if outage else draft.network_downtime_ms and 0.0,
                estimates=_estimates(refined, interval_ns),
            )
        )  # fmt: skip
    return Measures(clock=clock, marks=marks, downtimes=downtimes, streams=tuple(finished))


def _marks(facts: RunFacts, events: Sequence[Event], destination: Capture | None) -> tuple[Mark, ...]:
    migration = facts.migrations[0] if facts.migrations else None
    if migration is None or not migration.stop_ns or not migration.resume_ns:
        return ()
    moved = migration.status == "completed" and migration.mode != MigrationMode.STOP_CONT and destination is not None
    port = facts.captures["destination"].interface if moved else None
    first = None
    if moved and destination is not None:
        first = first_frame_ns(destination.columns, mac=MOBILE.mac, after_ns=migration.resume_ns)
    return marks_of(
        events, stop_ns=migration.stop_ns, resume_ns=migration.resume_ns, mac=MOBILE.mac, destination=port, first_frame_ns=first
    )


def _estimates(ledger: Ledger, interval_ns: int) -> dict[str, float | None]:
    """Each formula on this stream's (sent, delivered) times; of packets that no capture saw nothing is known."""
    seen = ledger.host_sent_ns != NEVER
    if not seen.any():
        return {}
    order = np.argsort(ledger.host_sent_ns[seen], kind="stable")
    series = Exchanges(sent_ns=ledger.host_sent_ns[seen][order], received_ns=ledger.delivered_ns[seen][order])
    found = estimate(series, interval_ns=interval_ns).estimates
    return {each.name: None if each.downtime_ns is None else ms(each.downtime_ns) for each in found}
