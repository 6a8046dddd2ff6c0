"""redirect-packet: as redirect, but the destination's QEMU sends the frames to its own TAP, where whoever reads that gets them.

With vhost that is the host's kernel, which owns the guest's rings as soon as it runs: no filter can deliver there. A packet socket
on the TAP's interface can. At the source nothing changes: vhost stops with the guest, and QEMU reads the TAP from then on.

    source's TAP --> mirror "out" --- socket --> redirector "in" --> buffer "passed" --> redirector "tap"
                                                                                             |
                                              NIC (or vhost) <-- destination's TAP <-- packet socket

The destination's own frames don't pass these filters: with vhost QEMU never sees them. So that they don't overtake, the bridge goes on sending to
the source after RESUME, and is moved over in a moment in which nothing is on its way: all that the source passed has been sent to the destination's TAP. A
frame that arrives within that moment (two answers of a monitor) is passed late, and may come behind a newer one.
"""

from __future__ import annotations

from typing import ClassVar

from harness.errors import DeadlineError
from harness.host.bridge import PortFlags, forward_to, port_message
from harness.migrate.mechanisms.base import Report, SwitchContext
from harness.migrate.mechanisms.redirect import IN, OUT, PASSED, Redirect, figure
from harness.vm.argv import Descriptor, NicSpec

__all__ = ["RedirectPacket"]

TAP = "sw-tap"
_TAKEN_S = 10.0
_CAUGHT_UP_S = 3.0
"""Longer than any backlog takes; with more than some thousand frames a second there may never be such a moment."""


class RedirectPacket(Redirect):
    """The mechanism `redirect-packet`."""

    name: ClassVar[str] = "redirect-packet"
    injects: ClassVar[bool] = False
    steers_bridge: ClassVar[bool] = True
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

    async def resumed(self, context: SwitchContext) -> None:
        """Move the bridge over as soon as the source's frames have caught up."""
        await self._until_caught_up(context)
        source, destination = context.source.port, context.destination.port
        context.network.control.apply([
            port_message(destination.ifindex, PortFlags.opened()),
            *(forward_to(mac, destination.ifindex) for mac in self._macs),
            port_message(source.ifindex, PortFlags.closed()),
        ])  # fmt: skip
        context.event("moved", {})
        await self._until_calm(context)
        context.event("released", {"passed": len(self._passed)})

    async def _until_caught_up(self, context: SwitchContext) -> None:
        async def caught_up() -> bool:
            sent = await figure(context.destination.machine, TAP, "passed")
            return sent == await figure(context.source.machine, OUT, "passed")  # read later: so nothing was on its way just now

        try:
            await context.deadline.within(_CAUGHT_UP_S).poll(caught_up, awaited="the source's frames to catch up", interval_s=0)
        except DeadlineError:
            context.note(f"the source's frames did not catch up within {_CAUGHT_UP_S:g} s: some may come behind newer ones")

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
