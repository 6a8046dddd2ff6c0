"""From a run directory to its result: pure, offline, repeatable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from harness.analysis.announce import find_announcements, first_frame_ns
from harness.analysis.columns import Capture, read_capture
from harness.analysis.evidence import Captures, Death, DropCounter, Evidence, Fate, Place, StreamRecords
from harness.analysis.ledger import Ledger, account
from harness.analysis.outages import Delays, Outage, delays, find_outages, longest_gap_ns, network_downtime
from harness.analysis.phases import Milestones, Phase, phases, sent_by_phase
from harness.analysis.records import RecordFile, RecordKind, read_records
from harness.analysis.sightings import NEVER, StopWindow
from harness.model.addresses import MOBILE
from harness.model.defects import lost_writes_note
from harness.model.expect import check_expectations
from harness.model.facts import MigrationFacts, RunFacts
from harness.model.result import (
    Announcement,
    CaptureResult,
    Downtimes,
    Figure,
    Latency,
    LedgerClasses,
    MigrationResult,
    OutageResult,
    Outcome,
    PhaseResult,
    RunResult,
    StreamResult,
    Verdict,
    WitnessResult,
)
from harness.model.scenario import Direction, MigrationMode
from harness.model.streams import UdpStream
from harness.model.units import NS_PER_MS, ms
from harness.store.costs import switchover_costs
from harness.store.frames import probes_of, read_frames
from harness.store.measure import measure
from harness.store.rundir import RunDirectory
from harness.store.swallowed import Swallowed, find_swallowed
from harness.store.tcp import find_tcp
from harness.store.witnesses import find_witnesses

__all__ = ["Analysis", "analyze", "analyze_run"]

STOP_RESOLUTION_MS = 0.25
"""The run state changes at most this long before the STOP event (the vCPUs are paused in between)."""
_LATE_MARGIN_NS = 1_000_000


@dataclass(frozen=True)
class Analysis:
    """A result with the ledgers it came from, for those who ask about single packets."""

    result: RunResult
    ledgers: dict[str, Ledger]
    phases: tuple[Phase, ...]


def analyze(run: RunDirectory) -> RunResult:
    """The result of a run, from its directory alone."""
    return analyze_run(run).result


def analyze_run(run: RunDirectory) -> Analysis:
    """As `analyze`, with the ledgers."""
    facts = run.facts()
    captures = {name: read_capture(run.path / point.file) for name, point in facts.captures.items()}
    windows = tuple(
        StopWindow(stop_ns=m.stop_ns, resume_ns=m.resume_ns) for m in facts.migrations if m.stop_ns and m.resume_ns
    )
    evidence, swallowed = _evidence(run, facts, captures, windows)
    # Only where the guest runs nowhere at the end, or the run failed, may records be missing; elsewhere the run is damaged.
    excused = facts.failure is not None or any(not migration.survivor for migration in facts.migrations)
    lost = [stream for stream in facts.streams if excused and not (run.path / "traffic" / f"{stream.id}.sent.rec").exists()]
    kept = [stream for stream in facts.streams if stream not in lost]
    streams = [_stream_records(run, stream, excused=excused) for stream in kept]
    # A destination that took over the source's TAP has none of its own.
    announced_ns = _announced_ns(facts, captures.get("destination") or captures.get("source"))
    found = phases(_milestones(facts, announced_ns))
    ledgers = account(streams, evidence=evidence, late_ns=_late_ns(streams, evidence, facts))
    drafts = tuple(_stream_result(stream, ledgers[stream.name], found, windows) for stream in kept)
    measures = measure(
        facts, ledgers=ledgers, drafts=drafts, events=run.events(), windows=windows, destination=captures.get("destination")
    )
    results = measures.streams
    tcp = find_tcp(run, facts, captures.get("peer"), windows)
    witnesses = find_witnesses(run, facts, captures.get("peer"), tcp.connections)
    problems = (*(f"{stream.name}: the sender's records are missing" for stream in lost), *_problems(facts, ledgers))
    outcome = _outcome(facts, problems)
    forgotten = lost_writes_note(facts, unexplained=sum(ledger.counts.unexplained for ledger in ledgers.values()))
    costs = switchover_costs(run, facts)
    draft = RunResult(
        run_id=facts.run_id, scenario=facts.scenario, outcome=outcome, verdict=Verdict.INCONCLUSIVE,
        accelerator=facts.accelerator, host=facts.host, qemu=facts.qemu, guest=facts.guest,
        mechanism=facts.scenario.mechanism, downtime=_downtimes(facts, results, measures.downtimes),
        phases=tuple(PhaseResult(name=p.name, start_ns=p.start_ns, end_ns=p.end_ns) for p in found),
        streams=results, tcp=tcp.results, tcp_counters=tcp.counters, witnesses=witnesses, migration=_migration(facts), devices=costs.devices,
        switchover_ack=costs.switchover_ack, announcements=_announcements(captures), clock=measures.clock_result(),
        marks=measures.mark_results(), calibration=facts.calibration,
        captures={n: CaptureResult(packets=c.packets, dropped=c.dropped) for n, c in facts.captures.items()},
        figures={**facts.figures, **_mechanism_figures(facts), **swallowed, **costs.figures},
        notes=(*facts.notes, *costs.notes, *problems, *tcp.notes, *_witness_notes(witnesses), *filter(None, [forgotten])),
    )  # fmt: skip
    verdict, failed = check_expectations(draft)
    return Analysis(msgspec.structs.replace(draft, verdict=verdict, expectations=failed), ledgers, found)


def _evidence(
    run: RunDirectory, facts: RunFacts, captures: dict[str, Capture], windows: tuple[StopWindow, ...]
) -> tuple[Evidence, dict[str, float]]:
    """What was seen of lost packets besides records and captures, and its figures."""
    stranded: set[tuple[int, int]] = set()
    passed: set[tuple[int, int]] = set()
    swallowed = [found for migration in facts.migrations if (found := find_swallowed(run, facts, migration)) is not None]
    for migration in facts.migrations:
        if migration.stranded_file is not None:
            stranded |= probes_of(read_frames(run.path / migration.stranded_file), nonce=facts.nonce)
        if migration.abandoned_file is not None:
            stranded |= probes_of(read_frames(run.path / migration.abandoned_file), nonce=facts.nonce)
        if migration.passed_file is not None:
            passed |= probes_of(read_frames(run.path / migration.passed_file), nonce=facts.nonce)
    counters = tuple(
        DropCounter(
            name=c.name, place=Place(c.place), count=c.count, direction=Direction(c.direction),
            fate=None if c.fate is None else Fate[c.fate.upper()],
        )
        for c in facts.counters
        if c.count > 0
    )  # fmt: skip
    evidence = Evidence(
        captures=Captures(
            peer=captures.get("peer"), source=captures.get("source"), destination=captures.get("destination")
        ),
        stranded=frozenset(stranded), passed=frozenset(passed), counters=counters, windows=windows,
        swallowed=frozenset().union(*(each.every for each in swallowed)),
        parked=frozenset().union(*(each.parked for each in swallowed)),
        purged=frozenset().union(*(each.purged for each in swallowed)),
        deaths=tuple(
            Death(place=Place(f"{side}-tap"), time_ns=t_ns) for m in facts.migrations for side, t_ns in m.deaths.items()
        ),
    )  # fmt: skip
    return evidence, _sum(swallowed)


def _sum(swallowed: Sequence[Swallowed]) -> dict[str, float]:
    """The figures of all switchovers together."""
    total: dict[str, float] = {}
    for each in swallowed:
        for name, count in each.figures.items():
            total[name] = total.get(name, 0.0) + count
    return total


def _stream_records(run: RunDirectory, stream: UdpStream, *, excused: bool) -> StreamRecords:
    folder = run.path / "traffic"

    def there(kind: str, expected: RecordKind) -> RecordFile | None:
        path: Path = folder / f"{stream.id}.{kind}.rec"
        return read_records(path, kind=expected) if path.exists() or not excused else None

    sent = read_records(folder / f"{stream.id}.sent.rec", kind=RecordKind.SENT)
    received = there("received", RecordKind.RECEIVED)
    if stream.direction is Direction.ECHO:
        replies = there("replies", RecordKind.REPLIES)
        return StreamRecords(
            name=stream.name, direction=stream.direction, sent=sent, received=replies, responder=received
        )
    return StreamRecords(name=stream.name, direction=stream.direction, sent=sent, received=received)


def _late_ns(streams: list[StreamRecords], evidence: Evidence, facts: RunFacts) -> int | None:
    """Later than anything the campaign's null run showed; without one, than anything this run showed before its migration began,
    and a margin."""
    if facts.calibration is not None and facts.calibration.late_ms is not None:
        return round(facts.calibration.late_ms * NS_PER_MS)
    begin = min((m.migrate_ns or m.stop_ns or 0 for m in facts.migrations), default=0)
    if not begin:
        return None
    longest = 0
    for ledger in account(streams, evidence=evidence).values():
        known = (ledger.host_sent_ns != NEVER) & (ledger.delivered_ns != NEVER) & (ledger.delivered_ns < begin)
        if known.any():
            longest = max(longest, int((ledger.delivered_ns[known] - ledger.host_sent_ns[known]).max()))
    return longest + _LATE_MARGIN_NS


def _announced_ns(facts: RunFacts, destination: Capture | None) -> int | None:
    resume = next((m.resume_ns for m in facts.migrations if m.resume_ns), None)
    if destination is None or resume is None:
        return None
    return first_frame_ns(destination.columns, mac=MOBILE.mac, after_ns=resume)


def _milestones(facts: RunFacts, announced_ns: int | None) -> Milestones:
    migration: MigrationFacts | None = facts.migrations[0] if facts.migrations else None
    if migration is None:
        return Milestones(start_ns=facts.traffic_start_ns, end_ns=facts.traffic_end_ns)
    return Milestones(
        start_ns=facts.traffic_start_ns, end_ns=facts.traffic_end_ns, migrate_ns=migration.migrate_ns,
        stop_ns=migration.stop_ns, resume_ns=migration.resume_ns,
        announced_ns=announced_ns if migration.moved and migration.status == "completed" else migration.resume_ns,
        completed_ns=migration.completed_ns, postcopy=migration.mode == MigrationMode.POSTCOPY,
    )


def _stream_result(
    stream: UdpStream, ledger: Ledger, found: tuple[Phase, ...], windows: tuple[StopWindow, ...]
) -> StreamResult:
    counts = ledger.counts
    outages = find_outages(ledger, interval_ns=stream.interval_ns)
    downtime = network_downtime(outages, windows=windows) if windows else None
    gap, spread = longest_gap_ns(ledger), delays(ledger)
    by_phase = sent_by_phase(ledger, found)
    return StreamResult(
        name=stream.name, kind="udp", direction=stream.direction, sent=counts.sent, delivered=counts.delivered,
        lost=counts.sent - counts.delivered, passed=counts.passed, late=counts.late, duplicated=counts.duplicated,
        reordered=counts.reordered, longest_gap_ms=None if gap is None else ms(gap),
        network_downtime_ms=ms(downtime.duration_ns) if downtime else (0.0 if windows else None),
        sent_late_max_ms=_sent_late_ms(ledger, stream),
        outages=tuple(
            OutageResult(
                start_ns=o.start_ns, end_ns=o.end_ns, duration_ms=ms(o.duration_ns), recovered=o.recovered
            )
            for o in outages
        ),
        latency_ms=None if spread is None else _latency(spread),
        latency_by_phase={
            str(phase.name): _latency(mine)
            for phase in found
            if (mine := delays(ledger, begin_ns=phase.start_ns, end_ns=phase.end_ns)) is not None
        },
        ledger=LedgerClasses(
            delivered=counts.delivered, stranded_at_source=counts.stranded_at_source,
            dropped_by_host=counts.dropped_by_host, lost_in_qemu=counts.lost_in_qemu,
            dropped_by_guest=counts.dropped_by_guest, lost_on_return=counts.lost_on_return,
            unexplained=counts.unexplained,
        ),
        lost_by_phase={str(p.phase): p.lost for p in by_phase if p.lost},
        sent_by_phase={str(p.phase): p.sent for p in by_phase if p.sent},
    )  # fmt: skip


def _latency(spread: Delays) -> Latency:
    return Latency(p50=ms(spread.p50_ns), p99=ms(spread.p99_ns), max=ms(spread.max_ns))


def _sent_late_ms(ledger: Ledger, stream: UdpStream) -> float:
    """The longest pause between two sends, beyond the interval: what the sender itself did to the stream."""
    if ledger.sent_ns.size < 2:
        return 0.0
    return ms(max(0, int(np.diff(np.sort(ledger.sent_ns)).max()) - stream.interval_ns))


def _downtimes(facts: RunFacts, streams: tuple[StreamResult, ...], outages: Mapping[str, Outage]) -> Downtimes:
    migration = facts.migrations[0] if facts.migrations else None
    compute = None
    if migration is not None and migration.stop_ns and migration.resume_ns:
        compute = ms(migration.resume_ns - migration.stop_ns)
    reported = migration.info.get("downtime") if migration is not None else None
    first = facts.streams[0] if facts.streams else None
    calibrated = facts.calibration.network_resolution_ms if facts.calibration is not None else 0.0
    outage = outages.get(first.name) if first else None
    kept = ms(outage.interval_ns) if outage is not None else 0.0
    return Downtimes(
        compute_ms=Figure(value=compute, resolution_ms=STOP_RESOLUTION_MS),
        network_ms=Figure(
            value=streams[0].network_downtime_ms if streams else None,
            resolution_ms=max(ms(first.interval_ns) if first else 0.0, kept, calibrated),
        ),
        reported_ms=Figure(value=None if reported is None else float(reported), resolution_ms=1.0),
    )


def _migration(facts: RunFacts) -> MigrationResult | None:
    if not facts.migrations or facts.scenario.migration.mode in (MigrationMode.NONE, MigrationMode.STOP_CONT):
        return None
    migration = facts.migrations[0]
    return MigrationResult(
        mode=migration.mode, capabilities=migration.capabilities, parameters=migration.parameters,
        status=migration.status, total_ms=migration.info.get("total-time"), setup_ms=migration.info.get("setup-time"),
        ram=dict(migration.info.get("ram", {})), statuses=migration.statuses, transport=migration.transport,
        tls=migration.tls, destination=migration.destination_info,
        details={key: value for key, value in migration.info.items() if key not in ("ram", "status")},
    )  # fmt: skip


def _announcements(captures: dict[str, Capture]) -> tuple[Announcement, ...]:
    if "destination" not in captures:
        return ()
    return tuple(
        Announcement(t_ns=a.time_ns, kind=a.kind, interface="destination")
        for a in find_announcements(captures["destination"].columns, mac=MOBILE.mac)
    )


def _mechanism_figures(facts: RunFacts) -> dict[str, float]:
    return {name: value for migration in facts.migrations for name, value in migration.figures.items()}


def _problems(facts: RunFacts, ledgers: dict[str, Ledger]) -> tuple[str, ...]:
    """Why the account may not be trusted; empty in a sound run."""
    found = [f"capture {name}: {c.dropped} packets dropped" for name, c in facts.captures.items() if c.dropped]
    found += [f"capture {name}: not complete" for name, c in facts.captures.items() if c.incomplete]
    for name, ledger in ledgers.items():
        if ledger.counts.unexplained:
            found.append(f"{name}: {ledger.counts.unexplained} packets unexplained")
            found += [m.undelivered_reason for m in facts.migrations if m.undelivered_reason and m.undelivered_reason not in facts.notes]
        found += [f"{name}: {problem}" for problem in ledger.problems]
    return tuple(dict.fromkeys(found))


def _witness_notes(witnesses: tuple[WitnessResult, ...]) -> tuple[str, ...]:
    """What others say differently."""
    return tuple(f"{w.name}: {text}" for w in witnesses for text in (*w.disagreements, *filter(None, [w.error])))


def _outcome(facts: RunFacts, problems: tuple[str, ...]) -> Outcome:
    if facts.failure is not None:
        return Outcome.FAILED
    if problems:
        return Outcome.INCONCLUSIVE
    if any(migration.status == "cancelled" for migration in facts.migrations):
        return Outcome.CANCELLED
    return Outcome.COMPLETED
