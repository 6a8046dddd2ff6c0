"""What a QEMU can do: asked of the binary itself, once per build, never inferred from its version.

Capabilities, parameters, netdev options, device properties and filter properties are different name spaces, and a feature
may have moved from one to another between two versions of its series. `FEATURES` is the one table that knows: each
feature of ours and what it may be called. Everything else is spelt ``KIND:NAME`` (`KINDS`).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from qemu.qmp import ExecuteError, QMPError

from harness.errors import FeatureLackError, TestbedError, UsageError
from harness.host.deadline import Deadline
from harness.host.warden import Warden
from harness.vm.qmp import Qmp

__all__ = ["FEATURES", "KINDS", "Features", "MachineType", "discover"]

NIC = "virtio-net-pci"
SLOW_DEVICE = "slow-migration-device"
PC = "generic-pc-machine"
"""The type that all machines called pc-... derive from."""
_QMP_FD = 3
_DEADLINE_S = 60.0  # a loaded machine may take seconds to start QEMU; one that hangs is named

DEVICES = (NIC, SLOW_DEVICE, "hpet", "vmport")
"""The devices that are asked about. Not all of a QEMU's: listing them loads every module, which a QEMU in a prefix of its
own may not survive (10.0 and 11.1 look for modules in the host's folder, and abort when they are another build's)."""

FEATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cpr-exec": (("parameter-value:mode=cpr-exec",),),
    "cpr-transfer": (("parameter-value:mode=cpr-transfer",),),
    "downtime-checkpoints": (("trace:vmstate_downtime_checkpoint",),),
    "filter-when-stopped": (("filter-property:enable_when_stopped", "filter-property:enable-when-stopped"),),
    "local-tap": (
        ("parameter:backend-transfer", "parameter:local"),
        ("netdev-option:tap.incoming-fds", "netdev-option:tap.local-migration-supported"),
    ),
    "multifd": (("capability:multifd",),),
    "netpass": (("capability:netpass",),),
    "pause-before-switchover": (("capability:pause-before-switchover",), ("command:migrate-continue",)),
    "postcopy": (("capability:postcopy-ram",), ("command:migrate-start-postcopy",)),
    "redirect": (
        ("filter-property:enable_when_stopped", "filter-property:enable-when-stopped"),
        ("filter-property:filter-mirror.passed",),
        ("filter-property:filter-buffer.release",),
    ),
    "redirect-packet": (("filter-property:filter-redirector.packet_fd",), ("filter-property:filter-redirector.only_injected",)),
    "return-path": (("capability:return-path",),),
    "ring-status": (("command:x-query-virtio-queue-status",),),
    "slow-device": ((f"device:{SLOW_DEVICE}",),),
    "switchover-ack": (("capability:switchover-ack",),),
    "virtio-iterative": (("capability:virtio-iterative", f"device-property:{NIC}.early-mig"),),
    "vm-started": (("migration-property:send-vm-started",),),
}
"""Each feature: groups of ``KIND:NAME``. A QEMU has the feature when it has at least one of *every* group."""


class Qemu(Protocol):
    """What discovery needs of a QEMU (a `QemuInstall`, for one)."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> list[str]: ...
    @property
    def build_id(self) -> str: ...


class MachineType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine type. `alias` is the short name that stands for it ("q35"); `default` is what QEMU takes unasked."""

    name: str
    alias: str | None = None
    default: bool = False
    deprecated: bool = False


class Features(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one QEMU build offers. Every tuple is sorted; `name` is what the install was called when this was asked.

    `parameter_values` has the words that a parameter takes, where it takes words. `netdev_options` maps a backend
    ("tap") to its options, `device_properties` each device of `DEVICES` that is there to its properties,
    `filter_properties` a filter class to its own. `machine_properties` are those of every PC machine. `kvm` says that KVM is compiled in, not that it works here.
    """

    schema_version: Literal[2] = 2
    name: str
    version: str
    package: str
    build_id: str
    kvm: bool
    capabilities: tuple[str, ...]
    parameters: tuple[str, ...]
    parameter_values: dict[str, tuple[str, ...]]
    migration_properties: tuple[str, ...]
    commands: tuple[str, ...]
    events: tuple[str, ...]
    netdev_options: dict[str, tuple[str, ...]]
    device_properties: dict[str, tuple[str, ...]]
    filter_properties: dict[str, tuple[str, ...]]
    trace_events: tuple[str, ...]
    machines: tuple[MachineType, ...]
    machine_properties: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"QEMU {self.version} ({self.name})"

    def has(self, wish: str) -> bool:
        """Whether this QEMU has a feature of `FEATURES` or a ``KIND:NAME``; `UsageError` for what is neither."""
        return not self.lacking([wish])

    def lacking(self, wishes: Iterable[str]) -> list[str]:
        """For each wish that this QEMU can't fulfil, the exact reason, fit for a skip; in the order of the wishes.

        A wish is a key of `FEATURES` or ``KIND:NAME``. `UsageError`, with the nearest word, for any other.
        """
        reasons = []
        for wish in wishes:
            feature, _, of_kind = wish.partition(":")
            groups = ((wish,),) if of_kind else FEATURES.get(feature)
            if groups is None:
                raise _unknown("feature", wish, [*FEATURES, *(f"{kind}:NAME" for kind in KINDS)])
            missing = [group for group in groups if not any(self._offers(each) for each in group)]
            if missing:
                words = "; ".join(_no(group) for group in missing)
                reasons.append(f"{self} has {words}{self._nearest(wish)}" if of_kind else f"{self} lacks {wish}: {words}")
        return reasons

    def spelling(self, feature: str) -> tuple[str, ...]:
        """For each group of a feature of `FEATURES` the name that this QEMU knows it by, kind and owner left off.

        `FeatureLackError` with the exact reason where it lacks the feature.
        """
        if lacking := self.lacking([feature]):
            raise FeatureLackError("; ".join(lacking))
        chosen = (next(each for each in group if self._offers(each)) for group in FEATURES[feature])
        return tuple(_split(each)[1].rpartition(".")[2] for each in chosen)

    def _offers(self, wish: str) -> bool:
        kind, name = _split(wish)
        if kind == "device" and name not in DEVICES:
            raise _unknown("device that is asked about", name, DEVICES)
        return name in KINDS[kind][1](self)

    def _nearest(self, wish: str) -> str:
        """A misspelt name would be a skip for ever: name what it may have meant."""
        kind, name = _split(wish)
        near = difflib.get_close_matches(name, KINDS[kind][1](self), n=1, cutoff=0.8)
        return f" (the nearest that it has is {near[0]!r})" if near else ""


