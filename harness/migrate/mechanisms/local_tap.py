"""local-tap: the source hands its open TAP to a destination on the same host, through the migration's UNIX socket.

QEMU does it (series `local-tap`; the posted one has the same names). The destination gets no TAP of its own: it opens
nothing and waits. The bridge notices nothing, and every frame of the switchover waits in the TAP's own queue, which the source reads until its
run state changes and the destination from its RESUME on.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import msgspec

from harness.errors import TestbedError, UsageError
from harness.migrate.mechanisms.base import Mechanism, Report, SwitchContext
from harness.model.plan import MigrationPlan
from harness.model.scenario import Scenario
from harness.vm.argv import MachineSpec
from harness.vm.discovery import Features

__all__ = ["LocalTap"]


class LocalTap(Mechanism):
    """The mechanism `local-tap`."""

    name: ClassVar[str] = "local-tap"
    steers_bridge: ClassVar[bool] = True
    keeps_port: ClassVar[bool] = True
    # Without it the source takes a migration for completed whose destination failed in the last phase, and stays stopped.
    capabilities: ClassVar[tuple[str, ...]] = ("return-path",)
    features: ClassVar[tuple[str, ...]] = ("local-tap",)

    def refuse(self, plan: MigrationPlan, scenario: Scenario) -> None:
        if plan.transport != "unix":
            raise UsageError(
                f"local-tap hands descriptors over, which only a UNIX socket can carry, and migration.transport is {plan.transport}",
                hint='set migration.transport to "unix"',
            )
        if scenario.network.vhost:
            raise UsageError(
                "local-tap does not work with network.vhost = true: the TAP would go over without the kernel's side of its rings",
                hint="set network.vhost to false, or take the mechanism none",
            )
        if "netpass" in plan.capabilities:
            raise UsageError(
                "local-tap does not go together with the capability netpass: the frames of the switchover wait in the TAP for the"
                " destination, and netpass would have the source read them",
                hint="leave the capability out, or take the mechanism netpass alone",
            )

        if "virtio-iterative" in plan.capabilities:
            raise UsageError(
                "local-tap does not go together with the capability virtio-iterative: that loads the NIC's state at the setup, and the TAP"
                " comes at the stop", hint="leave the capability out, or take another mechanism",
            )  # fmt: skip

    def destination_spec(self, spec: MachineSpec, *, features: Features) -> MachineSpec:
        """Every TAP goes over, so every NIC waits for one."""
        _, option = features.spelling("local-tap")
        nics = tuple(msgspec.structs.replace(nic, takes_over=option) for nic in spec.nics)
        return msgspec.structs.replace(spec, nics=nics)

    def source_parameters(self, *, features: Features) -> dict[str, Any]:
        return {features.spelling("local-tap")[0]: True}

    async def aborted(self, context: SwitchContext, *, stop_ns: int | None) -> None:
        """The source kept its descriptors and goes on by itself; only the wish is taken back."""
        off = dict.fromkeys(self.source_parameters(features=context.source_features), False)
        with contextlib.suppress(TestbedError):
            await context.source.machine.qmp.call("migrate-set-parameters", off)

    async def finish(self, context: SwitchContext) -> Report:
        """What waited in the TAP for the destination: the frames after the guest's last one at the source, up to RESUME."""
        if context.resume_ns is None or context.stop_ns is None:
            return Report()
        stop, resume_ns = context.stop_point, context.resume_ns
        frames = context.source.live.frames(first=0 if stop is None else stop.first_undelivered)
        begin_ns = context.stop_ns if stop is None else 0
        return Report(passed=tuple(frame for frame in frames if begin_ns <= frame.time_ns <= resume_ns))
