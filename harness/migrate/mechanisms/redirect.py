"""redirect: network filters pass the frames that reach the stopped source to the destination; the harness plays the management layer.

QEMU's migration code knows nothing of it (series `filter-when-stopped`). At the destination three filters stand before the NIC:

    its own TAP --> buffer "own" --> redirector "in" --> buffer "passed" --> NIC
                                         ^
    source's TAP --> mirror "out" -------+   a socket in the lab's scratch folder

"passed" holds until the destination runs, "own" until nothing comes from the source any more: so the source's frames stand before
all that the bridge delivers to the destination. At the source a mirror and no redirector: both have the same output, but
what a redirector has passed is gone when the migration fails afterwards, and whether it will nobody knows. The mirror's
frames also wait in the source's own NIC, which gets them if it goes on.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import msgspec

from harness.capture.live import LiveFrame
from harness.errors import DeadlineError, UsageError
from harness.host.tap import queue_is_empty
from harness.host.warden import SCRATCH
from harness.migrate.mechanisms.base import Mechanism, Report, SwitchContext
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode, Scenario
from harness.vm.argv import MachineSpec, NicSpec
from harness.vm.discovery import Features
from harness.vm.machine import Machine
from harness.vm.qmp import CommandRefusedError

__all__ = ["Redirect", "figure"]

OUT, OWN, IN, PASSED = "sw-out", "sw-own", "sw-in", "sw-passed"
SOCKET_OUT, SOCKET_IN = "sw-frames-out", "sw-frames-in"
MOST_HELD = 100_000
_LEARNED_S = 3.0
"""The destination announces itself at once and then for a second; a bridge that did not learn from that never will."""
_CALM_S = 10.0
_APART_S = 0.003
_CALM_READINGS = 2


class Redirect(Mechanism):
    """The mechanism `redirect`."""

    name: ClassVar[str] = "redirect"
    injects: ClassVar[bool] = True
    modes: ClassVar[frozenset[MigrationMode]] = frozenset({MigrationMode.PRECOPY, MigrationMode.POSTCOPY})
    features: ClassVar[tuple[str, ...]] = ("redirect",)
    source_filter: ClassVar[str] = "filter-mirror"
    destination_filters: ClassVar[tuple[str, ...]] = (OWN, IN, PASSED)
    """In the order in which a frame of the destination's TAP meets them."""
    buffers: ClassVar[tuple[str, ...]] = (OWN, PASSED)

    def __init__(self) -> None:
        self._macs: set[str] = set()
        self._passed: tuple[LiveFrame, ...] = ()
        self._figures: dict[str, int] = {}

    def refuse(self, plan: MigrationPlan, scenario: Scenario) -> None:
        if "netpass" in plan.capabilities:
            raise UsageError(
                f"{self.name} does not go together with the capability netpass: both pass the frames of the stopped source, so each"
                " would come twice or, where one takes it from the other, out of order",
                hint="leave the capability out, or take the mechanism netpass alone",
            )
        if scenario.network.vhost and not self.sends_to_tap:
            raise UsageError(
                "redirect does not work with network.vhost = true: at the destination the host's kernel owns the rings as soon as the"
                " guest runs, and no filter can deliver to it",
                hint="set network.vhost to false, or take the mechanism redirect-packet",
            )

    # -- the filters

    def destination_spec(self, spec: MachineSpec, *, features: Features) -> MachineSpec:
        """On the command line: with `object-add` a frame could be parked in the NIC's queue already, before any filter."""
        words = ["-chardev", f"socket,id={SOCKET_IN},path={self.socket_path(spec.name)},server=on,wait=off"]
        for name in self.destination_filters:
            words += ["-object", self.destination_filter(name, spec.nics[0])]
        return msgspec.structs.replace(spec, extra=(*spec.extra, *words))

    def destination_filter(self, name: str, nic: NicSpec) -> str:
        """One of the destination's filters, as `-object` takes it."""
        place = f"id={name},netdev={nic.id}-netdev,queue=tx"
        if name == OWN:
            return f"filter-buffer,{place},release=manual,max-packets={MOST_HELD}"
        if name == PASSED:
            return f"filter-buffer,{place},release=resume,max-packets={MOST_HELD}"
        several = ",queue_index_support=on" if nic.queues > 1 else ""
        return f"filter-redirector,{place},indev={SOCKET_IN},vnet_hdr_support=on{several}"

    def source_properties(self, *, features: Features) -> dict[str, Any]:
        """What the source's filter is told besides its place."""
        (when_stopped, *_) = features.spelling("redirect")
        return {when_stopped: True}

    @staticmethod
    def socket_path(destination: str) -> str:
        """Where the destination of that name listens for frames."""
        return str(SCRATCH / f"{destination}.frames")

    async def prepare(self, context: SwitchContext) -> None:
        source, network = context.source, context.network
        self._macs = set(await network.forwarding_entries(source.port))
        await self._remove_from_source(context)
        address = {"type": "unix", "data": {"path": self.socket_path(context.destination.machine.spec.name)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        properties = {
            "qom-type": self.source_filter, "id": OUT, "netdev": f"{context.nic}-netdev", "queue": "tx", "outdev": SOCKET_OUT,
            "vnet_hdr_support": True, **self.source_properties(features=context.source_features),
        }  # fmt: skip
        if len(source.port.fds) > 1:
            properties["queue_index_support"] = True
        await source.machine.qmp.call("chardev-add", {"id": SOCKET_OUT, "backend": backend})
        await source.machine.qmp.call("object-add", properties)

    async def _remove_from_source(self, context: SwitchContext) -> None:
        await _remove(context.source.machine, objects=(OUT,), chardev=SOCKET_OUT)

    # -- the release

    async def resumed(self, context: SwitchContext) -> None:
        """Let the destination's own frames follow as soon as nothing comes from the source any more."""
        await self._until_learned(context)
        await self._until_calm(context)
        await self.release(context)
        context.event("released", {"passed": len(self._passed)})

    async def release(self, context: SwitchContext) -> None:
        """Nothing comes from the source any more."""
        await context.destination.machine.qmp.call("qom-set", {"path": f"/objects/{OWN}", "property": "release", "value": "resume"})

    async def _until_learned(self, context: SwitchContext) -> None:
        """Until then frames still go to the source. That of the destination's announcement is enough."""
        async def learned() -> bool:
            return self._macs <= set(await context.network.forwarding_entries(context.destination.port))

        try:
            await context.deadline.within(_LEARNED_S).poll(learned, awaited="the bridge to learn where the guest is", interval_s=0.001)
        except DeadlineError:
            context.note(f"the bridge did not learn within {_LEARNED_S:g} s where the guest is: frames may be passed late")

    async def _until_calm(self, context: SwitchContext) -> None:
        """Until everything that was sent to the source's TAP has come out of the destination's redirector."""
        source, destination = context.source, context.destination
        before: tuple[int, ...] = ()
        calm = 0

        async def nothing_on_its_way() -> bool:
            nonlocal before, calm
            sent = source.live.drain()
            waits = not all(queue_is_empty(fd) for fd in source.port.fds)
            out = {name: await figure(source.machine, OUT, name) for name in ("pending", "passed", "failed")}
            injected = await figure(destination.machine, IN, "injected")
            reading = (sent, out["passed"], injected)
            done = not waits and out["pending"] == 0 and out["passed"] == injected
            calm = calm + 1 if done and reading == before else int(done)
            before = reading
            if calm < _CALM_READINGS:
                return False
            self._figures |= {"filter-passed": out["passed"], "filter-failed": out["failed"], "filter-injected": injected}
            # The filter takes every frame that QEMU reads since the run state changed, and all were read: it had the last ones.
            frames = source.live.frames(first=sent - out["passed"])
            self._passed = tuple(frames[: out["passed"]])
            return True

        await context.deadline.within(_CALM_S).poll(
            nothing_on_its_way, awaited="the source's last frame to reach the destination", interval_s=_APART_S,
            seen=lambda: f"sent, passed, injected: {before}",
        )  # fmt: skip

    # -- the end

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        """The source goes on and has all its frames: the mirrored ones waited in its NIC's queue."""
        await self._remove_from_source(context)

    async def finish(self, context: SwitchContext) -> Report:
        """The destination's filters have done their work; their figures go along."""
        if context.resume_ns is None:
            return Report()
        machine = context.destination.machine
        late = await figure(context.source.machine, OUT, "passed") - self._figures["filter-passed"]
        if late:
            context.note(f"{late} frames reached the source after the release and were passed late")
            count = context.source.live.drain()
            self._passed += tuple(context.source.live.frames(first=count - late))

        async def let_go() -> bool:
            held = [await figure(machine, name, "held") for name in self.buffers]
            return not any(held)

        await context.deadline.within(_CALM_S).poll(let_go, awaited="the destination's buffers to let their frames go")
        for name in self.buffers:
            dropped = await figure(machine, name, "dropped")
            self._figures |= {f"{name}-released": await figure(machine, name, "released"), f"{name}-dropped": dropped}
            if dropped:
                context.note(f"the buffer {name} dropped {dropped} frames: more than {MOST_HELD} waited")
        await _remove(machine, objects=self.destination_filters[::-1], chardev=SOCKET_IN)
        return Report(passed=self._passed, figures=self._figures)


async def figure(machine: Machine, name: str, of: str) -> int:
    """A counter of a filter."""
    return int(await machine.qmp.call("qom-get", {"path": f"/objects/{name}", "property": of}))


async def _remove(machine: Machine, *, objects: tuple[str, ...], chardev: str) -> None:
    """Remove what is there; a socket is given up by its filter a moment later."""
    for name in objects:
        with contextlib.suppress(CommandRefusedError):  # it is not there
            await machine.qmp.call("object-del", {"id": name})
    present = {entry["label"] for entry in await machine.qmp.call("query-chardev")}
    if chardev in present:
        await machine.qmp.call("chardev-remove", {"id": chardev})