def _qualified(groups: dict[str, tuple[str, ...]]) -> set[str]:
    """Both spellings of a member: "backend.option" and, for any backend, "option"."""
    return {spelling for group, names in groups.items() for name in names for spelling in (f"{group}.{name}", name)}


KINDS: dict[str, tuple[str, Callable[[Features], Collection[str]]]] = {
    "capability": ("migration capability", lambda has: has.capabilities),
    "parameter": ("migration parameter", lambda has: has.parameters),
    "parameter-value": (
        "migration parameter value",
        lambda has: {f"{name}={word}" for name, words in has.parameter_values.items() for word in words},
    ),
    "migration-property": ("property of the migration object", lambda has: has.migration_properties),
    "command": ("QMP command", lambda has: has.commands),
    "event": ("QMP event", lambda has: has.events),
    "netdev": ("netdev backend", lambda has: has.netdev_options),
    "netdev-option": ("netdev option", lambda has: _qualified(has.netdev_options)),
    "device": ("device", lambda has: has.device_properties),
    "device-property": ("device property", lambda has: _qualified(has.device_properties)),
    "filter": ("network filter", lambda has: has.filter_properties),
    "filter-property": ("filter property", lambda has: _qualified(has.filter_properties)),
    "trace": ("trace event", lambda has: has.trace_events),
    "machine-property": ("property of the PC machines", lambda has: has.machine_properties),
    "machine": (
        "machine type",
        lambda has: {name for machine in has.machines for name in (machine.name, machine.alias) if name},
    ),
}
"""Kinds of names that can be wished for: what they are called in a reason, and where `Features` keeps them."""


def _split(wish: str) -> tuple[str, str]:
    kind, _, name = wish.partition(":")
    if kind not in KINDS:
        raise _unknown("kind of feature", kind, KINDS)
    return kind, name


def _unknown(what: str, word: str, known: Iterable[str]) -> UsageError:
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    return UsageError(
        f"there is no {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else ""), hint=f"known: {', '.join(known)}"
    )


def _no(group: Iterable[str]) -> str:
    """ "no migration parameter 'backend-transfer' or 'local'": the kind is said when it changes."""
    words, said = [], ""
    for kind, name in map(_split, group):
        title = KINDS[kind][0]
        words.append(repr(name) if title == said else f"{title} {name!r}")
        said = title
    return f"no {' or '.join(words)}"


# -- asking


async def discover(qemu: Qemu, *, cache: Path) -> Features:
    """The features of `qemu`, from ``cache/features/<build_id>.json`` or, the first time, from QEMU itself.

    QEMU runs without a guest, in namespaces of its own. Raises `ProcessError` with QEMU's own words when it doesn't
    come up, `DeadlineError` when it doesn't answer. A cache that can't be written is no error.
    """
    memory = cache / "features" / f"{qemu.build_id}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):  # not there, or of another layout
        return msgspec.structs.replace(msgspec.json.decode(memory.read_bytes(), type=Features), name=qemu.name)
    features = await _ask(qemu)
    with contextlib.suppress(OSError):
        _write(memory, features)
    return features


