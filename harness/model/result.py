"""result.json: what a run came to. The JSON Schema that `switchover schema` prints derives from these types."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

from harness.model.calibration import CalibrationResult
from harness.model.costs import AckResult, DevicesResult
from harness.model.scenario import Scenario

__all__ = [
    "SCHEMA_VERSION",
    "CaptureResult",
    "ClockResult",
    "ClockStepResult",
    "Downtimes",
    "Figure",
    "GuestIdentity",
    "Latency",
    "LedgerClasses",
    "MarkResult",
    "MigrationResult",
    "OutageResult",
    "Outcome",
    "PhaseResult",
    "QemuIdentity",
    "QemuPair",
    "RunResult",
    "StreamResult",
    "TcpEnd",
    "TcpResult",
    "Verdict",
    "WitnessResult",
]

SCHEMA_VERSION = 1



class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCONCLUSIVE = "inconclusive"


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    IMPROVED = "improved"
    REGRESSED = "regressed"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"
    NO_BASELINE = "no-baseline"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Figure(_Record, frozen=True, kw_only=True):
    """A time in milliseconds and the smallest difference it can show. `value` is None when it could not be measured."""

    value: float | None
    resolution_ms: float


class Downtimes(_Record, frozen=True, kw_only=True):
    """Never one figure: what the machines lost, what the network lost, and what QEMU says."""

    compute_ms: Figure
    network_ms: Figure
    reported_ms: Figure


class LedgerClasses(_Record, frozen=True, kw_only=True):
    """Every sent packet in exactly one class; the sum is `sent`."""

    delivered: int
    stranded_at_source: int
    dropped_by_host: int
    lost_in_qemu: int
    dropped_by_guest: int
    lost_on_return: int
    unexplained: int


class Latency(_Record, frozen=True, kw_only=True):
    p50: float
    p99: float
    max: float


class OutageResult(_Record, frozen=True, kw_only=True):
    start_ns: int
    end_ns: int
    duration_ms: float
    recovered: bool


class PhaseResult(_Record, frozen=True, kw_only=True):
    name: str
    start_ns: int
    end_ns: int


class StreamResult(_Record, frozen=True, kw_only=True):
    """One stream in one direction. `lost` = sent - delivered; `passed` counts the delivered ones that a mechanism carried over.

    `network_downtime_ms` of a stream to the guest ends when the guest received, by its own clock mapped to the host's;
    `earliest_downtime_ms` when it could have, by captures and the RESUME event alone. `longest_gap_ms`, `outages` and `latency_ms` are
    by captures. `network_split`: the parts of the network downtime in milliseconds, whose sum is the downtime and one
    sending interval. `estimates`: what each published formula makes of this stream, in milliseconds. `sent_by_phase`,
    `lost_by_phase` and `latency_by_phase`: packets by the phase in which they were sent, phases without any left out.
    """

    name: str
    kind: str
    direction: str
    sent: int
    delivered: int
    lost: int
    passed: int
    late: int
    duplicated: int
    reordered: int
    longest_gap_ms: float | None
    network_downtime_ms: float | None
    sent_late_max_ms: float
    outages: tuple[OutageResult, ...]
    latency_ms: Latency | None
    ledger: LedgerClasses
    lost_by_phase: dict[str, int]
    earliest_downtime_ms: float | None = None
    network_split: dict[str, float] = {}
    sent_by_phase: dict[str, int] = {}
    latency_by_phase: dict[str, Latency] = {}
    estimates: dict[str, float | None] = {}


class ClockStepResult(_Record, frozen=True, kw_only=True):
    """What the guest's clock did across a stop, against the host's: -`stopped_ms` where it stood still, 0 where it went on."""

    stop_ns: int
    stopped_ms: float
    step_ms: float


class ClockResult(_Record, frozen=True, kw_only=True):
    """The map of the mobile guest's clock to the host's."""

    drift_ppm: float
    steps: tuple[ClockStepResult, ...]


class MarkResult(_Record, frozen=True, kw_only=True):
    """One boundary within a switchover, and what told it."""

    name: str
    t_ns: int
    evidence: str


class TcpEnd(_Record, frozen=True, kw_only=True):
    """What the kernel at one end of a connection says of it at its end (TCP_INFO, under its names)."""

    app_bytes: int
    bytes_acked: int
    bytes_received: int
    bytes_retrans: int
    total_retrans: int
    dsack_dups: int
    rto_us_max: int


class TcpResult(_Record, frozen=True, kw_only=True):
    """One TCP connection, as seen at the peer's port; counts are those of both directions.

    `longest_stall_ms`: the longest that nothing more of the client's data was acknowledged, less the sending interval (None for an idle
    connection); `silent_ms`: the longest that the moving guest sent nothing in it across the stop, less the usual time between two of its
    segments, whose 99th percentile is the resolution; `clock_lost_ms`: how long its clock stood still there, by its TCP timestamps (None
    where it sends too seldom). `longest_unacknowledged_ms`: the longest that any data waited. `recovery_ms`: from RESUME until 90 % of the throughput
    before STOP is back (bulk). `survived`: nobody reset it, and both ends closed it in order at the end; `error` says why not.
    `bytes`: handed over by the client; `confirmed_bytes`: what the server says it got (bulk). `requests` and `answered` are for request streams.
    """

    name: str
    kind: str
    direction: str
    client: str
    server: str
    survived: bool
    error: str = ""
    resets: tuple[str, ...] = ()
    bytes: int
    confirmed_bytes: int | None = None
    requests: int | None = None
    answered: int | None = None
    latency_ms: Latency | None = None
    longest_stall_ms: Figure
    silent_ms: Figure = Figure(value=None, resolution_ms=0.0)
    clock_lost_ms: Figure = Figure(value=None, resolution_ms=0.0)
    longest_unacknowledged_ms: float
    recovery_ms: float | None
    segments: int
    retransmitted_segments: int
    retransmitted_bytes: int
    fast_retransmits: int
    rto_events: int
    tail_loss_probes: int
    spurious_retransmits: int
    duplicate_sacks: int
    sack_recoveries: int
    kernel: dict[str, TcpEnd] = {}


class WitnessResult(_Record, frozen=True, kw_only=True):
    """What somebody else's client says (`figures`), what the capture at the peer's port says of the same packets (`capture`, under the
    same names where both have the figure), and where the two differ. `error`: why the client has no figures.
    """

    name: str
    kind: str
    program: str
    figures: dict[str, float] = {}
    capture: dict[str, float] = {}
    disagreements: tuple[str, ...] = ()
    error: str = ""


class MigrationResult(_Record, frozen=True, kw_only=True):
    """What QEMU says of the migration; RAM figures are those of query-migrate.

    `details`: the rest of what the source's query-migrate said at the end; `destination`: what the destination's did.
    """

    mode: str
    capabilities: tuple[str, ...]
    parameters: dict[str, Any]
    status: str
    total_ms: float | None
    setup_ms: float | None
    ram: dict[str, Any]
    statuses: tuple[tuple[str, int], ...]
    transport: str = "unix"
    tls: bool = False
    details: dict[str, Any] = {}
    destination: dict[str, Any] = {}


class CaptureResult(_Record, frozen=True, kw_only=True):
    packets: int
    dropped: int


class Announcement(_Record, frozen=True, kw_only=True):
    """A frame by which the network learns where the guest is. `kind`: "rarp", "arp" or "nd"."""

    t_ns: int
    kind: str
    interface: str


class QemuIdentity(_Record, frozen=True, kw_only=True):
    name: str
    version: str
    build: str


class QemuPair(_Record, frozen=True, kw_only=True):
    source: QemuIdentity
    destination: QemuIdentity


class GuestIdentity(_Record, frozen=True, kw_only=True):
    kernel: str
    image: str


class RunResult(_Record, frozen=True, kw_only=True):
    """The whole of result.json."""

    schema_version: Literal[1] = 1
    run_id: str
    scenario: Scenario
    outcome: Outcome
    verdict: Verdict
    accelerator: str
    host: dict[str, Any]
    qemu: QemuPair
    guest: GuestIdentity
    mechanism: str
    downtime: Downtimes
    phases: tuple[PhaseResult, ...]
    streams: tuple[StreamResult, ...]
    tcp: tuple[TcpResult, ...] = ()
    tcp_counters: dict[str, dict[str, int]] = {}
    witnesses: tuple[WitnessResult, ...] = ()
    migration: MigrationResult | None = None
    devices: DevicesResult | None = None
    switchover_ack: AckResult | None = None
    announcements: tuple[Announcement, ...] = ()
    clock: ClockResult | None = None
    marks: tuple[MarkResult, ...] = ()
    calibration: CalibrationResult | None = None
    captures: dict[str, CaptureResult] = {}
    figures: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    expectations: tuple[str, ...] = ()

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.streams)
