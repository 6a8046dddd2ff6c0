"""Properties and devices that concern a migration alone: the guest knows nothing of them."""

from __future__ import annotations

from harness.model.scenario import NetworkSection, SlowDeviceSection

__all__ = ["SLOW", "nic_properties", "slow_device"]

SLOW = "slow"
"""The slow device's id; its QOM path is /machine/peripheral/slow."""


def slow_device(section: SlowDeviceSection | None) -> tuple[str, ...]:
    """The slow test device as `-device` takes it. Its properties count on a migration's destination."""
    if section is None:
        return ()
    return (f"slow-migration-device,id={SLOW},prepare-ms={section.prepare_ms},switchover-ack={'on' if section.ack else 'off'}",)


def nic_properties(network: NetworkSection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """virtio-net's properties for virtio-iterative: those of both machines, and those of a destination."""
    both = ("x-iterative-delta=on",) if network.iterative_delta else ()
    control = network.iterative_control
    return both, ((f"x-iterative-control-{control}=on",) if control != "none" else ())