def _write(path: Path, features: Features) -> None:
    """Complete or not at all, also with several writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        fresh = Path(file.name)
        try:
            file.write(msgspec.json.encode(features))
            file.close()
            fresh.chmod(0o644)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def discovery_argv(start: Iterable[str]) -> list[str]:
    """A QEMU that answers questions and does nothing else. Any accelerator will do: nothing runs."""
    return [
        *start,
        "-machine", "none,accel=tcg:kvm:qtest",
        "-nodefaults", "-no-user-config",
        "-display", "none",
        "-S",
        "-chardev", f"socket,id=qmp,fd={_QMP_FD}",
        "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip


async def _ask(qemu: Qemu) -> Features:
    deadline = Deadline(_DEADLINE_S)
    async with Warden() as warden:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await warden.spawn(
                f"QEMU {qemu.name}", discovery_argv(qemu.start), fds={_QMP_FD: theirs.fileno()},
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        qmp = Qmp(f"QEMU {qemu.name}")
        try:
            await qmp.attach(ours, deadline=deadline)
            return await ask(qmp, name=qemu.name, build_id=qemu.build_id, deadline=deadline)
        except (QMPError, OSError, EOFError, TestbedError) as error:
            # A connection that broke because QEMU went away tells less than QEMU's last words.
            with contextlib.suppress(TestbedError):
                await process.wait(deadline.within(1.0))
            if process.returncode is not None:
                raise process.error("could not be asked what it can do") from error
            if isinstance(error, TestbedError):
                raise
            raise TestbedError(f"QEMU {qemu.name} could not be asked what it can do: {error}") from error
        finally:
            await qmp.detach()


async def ask(qmp: Qmp, *, name: str, build_id: str, deadline: Deadline) -> Features:
    """The features of the QEMU at the other end. What this QEMU has no way to tell is empty."""

    async def query(command: str, **arguments: Any) -> Any:
        return await deadline.wait(qmp.execute(command, arguments or None), awaited=f"{qmp.who}'s answer to {command}")

    async def entries(command: str, *, key: str = "name", **arguments: Any) -> tuple[str, ...]:
        try:
            return _sorted(entry[key] for entry in await query(command, **arguments))
        except ExecuteError:  # a type, or the whole command, was left out of this build
            return ()

    async def members(command: str, types: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Each of `types` that is there, and its properties."""
        found = {kind: await entries(command, typename=kind) for kind in types}
        return {kind: names for kind, names in found.items() if names}

    schema = _Schema(await query("query-qmp-schema"))
    version = await query("query-version")
    numbers = version["qemu"]
    settable = schema.arguments("migrate-set-parameters")
    capabilities = {*await entries("query-migrate-capabilities", key="capability"), *schema.words("MigrationCapability")}
    filters = [kind for kind in schema.variants("object-add") if kind.startswith("filter-")]
    return Features(
        name=name,
        version=f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}",
        package=version["package"],
        build_id=build_id,
        kvm=(await query("query-kvm"))["present"],
        capabilities=_sorted(capabilities),
        parameters=_sorted({*settable, *await query("query-migrate-parameters")}),
        parameter_values={key: words for key, kind in sorted(settable.items()) if (words := schema.words(kind))},
        migration_properties=await entries("qom-list-properties", typename="migration"),
        commands=schema.names("command"),
        events=schema.names("event"),
        netdev_options=schema.variants("netdev_add"),
        device_properties=await members("device-list-properties", DEVICES),
        filter_properties=await members("qom-list-properties", filters),
        trace_events=await entries("trace-event-get-state", **{"name": "*"}),
        machines=tuple(
            MachineType(
                name=machine["name"], alias=machine.get("alias"), default=machine.get("is-default", False),
                deprecated=machine.get("deprecated", False),
            )
            for machine in sorted(await query("query-machines"), key=lambda machine: str(machine["name"]))
        ),
        machine_properties=await entries("qom-list-properties", typename=PC),
    )  # fmt: skip


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


class _Schema:
    """The answer to query-qmp-schema. Types have no names in it, only numbers: they are found through their users."""

    def __init__(self, entities: Iterable[dict[str, Any]]) -> None:
        self._entities = {(entity["meta-type"] in ("command", "event"), entity["name"]): entity for entity in entities}

    def _type(self, name: str) -> dict[str, Any]:
        return self._entities.get((False, name), {})

    def names(self, meta_type: str) -> tuple[str, ...]:
        return _sorted(name for (_, name), entity in self._entities.items() if entity["meta-type"] == meta_type)

    def _argument_type(self, command: str) -> dict[str, Any]:
        return self._type(self._entities.get((True, command), {}).get("arg-type", ""))

    def arguments(self, command: str) -> dict[str, str]:
        """A command's arguments and their types."""
        return {member["name"]: member["type"] for member in self._argument_type(command).get("members", ())}

    def words(self, kind: str) -> tuple[str, ...]:
        """The values of an enumeration; empty for any other type."""
        return _sorted(self._type(kind).get("values", ()))

    def variants(self, command: str) -> dict[str, tuple[str, ...]]:
        """For a command whose argument is a union: each branch and the arguments it adds."""
        return dict(sorted(self._branches(command)))

    def _branches(self, command: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for variant in self._argument_type(command).get("variants", ()):
            members = self._type(variant["type"]).get("members", ())
            yield variant["case"], _sorted(member["name"] for member in members)
