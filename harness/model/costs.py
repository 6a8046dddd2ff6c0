"""What each device cost a switchover, and when the destination acknowledged it: parts of result.json."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["AckOrder", "AckResult", "DeviceCost", "DevicesResult", "LoadGroups"]


class AckOrder(StrEnum):
    """`not-asked`: no device wanted to be asked, which in the protocol per device means no ACK and no waiting."""

    ACK_FIRST = "ack-first"
    STOP_FIRST = "stop-first"
    NO_ACK = "no-ack"
    NO_STOP = "no-stop"
    NOT_ASKED = "not-asked"


_GROUPS = {
    "queues": "virtqueues", "subsections": "virtqueues", "rings": "virtqueues",
    "device": "backend", "features": "backend", "post_load": "backend",
}  # fmt: skip
"""What the phases of virtio_load() are about; what isn't named here (the transport, for one) is the rest."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class LoadGroups(_Record, frozen=True, kw_only=True):
    """A virtio device's load, grouped, in microseconds. `backend_start` comes after the load, when the guest starts."""

    virtqueues_us: float
    backend_us: float
    rest_us: float
    backend_start_us: float | None


class DeviceCost(_Record, frozen=True, kw_only=True):
    """One device's part in the switchover, as QEMU traced it. Whole microseconds of the host's clock; None: not traced.

    `name` and `instance` are those of the migration stream. `save_us`, `load_us`: at the stop, on the source and on the destination,
    which work at the same time: they don't add up. `save_share`, `load_share`: of the stop less what it was held (0 to 1).
    `load_phases_us`: parts of the load at the stop; `start_us`: starting the device's backend, after the load. `sent`: "full" or "delta" where
    the state was sent at the setup already; `setup_*` is what that cost, while the guest ran.
    `repeated_load_us`: loading the same state a second time at the stop (a control); `load_us` holds both.
    """

    name: str
    instance: int
    iterable: bool
    nic: str | None = None
    save_us: float | None = None
    load_us: float | None = None
    save_share: float | None = None
    load_share: float | None = None
    load_phases_us: dict[str, float] = {}
    start_us: float | None = None
    sent: str | None = None
    stop_bytes: int | None = None
    setup_save_us: float | None = None
    setup_load_us: float | None = None
    setup_bytes: int | None = None
    repeated_load_us: float | None = None

    @property
    def groups(self) -> LoadGroups | None:
        """The breakdown of a virtio device's load; None where QEMU doesn't trace it."""
        if not self.load_phases_us or self.load_us is None:
            return None
        sums = {"virtqueues": 0.0, "backend": 0.0}
        for phase, spent_us in self.load_phases_us.items():
            if phase in _GROUPS:
                sums[_GROUPS[phase]] += spent_us
        own_us = self.load_us - (self.repeated_load_us or 0.0)
        rest_us = max(0.0, own_us - sum(sums.values()))
        return LoadGroups(
            virtqueues_us=sums["virtqueues"], backend_us=sums["backend"], rest_us=rest_us, backend_start_us=self.start_us
        )

    @property
    def all_load_us(self) -> float | None:
        """Setup and stop: a gain that merely moved is none."""
        return None if self.load_us is None else self.load_us + (self.setup_load_us or 0.0)


class DevicesResult(_Record, frozen=True, kw_only=True):
    """All devices, the most expensive load first. `reason` says why there is none.

    `stop_us` is the compute downtime, `held_us` the part of it that the source waited in pre-switchover. `to_start_us`: from RESUME, which
    QEMU says first, to the end of the start of all devices and processors: the guest stands still for so much longer.
    """

    devices: tuple[DeviceCost, ...] = ()
    save_us: float | None = None
    load_us: float | None = None
    setup_load_us: float | None = None
    stop_us: float | None = None
    held_us: float = 0.0
    to_start_us: float | None = None
    reason: str = ""


class AckResult(_Record, frozen=True, kw_only=True):
    """The destination's acknowledgement of the switchover, host nanoseconds.

    `protocol`: "counted" (the destination counts its devices and sends one ACK, also when it has none) or "per-device" (QEMU 11.1 and
    later with its own machine types: the source counts what its devices ask for, and one ACK comes for each), empty where no trace
    tells. `asked`: devices that were to approve; `sent_ns`: the last of them did (or the return path opened, with
    none to ask; then None); `received_ns`: the ACK at the source after which none was missing; `stop_ns`: the guest stopped (run state, else STOP);
    `before_stop_ms`: by how much the ACK came first, negative if the stop did. `waited_us`: how long the load at the stop waited for the slow test device.
    """

    protocol: str = ""
    asked: int | None = None
    approved_ns: tuple[int, ...] = ()
    sent_ns: int | None = None
    received_ns: int | None = None
    received: int = 0
    stop_ns: int | None = None
    stop_from: str = ""
    before_stop_ms: float | None = None
    order: AckOrder
    waited_us: int | None = None
    reason: str = ""
