"""What each device cost a switchover, from the trace points of both machines.

`vmstate_downtime_save` and `vmstate_downtime_load` (QEMU >= 8.2) give each device's save and load at the stop, in microseconds.
The rest (phases of a virtio load, start of the backend, loads at the setup) needs the trace points of the series virtio-iterative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.model.costs import DeviceCost, DevicesResult
from harness.model.events import Event

__all__ = ["device_costs", "held_us"]

_COST = re.compile(r"type=(iterable|non-iterable) idstr=(.*) instance_id=(\d+) downtime=(-?\d+)$")
_PHASE = re.compile(r"\S+ vdev (\S+) phase (\w+) took (\d+) ns$")
_STARTED = re.compile(r"\S+ vdev (\S+) running 1 took (\d+) ns$")
_SAVE = re.compile(r"(\S+) (setup|stop) (\w+) bytes (\d+) ns (\d+)$")
_LOAD = re.compile(r"(\S+) (setup|stop) (\w+) ns (\d+)$")
_CONTROL = "-iterative"  # the section that carries a state at the setup; at the stop it is empty
_BEFORE_STOP_NS = 2_000_000
"""The run state changes before the STOP event; no device is saved sooner."""

Key = tuple[str, int]


@dataclass
class _Nic:
    """What is known of a NIC under the name that -device gave it."""

    device: Key | None = None
    sent: str | None = None
    stop_bytes: int | None = None
    setup_save_us: float | None = None
    setup_load_us: float | None = None
    setup_bytes: int | None = None
    repeated_load_us: float | None = None


@dataclass
class _Findings:
    iterable: dict[Key, bool] = field(default_factory=dict)
    save_us: dict[Key, float] = field(default_factory=dict)
    load_us: dict[Key, float] = field(default_factory=dict)
    phases_us: dict[Key, dict[str, float]] = field(default_factory=dict)
    start_us: dict[Key, float] = field(default_factory=dict)
    nics: dict[str, _Nic] = field(default_factory=dict)
    to_start_us: float | None = None

    def nic(self, name: str) -> _Nic:
        return self.nics.setdefault(name, _Nic())

    def cost(self, event: Event, into: dict[Key, float]) -> Key | None:
        """Note one vmstate_downtime event; a device may have several parts."""
        match = _COST.match(event.data["text"])
        if match is None:
            return None
        key = (match[2], int(match[3]))
        into[key] = into.get(key, 0.0) + float(match[4])
        self.iterable[key] = self.iterable.get(key, False) or match[1] == "iterable"
        return key


def device_costs(
    source: Iterable[Event], destination: Iterable[Event], *, begin_ns: int, stop_ns: int | None, resume_ns: int | None,
    statuses: Sequence[tuple[str, int]] = (), versions: tuple[str, str] = ("", ""),
) -> DevicesResult:
    """The cost of each device, from the trace events of the migration's two machines, each in order.

    Events before `begin_ns` (the `migrate` command) belong to something else. Without a switchover, or where a QEMU traces nothing,
    there are no devices and `reason` says why.
    """
    if stop_ns is None or resume_ns is None:
        return DevicesResult(reason="the guest did not change its machine")
    found = _Findings()
    _read_source(source, found, begin_ns=begin_ns, stop_ns=stop_ns, resume_ns=resume_ns)
    _read_destination(destination, found, begin_ns=begin_ns, stop_ns=stop_ns, resume_ns=resume_ns)
    silent = [
        f"the {side}'s QEMU {version} does not trace {event}"
        for side, version, event, there in (
            ("source", versions[0], "vmstate_downtime_save", found.save_us),
            ("destination", versions[1], "vmstate_downtime_load", found.load_us),
        )
        if not there
    ]
    stop_us, held = (resume_ns - stop_ns) / 1000, held_us(statuses)
    if len(silent) == 2:
        return DevicesResult(reason="; ".join(silent), stop_us=stop_us, held_us=held)
    costs = [_cost(key, found, worked_us=stop_us - held) for key in {**found.load_us, **found.save_us}]
    # An empty section at the stop is no device.
    costs = [c for c in costs if not (c.name.endswith(_CONTROL) and not c.save_us and not c.load_us)]
    costs.sort(key=lambda cost: -(cost.load_us or 0.0) - (cost.save_us or 0.0) / 1e6)
    setup = [cost.setup_load_us for cost in costs if cost.setup_load_us is not None]
    return DevicesResult(
        devices=tuple(costs), save_us=sum(found.save_us.values()) if found.save_us else None,
        load_us=sum(found.load_us.values()) if found.load_us else None, setup_load_us=sum(setup) if setup else None,
        stop_us=stop_us, held_us=held, to_start_us=found.to_start_us, reason="; ".join(silent),
    )  # fmt: skip


def held_us(statuses: Sequence[tuple[str, int]]) -> float:
    """How long the source waited in pre-switchover; 0 when it did not."""
    began: int | None = None
    held_ns = 0
    for status, t_ns in statuses:
        if status == "pre-switchover":
            began = t_ns
        elif began is not None:
            held_ns, began = held_ns + t_ns - began, None
    return held_ns / 1000


def _read_source(events: Iterable[Event], found: _Findings, *, begin_ns: int, stop_ns: int, resume_ns: int) -> None:
    for event in events:
        if event.t_ns < begin_ns:
            continue
        at_stop = stop_ns - _BEFORE_STOP_NS <= event.t_ns <= resume_ns
        if event.name == "trace:vmstate_downtime_save" and at_stop:
            found.cost(event, found.save_us)
        elif event.name == "trace:virtio_net_iterative_save" and (match := _SAVE.match(event.data["text"])):
            nic = found.nic(match[1])
            if match[2] == "setup":
                nic.setup_save_us, nic.setup_bytes = int(match[5]) / 1000, int(match[4])
            else:
                nic.sent, nic.stop_bytes = match[3], int(match[4])


def _read_destination(events: Iterable[Event], found: _Findings, *, begin_ns: int, stop_ns: int, resume_ns: int) -> None:
    """A device's phases stand before its own event; only their order says whose they are."""
    device_of: dict[str, Key] = {}  # by the address of the device in QEMU
    nic_of: dict[str, str] = {}
    vdev, phases = "", dict[str, float]()
    nic_name: str | None = None
    started: dict[str, float] = {}
    for event in events:
        text = event.data.get("text", "")
        if event.t_ns < begin_ns:
            continue
        if event.name == "trace:virtio_load_phase" and (match := _PHASE.match(text)):
            vdev = match[1]
            if nic_name is None:  # what follows the NIC's own event is a second load of the same state
                phases[match[2]] = phases.get(match[2], 0.0) + int(match[3]) / 1000
        elif event.name == "trace:virtio_net_iterative_load" and (match := _LOAD.match(text)):
            nic = found.nic(match[1])
            if vdev:
                nic_of[vdev] = match[1]
            if match[2] == "setup":
                nic.setup_load_us = int(match[4]) / 1000
                vdev, phases = "", {}
            elif match[3] == "twice":
                nic.repeated_load_us = int(match[4]) / 1000
            else:
                nic_name = match[1]
                nic.sent = nic.sent or (match[3] if nic.setup_load_us is not None else None)
        elif event.name == "trace:vmstate_downtime_load":
            if event.t_ns > resume_ns or event.t_ns < stop_ns - _BEFORE_STOP_NS:
                continue
            key = found.cost(event, found.load_us)
            if key is not None:
                if phases:
                    found.phases_us[key] = phases
                if vdev:
                    device_of[vdev] = key
                if nic_name is not None:
                    found.nic(nic_name).device = key
            vdev, phases, nic_name = "", {}, None
        elif event.name == "trace:virtio_vmstate_change" and (match := _STARTED.match(text)):
            started.setdefault(match[1], int(match[2]) / 1000)
        elif event.name == "trace:vmstate_downtime_checkpoint" and text.endswith("-bh-vm-started") and event.t_ns >= resume_ns:
            found.to_start_us = (event.t_ns - resume_ns) / 1000
    for address, spent_us in started.items():
        owner = device_of.get(address) or found.nic(nic_of[address]).device if address in {*device_of, *nic_of} else None
        if owner is not None:
            found.start_us[owner] = spent_us


def _cost(key: Key, found: _Findings, *, worked_us: float) -> DeviceCost:
    save_us, load_us = found.save_us.get(key), found.load_us.get(key)
    name, nic = next(((name, nic) for name, nic in found.nics.items() if nic.device == key), (None, _Nic()))

    def share(spent_us: float | None) -> float | None:
        return None if spent_us is None or worked_us <= 0 else spent_us / worked_us

    return DeviceCost(
        name=key[0], instance=key[1], iterable=found.iterable[key], nic=name, save_us=save_us, load_us=load_us,
        save_share=share(save_us), load_share=share(load_us), load_phases_us=found.phases_us.get(key, {}),
        start_us=found.start_us.get(key), sent=nic.sent, stop_bytes=nic.stop_bytes, setup_save_us=nic.setup_save_us,
        setup_load_us=nic.setup_load_us, setup_bytes=nic.setup_bytes, repeated_load_us=nic.repeated_load_us,
    )  # fmt: skip
