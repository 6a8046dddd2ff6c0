"""What the harness itself knew of a run: run.json, the raw facts that no other file of the run directory holds."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from harness.model.calibration import CalibrationResult
from harness.model.result import GuestIdentity, QemuPair
from harness.model.scenario import Scenario
from harness.model.streams import TcpStream, UdpStream, Witness

__all__ = ["CaptureFacts", "CounterFacts", "MigrationFacts", "QueueFacts", "RunFacts"]


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CaptureFacts(_Facts, frozen=True, kw_only=True):
    """One capture point; `file` is relative to the run directory."""

    interface: str
    file: str
    packets: int
    dropped: int
    incomplete: int = 0


class CounterFacts(_Facts, frozen=True, kw_only=True):
    """The increase of one drop counter over the run. `place` and `fate` as in `harness.analysis.evidence`."""

    name: str
    place: str
    direction: str
    count: int
    fate: str | None = None


class QueueFacts(_Facts, frozen=True, kw_only=True):
    """One of several queues of the source's TAP: how many frames to it were not delivered, and how many of them waited in it at the end."""

    undelivered: int
    waiting: int


class MigrationFacts(_Facts, frozen=True, kw_only=True):
    """One migration as QEMU told it; times are host nanoseconds. Frame files are relative to the run directory.

    `moved`: whether the guest is at the destination afterwards; `destination_info`: that machine's own query-migrate.
    `undelivered_file`: frames sent to the source's TAP that its guest did not get, in order; `stranded_file`: those read
    back from the TAP's queue after the source's end; `passed_file`: those that a mechanism carried over. `source` and `destination` name
    the machines (`trace-NAME.jsonl`); empty: there was one machine, or the run is older than this field. `deaths`: when a machine
    ("source", "destination") died with the guest in it; `abandoned_file`: what was read back at the end from the TAP of a destination
    in which the guest runs no more. `survivor`: where it ran after the migration; empty: nowhere. `taken`: so many of the
    undelivered frames, the first ones, the source had read from its TAP, by the TAP's own counter; None: not known. `queues`: of a TAP
    with several; both files then have the frames queue by queue.
    """

    mode: str
    mechanism: str
    source: str = ""
    destination: str = ""
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    status: str
    statuses: tuple[tuple[str, int], ...] = ()
    info: dict[str, Any] = {}
    moved: bool = True
    transport: str = "unix"
    tls: bool = False
    destination_info: dict[str, Any] = {}
    migrate_ns: int | None = None
    stop_ns: int | None = None
    resume_ns: int | None = None
    completed_ns: int | None = None
    undelivered_file: str | None = None
    undelivered_reason: str = ""
    taken: int | None = None
    queues: tuple[QueueFacts, ...] = ()
    stranded_file: str | None = None
    passed_file: str | None = None
    survivor: str = ""
    deaths: dict[str, int] = {}
    abandoned_file: str | None = None
    figures: dict[str, float] = {}


class RunFacts(_Facts, frozen=True, kw_only=True):
    """The whole of run.json."""

    schema_version: Literal[1] = 1
    run_id: str
    scenario: Scenario
    accelerator: str
    accelerator_reason: str
    host: dict[str, Any]
    qemu: QemuPair
    guest: GuestIdentity
    streams: tuple[UdpStream, ...] = ()
    tcp: tuple[TcpStream, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    nonce: int = 0
    traffic_start_ns: int = 0
    traffic_end_ns: int = 0
    migrations: tuple[MigrationFacts, ...] = ()
    captures: dict[str, CaptureFacts] = {}
    counters: tuple[CounterFacts, ...] = ()
    calibration: CalibrationResult | None = None
    figures: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    failure: str | None = None
