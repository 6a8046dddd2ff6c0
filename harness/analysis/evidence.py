"""What the ledger is given: the streams' records, the captures, and what else was seen of lost packets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import msgspec

from harness.analysis.columns import Capture
from harness.analysis.records import RecordFile
from harness.analysis.sightings import StopWindow
from harness.model.scenario import Direction

ProbeSet = frozenset[tuple[int, int]]
"""Probes by (stream id, sequence number)."""


class Fate(IntEnum):
    """What became of a sent probe; exactly one each. The labels are those of `result.json`."""

    UNEXPLAINED = 0
    DELIVERED = 1
    STRANDED_AT_SOURCE = 2
    DROPPED_BY_HOST = 3
    LOST_IN_QEMU = 4
    DROPPED_BY_GUEST = 5
    LOST_ON_RETURN = 6

    @property
    def label(self) -> str:
        return self.name.lower()


class Place(StrEnum):
    """Where a drop counter counts, in the order of the way to the guest."""

    PEER = "peer"
    """Before the capture at the peer's port for what the peer sends, behind it for what it receives."""
    BRIDGE = "bridge"
    """Between the captures at the peer's port and at the TAPs: the port's ingress, the bridge, the TAP's egress."""
    SOURCE_TAP = "source-tap"
    DESTINATION_TAP = "destination-tap"
    """The TAP's queue, behind the capture there."""
    GUEST = "guest"
    """The mobile guest's interface and socket."""


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """A machine died at `time_ns` with the guest in it; `place` is its TAP."""

    place: Place
    time_ns: int


class DropCounter(msgspec.Struct, frozen=True, kw_only=True):
    """That something dropped `count` packets: evidence for as many lost probes as were last seen before that place.

    `count` is the increase over the run, or from `start_ns` to `end_ns` where that is known. `direction` is that of the
    packets it counts (an echo's request counts as to-guest). `fate` is what it makes of a probe: by default the guest's
    counters mean `DROPPED_BY_GUEST`, all others `DROPPED_BY_HOST`; give it for the peer's when the peer is a guest.
    """

    name: str
    place: Place
    count: int
    direction: Direction = Direction.TO_GUEST
    fate: Fate | None = None
    start_ns: int | None = None
    end_ns: int | None = None

    @property
    def verdict(self) -> Fate:
        """The fate of a probe that this counter explains."""
        if self.fate is not None:
            return self.fate
        return Fate.DROPPED_BY_GUEST if self.place is Place.GUEST else Fate.DROPPED_BY_HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecords:
    """One stream's raw records.

    `received` are the receiver's: the mobile guest's for `to-guest`, the peer's for `from-guest`, the replies for
    `echo`. `responder` are the mobile guest's records of an echo's requests. `None`: the file is missing; nothing is
    then held to be lost for want of a record.
    """

    name: str
    direction: Direction
    sent: RecordFile
    received: RecordFile | None
    responder: RecordFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """The captures of a run; `None`: there was no such point, or no capture of it."""

    peer: Capture | None = None
    source: Capture | None = None
    destination: Capture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen besides records and captures."""

    captures: Captures = field(default_factory=Captures)
    stranded: ProbeSet = frozenset()
    """Read back from a TAP after its machine had ended, or when the guest had left it for good."""
    swallowed: ProbeSet = frozenset()
    """Left the TAP's queue, but never reached the guest's ring (see `ring`)."""
    parked: ProbeSet = frozenset()
    """Those of `swallowed` that QEMU held when the source ended."""
    purged: ProbeSet = frozenset()
    """Those of `swallowed` that QEMU freed in its stop path: it read on behind them."""
    passed: ProbeSet = frozenset()
    """Carried over by a mechanism."""
    counters: tuple[DropCounter, ...] = ()
    deaths: tuple[Death, ...] = ()
    windows: tuple[StopWindow, ...] = ()
