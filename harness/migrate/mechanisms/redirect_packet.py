"""redirect-packet: as redirect, but the destination's QEMU sends the frames to its own TAP, where whoever reads that gets them.

With vhost that is the host's kernel, which owns the guest's rings as soon as it runs: no filter can deliver there. A packet socket
on the TAP's interface can. At the source nothing changes: vhost stops with the guest, and QEMU reads the TAP from then on.

    source's TAP --> mirror "out" --- socket --> redirector "in" --> buffer "passed" --> redirector "tap"
                                                                                             |
                                              NIC (or vhost) <-- destination's TAP <-- packet socket

The destination's own frames don't pass these filters: with vhost QEMU never sees them. What waited until RESUME stands before all of them, since
the bridge learns from the announcement that follows; a frame that the source passes later may come behind newer ones.
"""

from __future__ import annotations

from typing import ClassVar

from harness.migrate.mechanisms.base import Report, SwitchContext
from harness.migrate.mechanisms.redirect import IN, PASSED, Redirect, figure
from harness.vm.argv import Descriptor, NicSpec

__all__ = ["RedirectPacket"]

TAP = "sw-tap"
_TAKEN_S = 10.0


class RedirectPacket(Redirect):
    """The mechanism `redirect-packet`."""

    name: ClassVar[str] = "redirect-packet"
    injects: ClassVar[bool] = False
    sends_to_tap: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = ("redirect", "redirect-packet")
    destination_filters: ClassVar[tuple[str, ...]] = (IN, PASSED, TAP)
    buffers: ClassVar[tuple[str, ...]] = (PASSED,)

    def destination_filter(self, name: str, nic: NicSpec) -> str:
        if name == TAP:
            several = ",queue_index_support=on" if nic.queues > 1 else ""
            text = f"filter-redirector,id={TAP},netdev={nic.id}-netdev,queue=tx,packet_fd={Descriptor.PACKET:d},vnet_hdr_support=on{several}"
        else:
            text = super().destination_filter(name, nic)
        return f"{text},only_injected=on"

    async def release(self, context: SwitchContext) -> None:
        """The destination's own frames were never held."""

    async def finish(self, context: SwitchContext) -> Report:
        if context.resume_ns is None:
            return Report()
        machine = context.destination.machine

        async def sent() -> bool:
            return await figure(machine, PASSED, "held") == 0 and await figure(machine, TAP, "pending") == 0

        await context.deadline.within(_TAKEN_S).poll(sent, awaited="the destination's TAP to take the frames of the source")
        counts = {f"tap-{name}": await figure(machine, TAP, name) for name in ("passed", "failed")}
        if counts["tap-failed"]:
            context.note(f"{counts['tap-failed']} frames could not be sent to the destination's TAP")
        report = await super().finish(context)
        return Report(passed=report.passed, figures=report.figures | counts)
