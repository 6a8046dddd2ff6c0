"""Properties of virtio-net that the guest sees."""

from __future__ import annotations

from harness.model.scenario import NetworkSection

__all__ = ["guest_nic_properties"]

_OFFLOADS = (
    "csum", "guest_csum", "gso", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "host_tso4", "host_tso6", "host_ecn", "host_ufo",
)  # fmt: skip


def guest_nic_properties(network: NetworkSection) -> tuple[str, ...]:
    """What is not as QEMU has it by itself."""
    found = ["packed=on"] if network.packed else []
    if not network.mergeable:
        found.append("mrg_rxbuf=off")
    if not network.offloads:
        found += [f"{name}=off" for name in _OFFLOADS]
    return tuple(found)
