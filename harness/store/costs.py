"""Device costs and the ACK of a run, from its trace files."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.analysis.device_cost import device_costs
from harness.analysis.switchover_ack import acknowledgement
from harness.errors import UsageError
from harness.model.costs import AckOrder, AckResult, DeviceCost, DevicesResult
from harness.model.events import Event
from harness.model.facts import MigrationFacts, RunFacts
from harness.model.scenario import MigrationMode
from harness.store.rundir import RunDirectory

__all__ = ["SwitchoverCosts", "switchover_costs"]

ACK = "switchover-ack"
NIC = "net0"


@dataclass(frozen=True)
class SwitchoverCosts:
    """Parts of a result. `figures`: the ones to compare runs by, in microseconds and milliseconds."""

    devices: DevicesResult | None = None
    switchover_ack: AckResult | None = None
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def switchover_costs(run: RunDirectory, facts: RunFacts) -> SwitchoverCosts:
    """What the trace files of the first migration's two machines say; nothing for a run without a migration."""
    migration = facts.migrations[0] if facts.migrations else None
    if migration is None or migration.mode in (MigrationMode.NONE, MigrationMode.STOP_CONT):
        return SwitchoverCosts()
    if not migration.source:
        return SwitchoverCosts(devices=DevicesResult(reason="the run directory does not say which machine was which"))
    source, destination = (_trace(run, name) for name in (migration.source, migration.destination))
    begin_ns = migration.migrate_ns or 0
    end_ns = max(migration.completed_ns or 0, migration.resume_ns or 0) or facts.traffic_end_ns
    completed = migration.status == "completed"
    versions = (facts.qemu.source.version, facts.qemu.destination.version)
    devices = device_costs(
        source, destination, begin_ns=begin_ns, stop_ns=migration.stop_ns if completed else None,
        resume_ns=migration.resume_ns if completed else None, statuses=migration.statuses, versions=versions,
    )  # fmt: skip
    ack = None
    if ACK in migration.capabilities:
        ack = acknowledgement(
            source, destination, begin_ns=begin_ns, end_ns=end_ns, stop_ns=migration.stop_ns, source_version=versions[0]
        )
    return SwitchoverCosts(devices=devices, switchover_ack=ack, figures=_figures(devices, ack), notes=tuple(_notes(migration, ack)))


def _trace(run: RunDirectory, name: str) -> list[Event]:
    try:
        return run.events(name=f"trace-{name}.jsonl")
    except UsageError:  # a bundle without it, for one
        return []


def nic_under_test(devices: DevicesResult) -> DeviceCost | None:
    """The first virtio-net: the machine's second NIC is the management's. By QEMU's name for it where that is traced."""
    named = [cost for cost in devices.devices if cost.nic == NIC]
    others = sorted((cost for cost in devices.devices if cost.name.endswith("/virtio-net")), key=lambda cost: cost.name)
    return next(iter((*named, *others)), None)


def _figures(devices: DevicesResult, ack: AckResult | None) -> dict[str, float]:
    nic = nic_under_test(devices)
    known: dict[str, float | None] = {"devices_save_us": devices.save_us, "devices_load_us": devices.load_us, "resume_to_start_us": devices.to_start_us}
    if nic is not None:
        known |= {
            "virtio_net_save_us": nic.save_us, "virtio_net_load_us": nic.load_us, "virtio_net_start_us": nic.start_us,
            "virtio_net_setup_save_us": nic.setup_save_us, "virtio_net_setup_load_us": nic.setup_load_us,
            "virtio_net_all_load_us": nic.all_load_us, "virtio_net_repeated_load_us": nic.repeated_load_us,
            "virtio_net_stop_bytes": nic.stop_bytes, "virtio_net_setup_bytes": nic.setup_bytes,
        }  # fmt: skip
        if nic.load_us is not None and nic.repeated_load_us is not None:
            known["virtio_net_first_load_us"] = nic.load_us - nic.repeated_load_us
        if (groups := nic.groups) is not None:
            known |= {
                "virtio_net_load_virtqueues_us": groups.virtqueues_us, "virtio_net_load_backend_us": groups.backend_us,
                "virtio_net_load_rest_us": groups.rest_us,
            }  # fmt: skip
    if ack is not None:
        known |= {"ack_before_stop_ms": ack.before_stop_ms, "slow_device_waited_us": ack.waited_us}
    return {name: float(value) for name, value in known.items() if value is not None}


def _notes(migration: MigrationFacts, ack: AckResult | None) -> list[str]:
    if ack is None:
        return []
    found = []
    if ack.order is AckOrder.STOP_FIRST:
        found.append("switchover-ack: the guest stopped before the ACK arrived")
    if ack.reason:
        found.append(f"switchover-ack: {ack.reason}")
    passes = migration.info.get("ram", {}).get("dirty-sync-count", 0)
    if passes > 100:
        found.append(f"the source walked its memory {passes} times while it waited, which costs the guest processor time")
    return found
