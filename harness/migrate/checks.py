"""Refuse a plan that can't work before anything boots."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from harness.errors import FeatureLackError, UsageError
from harness.host.facts import require_userfaultfd
from harness.migrate.mechanisms import make_mechanism
from harness.migrate.modes import (
    MODES,
    TRANSPORTS,
    Circumstances,
    Setting,
    Sides,
    effective_capabilities,
    effective_parameters,
    find_setting,
    settings_for,
)
from harness.model.plan import MigrationPlan
from harness.model.scenario import DiskFormat, MigrationMode, Obstacle, Scenario, Topology, Transport
from harness.vm.discovery import Features

__all__ = ["check_host", "check_plan"]


def check_host(plan: MigrationPlan) -> None:
    """`EnvironmentLackError` for what this host lacks, whatever QEMU it is: tried now, since QEMU would say so only when both guests are up."""
    if plan.mode is MigrationMode.POSTCOPY or "postcopy-ram" in plan.capabilities:
        require_userfaultfd()


def check_plan(
    plan: MigrationPlan, *, scenario: Scenario, source: Features, destination: Features, accelerator: str | None = None
) -> None:
    """`UsageError` for what can never work, `FeatureLackError` for what these QEMUs (or this accelerator) lack."""
    for side, features in ((Sides.SOURCE, source), (Sides.DESTINATION, destination)):
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
    if mechanism.steers_bridge and scenario.network.topology is not Topology.ONE_BRIDGE:
        raise UsageError(
            f"{plan.mechanism} works on one bridge, network.topology is {scenario.network.topology}", hint='set network.topology to "one-bridge"'
        )
    network = scenario.network
    if network.topology is Topology.TWO_HOSTS and (plan.transport is not Transport.TCP or scenario.guest.shared_memory):
        raise UsageError(
            f"between two hosts a migration goes over TCP, and nothing is shared; migration.transport is {plan.transport}",
            hint='set migration.transport to "tcp", and guest.shared_memory to false',
        )
    if network.topology is not Topology.TWO_HOSTS and (network.link_mbit_s or network.link_delay_ms or network.link_loss_percent):
        raise UsageError("only two hosts have a migration link", hint='set network.topology to "two-hosts", or leave network.link_* out')
    mechanism.refuse(plan, scenario)
    wanted = tuple(dict.fromkeys((*plan.capabilities, *mechanism.capabilities, *plan.only_at_source)))
    parameters = effective_parameters(plan.mode, plan.parameters, tls=plan.tls)
    circumstances = Circumstances(
        mode=plan.mode, transport=plan.transport, parameters=parameters, tls=plan.tls, accelerator=accelerator,
        capabilities=frozenset(effective_capabilities(plan.mode, wanted, pauses=plan.pauses or mechanism.needs_pause)),
        shared_memory=scenario.guest.shared_memory, disk=scenario.guest.disk is not DiskFormat.NONE,
    )  # fmt: skip
    _check_way(plan)
    _check_conditions(circumstances, given=plan.parameters)
    sides = ((Sides.SOURCE, source), (Sides.DESTINATION, destination))
    for side, features in sides:
        if lacking := features.lacking(mechanism.features):
            raise FeatureLackError(
                f"the mechanism {plan.mechanism} does not work at the {side}: {'; '.join(lacking)}",
                hint="take the build of `switchover qemu build reference`, or another mechanism",
            )
    for side, features in sides:
        for needed in _needs(scenario):
            if reasons := features.lacking([needed]):
                raise FeatureLackError(f"the {side}: {reasons[0]}", hint="the build named reference has it")
        _check_features(circumstances, side, features, without=plan.only_at_source if side is Sides.DESTINATION else ())


def _check_way(plan: MigrationPlan) -> None:
    """What the modes' own keys ask of each other."""
    if plan.mode is MigrationMode.CPR_EXEC and (plan.pauses or plan.cancels or plan.fault or plan.obstacle or plan.start_after_ms is not None):
        raise UsageError(
            "a QEMU that executes its successor can't be held, cancelled or hindered on the way",
            hint="leave hold_ms, cancel_..., fault, obstacle and start_after_ms out, or set migration.mode to cpr-transfer",
        )
    if plan.cut_after_ms is not None and plan.mode is not MigrationMode.POSTCOPY:
        raise UsageError(f"only postcopy can recover from a cut, the mode is {plan.mode}", hint="leave migration.cut_after_ms out")
    if plan.mode is MigrationMode.BACKGROUND_SNAPSHOT and plan.pauses:
        raise UsageError("a background snapshot has no switchover", hint="set migration.hold_ms to 0, and cancel_at_switchover to false")
    if plan.obstacle is Obstacle.FULL_DISK and plan.transport is not Transport.FILE:
        raise UsageError("only a file can meet a full disk", hint="set migration.transport to file")
    if plan.obstacle is not None and plan.cancels:
        raise UsageError("a migration that is meant to fail can't be cancelled too", hint="leave migration.obstacle out")
    if plan.cancel_at_percent is not None and plan.cancel_at_switchover:
        raise UsageError("a migration is cancelled once", hint="leave one out: cancel_at_percent or cancel_at_switchover")


