"""Refuse a plan that can't work before anything boots."""

from __future__ import annotations

import difflib

from harness.errors import FeatureLackError, UsageError
from harness.migrate.mechanisms import make_mechanism
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode, Scenario
from harness.vm.discovery import Features

__all__ = ["check_plan"]


def check_plan(plan: MigrationPlan, *, scenario: Scenario, source: Features, destination: Features) -> None:
    """`UsageError` for what can never work, `FeatureLackError` for what these QEMUs lack."""
    for side, features in (("source", source), ("destination", destination)):
        for name in scenario.qemu.migration_properties:
            if name not in features.migration_properties:
                near = difflib.get_close_matches(name, features.migration_properties, n=1)
                raise FeatureLackError(
                    f"the {side}'s QEMU {features.version} has no property {name!r} of its migration object",
                    hint=f"did you mean {near[0]!r}?" if near else "switchover features --json shows what it has",
                )
    mechanism = make_mechanism(plan.mechanism)
    if plan.mode in (MigrationMode.NONE, MigrationMode.STOP_CONT):
        return
    if plan.mode not in mechanism.modes:
        known = ", ".join(sorted(mechanism.modes))
        raise UsageError(f"{plan.mechanism} does not work in {plan.mode}", hint=f"set migration.mode to one of: {known}")
    if mechanism.one_queue and scenario.network.queues > 1:
        raise UsageError(
            f"{plan.mechanism} works with one queue, network.queues is {scenario.network.queues}", hint="set network.queues to 1"
        )
    wanted = {*plan.capabilities, *mechanism.capabilities}
    if "switchover-ack" in wanted and "return-path" not in wanted:
        raise UsageError("switchover-ack needs return-path: the ACK comes on it", hint='add "return-path" to the capabilities')
    mechanism.refuse(plan, scenario)
    if scenario.guest.shared_memory and "x-ignore-shared" not in plan.capabilities:
        raise UsageError(
            "guest.shared_memory is true: source and destination map the same memory, and a migration would write it under the"
            " running source", hint='add "x-ignore-shared" to migration.capabilities',
        )  # fmt: skip
    for side, features in (("source", source), ("destination", destination)):
        if lacking := features.lacking(mechanism.features):
            raise FeatureLackError(
                f"the mechanism {plan.mechanism} does not work at the {side}: {'; '.join(lacking)}",
                hint="take the build of `switchover qemu build reference`, or another mechanism",
            )
        for needed in _needs(scenario):
            if reasons := features.lacking([needed]):
                raise FeatureLackError(f"the {side}: {reasons[0]}", hint="the build named reference has it")
        for capability in dict.fromkeys((*plan.capabilities, *mechanism.capabilities, *plan.only_at_source)):
            if side == "destination" and capability in plan.only_at_source:
                continue
            if capability not in features.capabilities:
                near = difflib.get_close_matches(capability, features.capabilities, n=1)
                raise FeatureLackError(
                    f"the {side}'s QEMU {features.version} has no migration capability {capability!r}",
                    hint=f"did you mean {near[0]!r}?" if near else "switchover features shows what it has",
                )
        for parameter in plan.parameters:
            if parameter not in features.parameters:
                near = difflib.get_close_matches(parameter, features.parameters, n=1)
                raise FeatureLackError(
                    f"the {side}'s QEMU {features.version} has no migration parameter {parameter!r}",
                    hint=f"did you mean {near[0]!r}?" if near else "switchover features shows what it has",
                )


def _needs(scenario: Scenario) -> list[str]:
    """What the scenario's devices need of both QEMUs."""
    needs = ["slow-device"] if scenario.guest.slow_device is not None else []
    if scenario.network.iterative_delta:
        needs.append("device-property:virtio-net-pci.x-iterative-delta")
    if scenario.network.iterative_control != "none":
        needs.append(f"device-property:virtio-net-pci.x-iterative-control-{scenario.network.iterative_control}")
    return needs