def _check_conditions(circumstances: Circumstances, *, given: dict[str, object]) -> None:
    """What each thing that is asked for needs and excludes. All departures are said at once."""
    problems = list(_problems("mode", MODES[circumstances.mode], circumstances))
    problems += _problems("transport", TRANSPORTS[circumstances.transport], circumstances)
    for kind, names in (("capability", sorted(circumstances.capabilities)), ("parameter", list(given))):
        for name in names:
            if (setting := find_setting(kind, name)) is not None:
                problems += _problems(kind, setting, circumstances)
    if not problems:
        return
    accelerator = [p for p in problems if "accelerator" in p[1]]
    if len(accelerator) == len(problems):  # it could be meant, elsewhere
        raise FeatureLackError(accelerator[0][0], hint=accelerator[0][1])
    first, mend = problems[0]
    more = "".join(f"\n  {wrong}\n    mend: {how}" for wrong, how in problems[1:])
    raise UsageError(f"{first}{more}", hint=mend)


def _problems(kind: str, setting: Setting, circumstances: Circumstances) -> Iterator[tuple[str, str]]:
    """(what is wrong, how to mend it) for every condition of one entry that does not hold."""
    who = f"{kind} {setting.name}"
    for condition in setting.needs:
        if not circumstances.meets(condition):
            yield f"{who} needs {_say(condition)}", _mend(condition)
    for condition in setting.excludes:
        for value in condition.partition(":")[2].split("|"):
            clash = f"{condition.partition(':')[0]}:{value}"
            if circumstances.meets(clash):
                yield f"{who} and {_say(clash)} exclude each other", f"leave one out: {setting.name} or {value}"


def _say(condition: str) -> str:
    kind, _, values = condition.partition(":")
    words = " or ".join(values.split("|"))
    if kind == "memory":
        return "shared memory"
    if kind == "disk":
        return "a disk"
    if kind == "tls":
        return "TLS"
    return f"{kind} {words}"


_MENDS = {
    "capability": "add it to migration.capabilities: {value}",
    "mode": "set migration.mode to {value}",
    "transport": "set migration.transport to {value}",
    "memory": 'set guest.shared_memory to true',
    "disk": 'set guest.disk to "raw" or "qcow2"',
    "tls": "set migration.tls to true",
    "parameter": "set it in [migration.parameters]: {value}",
    "accelerator": "use accelerator {value} (with KVM's dirty ring for dirty-limit), where it works",
}


def _mend(condition: str) -> str:
    kind, _, values = condition.partition(":")
    return _MENDS[kind].format(value=" or ".join(values.split("|")))


def _check_features(circumstances: Circumstances, side: Sides, features: Features, *, without: tuple[str, ...]) -> None:
    """Whether one side's QEMU has what is to be set there."""
    capabilities, parameters = settings_for(side, tuple(sorted(circumstances.capabilities.difference(without))), circumstances.parameters)
    for kind, names, known in (
        ("capability", capabilities, features.capabilities), ("parameter", list(parameters), features.parameters),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                setting = find_setting(kind, name)
                since = f"; it came with {setting.since}" if setting is not None and setting.since else ""
                raise FeatureLackError(
                    f"the {side}'s QEMU {features.version} has no migration {kind} {name!r}{since}",
                    hint=f"did you mean {near[0]!r}?" if near else "switchover features shows what it has",
                )
    for name, words in features.parameter_values.items():
        given = parameters.get(name)
        if given is not None and str(given) not in words:
            raise FeatureLackError(
                f"the {side}'s QEMU {features.version} has no migration parameter value {name}={given}", hint=f"it has {', '.join(words)}"
            )


def _needs(scenario: Scenario) -> list[str]:
    """What the scenario's devices need of both QEMUs."""
    needs = ["slow-device"] if scenario.guest.slow_device is not None else []
    if scenario.network.iterative_delta:
        needs.append("device-property:virtio-net-pci.x-iterative-delta")
    if scenario.network.iterative_control != "none":
        needs.append(f"device-property:virtio-net-pci.x-iterative-control-{scenario.network.iterative_control}")
    return needs
