"""Every migration capability, parameter, mode and transport that we know of: what it needs, what it excludes, where it is set.

A pure table and the questions asked of it. A condition is a word ``KIND:VALUE`` or several values of which one will do
(``transport:unix|tcp``); `Circumstances.meets` says what the kinds are. What QEMU lists and this table lacks fails a
unit test, so that nothing new goes unseen.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from harness.model.scenario import MigrationMode, Transport

__all__ = [
    "CAPABILITIES",
    "MODES",
    "PARAMETERS",
    "TRANSPORTS",
    "Circumstances",
    "Setting",
    "Sides",
    "effective_capabilities",
    "effective_parameters",
    "find_setting",
    "settings_for",
]


class Sides(StrEnum):
    """The machines on which something is set. Elsewhere it would be refused, or change what that side does."""

    BOTH = "both"
    SOURCE = "source"
    DESTINATION = "destination"


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What a condition is judged against. `None` for what isn't known yet, against which nothing is held."""

    mode: MigrationMode
    transport: Transport
    capabilities: frozenset[str]
    parameters: dict[str, Any]
    tls: bool = False
    shared_memory: bool | None = None
    disk: bool | None = None
    accelerator: str | None = None

    def meets(self, condition: str) -> bool:
        """Whether one of the condition's values holds."""
        kind, _, values = condition.partition(":")
        return any(self._holds(kind, value) for value in values.split("|"))

    def _holds(self, kind: str, value: str) -> bool:
        name, _, wanted = value.partition("=")
        match kind:
            case "mode":
                return self.mode == value
            case "transport":
                return self.transport == value
            case "capability":
                return value in self.capabilities
            case "parameter":  # NAME: it is given; NAME=VALUE: it is given so
                given = self.parameters.get(name)
                return given is not None and (not wanted or str(given) == wanted)
            case "tls":
                return self.tls
            case "memory":
                return self.shared_memory in (None, True)
            case "disk":
                return self.disk in (None, True)
            case "accelerator":
                return self.accelerator is None or self.accelerator.startswith(value)
        raise ValueError(f"no such kind of condition: {kind}")


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One capability, parameter, mode or transport.

    `since`, `until`: releases of QEMU that have it ("" where all do, or only builds with our series). `former`: the name it had before.
    `trial`: what a test sets to exercise it: for a parameter its value. `skip`: why no test of ours exercises it.
    """

    name: str
    does: str
    sides: Sides = Sides.BOTH
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    former: tuple[str, ...] = ()
    trial: Any = None
    skip: str = ""


def _by_name(*settings: Setting) -> dict[str, Setting]:
    return {setting.name: setting for setting in settings}


_TWO_WAY = "transport:unix|tcp|tcp6|fd"
_SEVERAL_STREAMS = "transport:unix|tcp|tcp6|file"
_LIVE_SOCKETS = "transport:unix|tcp|tcp6"
_COLO = "COLO is fault tolerance, not migration: it never completes, and the guest runs on both sides"
_RDMA = "needs an RDMA device (and RDMA has a transport of its own, which no host of ours can offer)"
_QAT = "needs Intel's QAT accelerator: no QEMU of Debian's has the method qatzip"

CAPABILITIES: dict[str, Setting] = _by_name(
    Setting(name="auto-converge", does="slows the guest down until its memory can be sent faster than it is written", sides=Sides.SOURCE,
            excludes=("capability:dirty-limit",)),
    Setting(name="background-snapshot", does="saves the guest as it was at the start, while it runs on", sides=Sides.SOURCE, since="6.0",
            needs=("mode:background-snapshot",), excludes=("capability:dirty-bitmaps|multifd|return-path|xbzrle|postcopy-blocktime",)),
    Setting(name="block", does="sends the disks too", sides=Sides.SOURCE, until="9.0", needs=("disk:yes", "mode:precopy")),
    Setting(name="compress", does="sends pages compressed by threads of its own", until="9.0",
            excludes=("capability:multifd|xbzrle|postcopy-ram",)),
    Setting(name="dirty-bitmaps", does="sends the disks' dirty bitmaps", needs=("disk:yes",), excludes=("mode:background-snapshot",)),
    Setting(name="dirty-limit", does="holds each vCPU's writing below a rate", sides=Sides.SOURCE, since="8.1",
            needs=("accelerator:kvm",), excludes=("capability:auto-converge",)),
    Setting(name="events", does="MIGRATION events; always on here"),
    Setting(name="late-block-activate", does="the destination leaves the disks alone until its guest runs", needs=("disk:yes",),
            excludes=("mode:background-snapshot",)),
    Setting(name="mapped-ram", does="each page has its place in the file", since="9.0", needs=("transport:file",),
            excludes=("capability:xbzrle|postcopy-ram", "tls:yes", "parameter:multifd-compression=zlib|multifd-compression=zstd")),
    Setting(name="multifd", does="sends pages over several channels", needs=(_SEVERAL_STREAMS,),
            excludes=("capability:xbzrle|postcopy-ram|compress", "mode:background-snapshot")),
    Setting(name="netpass", does="the source passes what arrived in the switchover", needs=("capability:return-path",)),
    Setting(name="pause-before-switchover", does="waits, stopped, until it is told to go on", excludes=("mode:background-snapshot",)),
    Setting(name="postcopy-blocktime", does="measures how long vCPUs wait for pages", sides=Sides.DESTINATION,
            needs=("capability:postcopy-ram",)),
    Setting(name="postcopy-preempt", does="a channel of its own for pages that are waited for", since="7.1",
            needs=("capability:postcopy-ram", _LIVE_SOCKETS)),
    Setting(name="postcopy-ram", does="the guest moves first, its memory follows", needs=(_TWO_WAY,),
            excludes=("capability:x-ignore-shared|multifd|mapped-ram", "mode:background-snapshot|cpr-reboot|cpr-transfer|cpr-exec")),
    Setting(name="rdma-pin-all", does="pins all memory for RDMA", skip=_RDMA),
    Setting(name="release-ram", does="the source frees pages that were sent", sides=Sides.SOURCE, needs=("mode:postcopy",)),
    Setting(name="return-path", does="messages from the destination", needs=(_TWO_WAY,), excludes=("mode:background-snapshot",)),
    Setting(name="switchover-ack", does="no switchover before the destination agrees", since="8.1", needs=("capability:return-path",)),
    Setting(name="validate-uuid", does="refuses a destination with another UUID", excludes=("mode:background-snapshot",)),
    Setting(name="virtio-iterative", does="virtio-net's state is sent ahead"),
    Setting(name="x-colo", does="coarse-grained lock stepping", skip=_COLO),
    Setting(name="x-ignore-shared", does="leaves shared memory where it is", needs=("memory:shared",),
            excludes=("capability:postcopy-ram",)),
    Setting(name="xbzrle", does="sends what changed in a page that was sent before",
            excludes=("capability:multifd|mapped-ram|compress", "mode:background-snapshot")),
    Setting(name="zero-blocks", does="zeros of disks are sent as such", until="11.0", sides=Sides.SOURCE, needs=("disk:yes",)),
    Setting(name="zero-copy-send", does="sends without copying in the kernel", sides=Sides.SOURCE, since="7.1",
            needs=("capability:multifd", "transport:tcp|tcp6"),
            excludes=("tls:yes", "capability:xbzrle", "parameter:multifd-compression=zlib|multifd-compression=zstd")),
)  # fmt: skip
"""Migration capabilities by name."""

_MAPPING = [{"node-name": "disk0", "alias": "disk0-alias", "bitmaps": [{"name": "bitmap0", "alias": "bitmap0-alias"}]}]

PARAMETERS: dict[str, Setting] = _by_name(
    Setting(name="announce-initial", does="ms to the second self-announcement", trial=20),
    Setting(name="announce-max", does="ms between self-announcements, at most", trial=100),
    Setting(name="announce-rounds", does="number of self-announcements", trial=3),
    Setting(name="announce-step", does="ms by which their distance grows", trial=10),
    Setting(name="avail-switchover-bandwidth", does="bytes/s assumed for the switchover", sides=Sides.SOURCE, since="8.2", trial=1 << 30),
    Setting(name="backend-transfer", does="hands the open TAP over", former=(), trial=True, needs=("transport:unix",)),
    Setting(name="local", does="hands open backends over", former=("backend-transfer",), trial=True, needs=("transport:unix",)),
    Setting(name="block-bitmap-mapping", does="names of bitmaps in the stream", trial=_MAPPING,
            needs=("capability:dirty-bitmaps",)),
    Setting(name="block-incremental", does="sends only a disk's top image", until="9.0", sides=Sides.SOURCE, trial=False,
            needs=("capability:block",)),
    Setting(name="compress-level", does="zlib's level", until="9.0", sides=Sides.SOURCE, trial=3, needs=("capability:compress",)),
    Setting(name="compress-threads", does="threads that compress", until="9.0", sides=Sides.SOURCE, trial=2, needs=("capability:compress",)),
    Setting(name="compress-wait-thread", does="waits for a free thread", until="9.0", sides=Sides.SOURCE, trial=True,
            needs=("capability:compress",)),
    Setting(name="decompress-threads", does="threads that decompress", until="9.0", sides=Sides.DESTINATION, trial=2,
            needs=("capability:compress",)),
    Setting(name="cpr-exec-command", does="the command line of the next QEMU; made by the harness", since="10.2", sides=Sides.SOURCE,
            needs=("mode:cpr-exec",)),
    Setting(name="cpu-throttle-increment", does="percent by which a throttle grows", sides=Sides.SOURCE, trial=20,
            needs=("capability:auto-converge",)),
    Setting(name="cpu-throttle-initial", does="percent with which it begins", sides=Sides.SOURCE, trial=50,
            needs=("capability:auto-converge",)),
    Setting(name="cpu-throttle-tailslow", does="grows by less at the end", sides=Sides.SOURCE, trial=True,
            needs=("capability:auto-converge",)),
    Setting(name="max-cpu-throttle", does="percent at which it ends", sides=Sides.SOURCE, trial=90, needs=("capability:auto-converge",)),
    Setting(name="throttle-trigger-threshold", does="percent of dirtied to sent bytes that start it", sides=Sides.SOURCE, trial=40,
            needs=("capability:auto-converge",)),
    Setting(name="direct-io", does="past the page cache", since="9.1", trial=True,
            needs=("capability:mapped-ram", "capability:multifd", "transport:file")),
    Setting(name="downtime-limit", does="ms that a switchover may take", sides=Sides.SOURCE, trial=200),
    Setting(name="max-bandwidth", does="bytes/s in precopy", sides=Sides.SOURCE, trial=1 << 30),
    Setting(name="max-postcopy-bandwidth", does="bytes/s in postcopy", sides=Sides.SOURCE, trial=64 << 20,
            needs=("capability:postcopy-ram",)),
    Setting(name="mode", does="normal or one of CPR's; follows from migration.mode", since="8.2"),
    Setting(name="multifd-channels", does="number of channels", trial=3, needs=("capability:multifd",)),
    Setting(name="multifd-compression", does="none, zlib, zstd, ...", trial="zlib", needs=("capability:multifd",)),
    Setting(name="multifd-qatzip-level", does="QAT's level", since="9.2", skip=_QAT),
    Setting(name="multifd-zlib-level", does="zlib's level", trial=3, sides=Sides.SOURCE,
            needs=("capability:multifd", "parameter:multifd-compression=zlib")),
    Setting(name="multifd-zstd-level", does="zstd's level", trial=3, sides=Sides.SOURCE,
            needs=("capability:multifd", "parameter:multifd-compression=zstd")),
    Setting(name="netpass-hold-back", does="ms for which newer frames wait", trial=500, needs=("capability:netpass",)),
    Setting(name="netpass-max-bytes", does="bytes kept, at most", trial=1 << 20, needs=("capability:netpass",)),
    Setting(name="netpass-max-packets", does="frames kept, at most", trial=5000, needs=("capability:netpass",)),
    Setting(name="netpass-wait-limit", does="ms to wait for the destination", trial=5000, needs=("capability:netpass",)),
    Setting(name="tls-authz", does="whom the destination accepts", sides=Sides.DESTINATION, trial="authz0", needs=("tls:yes",)),
    Setting(name="tls-creds", does="the keys; set by migration.tls", needs=("tls:yes",)),
    Setting(name="tls-hostname", does="the name in the destination's certificate", sides=Sides.SOURCE, trial="switchover.test",
            needs=("tls:yes",)),
    Setting(name="vcpu-dirty-limit", does="MiB/s per vCPU", since="8.1", sides=Sides.SOURCE, trial=10, needs=("capability:dirty-limit",)),
    Setting(name="x-vcpu-dirty-limit-period", does="ms between two looks at it", since="8.1", sides=Sides.SOURCE, trial=500,
            needs=("capability:dirty-limit",)),
    Setting(name="x-checkpoint-delay", does="ms between COLO's checkpoints", skip=_COLO),
    Setting(name="x-rdma-chunk-size", does="RDMA's unit", since="10.2", skip=_RDMA),
    Setting(name="xbzrle-cache-size", does="bytes of earlier pages", sides=Sides.SOURCE, trial=16 << 20, needs=("capability:xbzrle",)),
    Setting(name="zero-page-detection", does="none, legacy or by multifd's threads", since="9.0", sides=Sides.SOURCE, trial="multifd",
            needs=("capability:multifd",)),
)  # fmt: skip
"""Migration parameters by name; `trial` is a value that a test gives them."""

MODES: dict[MigrationMode, Setting] = {
    MigrationMode(setting.name): setting
    for setting in (
        Setting(name="none", does="no migration"),
        Setting(name="stop-cont", does="a known outage"),
        Setting(name="precopy", does="memory first, then the guest"),
        Setting(name="postcopy", does="the guest first, then memory", needs=(_TWO_WAY,)),
        Setting(name="background-snapshot", does="saves the guest, which stays where it is", since="6.0", needs=("transport:file",)),
        Setting(name="cpr-reboot", does="saves the guest, ends QEMU, starts another one from it", since="8.2", needs=("transport:file",)),
        Setting(name="cpr-transfer", does="a new QEMU takes over memory in place", since="10.0",
                needs=("memory:shared", _LIVE_SOCKETS)),
        Setting(name="cpr-exec", does="QEMU executes its successor in its own process", since="10.2",
                needs=("memory:shared", "transport:file")),
    )
}  # fmt: skip

TRANSPORTS: dict[Transport, Setting] = {
    Transport(setting.name): setting
    for setting in (
        Setting(name="unix", does="a UNIX socket in the lab"),
        Setting(name="tcp", does="IPv4"),
        Setting(name="tcp6", does="IPv6"),
        Setting(name="fd", does="a socket pair that both inherit", excludes=("mode:cpr-transfer", "tls:yes")),
        Setting(name="exec", does="a command at either end, with a pipe between them: one way only",
                excludes=("mode:postcopy|cpr-transfer", "tls:yes")),
        Setting(name="file", does="a file, which the destination reads when it is complete", since="8.2",
                excludes=("mode:postcopy|cpr-transfer", "tls:yes")),
    )
}  # fmt: skip

IMPLIED: dict[MigrationMode, tuple[str, ...]] = {
    MigrationMode.POSTCOPY: ("postcopy-ram",),
    MigrationMode.BACKGROUND_SNAPSHOT: ("background-snapshot",),
}
"""Capabilities that a mode switches on by itself."""

CPR_MODES = frozenset({MigrationMode.CPR_REBOOT, MigrationMode.CPR_TRANSFER, MigrationMode.CPR_EXEC})


def find_setting(kind: str, name: str) -> Setting | None:
    """The table's entry for a capability or parameter, under its present or a former name."""
    table = CAPABILITIES if kind == "capability" else PARAMETERS
    return table.get(name) or next((setting for setting in table.values() if name in setting.former), None)


def effective_capabilities(mode: MigrationMode, wanted: tuple[str, ...], *, pauses: bool = False) -> tuple[str, ...]:
    """All capabilities that will be on: those asked for and those that the mode implies."""
    extra = ("pause-before-switchover",) if pauses else ()
    return tuple(dict.fromkeys((*wanted, *IMPLIED.get(mode, ()), *extra, "events")))


def effective_parameters(mode: MigrationMode, wanted: dict[str, Any], *, tls: bool = False) -> dict[str, Any]:
    """All parameters that will be set, but for those whose value the lab makes (keys, commands)."""
    given = dict(wanted)
    if mode in CPR_MODES:
        given["mode"] = str(mode)
    if tls:
        given.setdefault("tls-creds", "tls0")
    return given


def settings_for(side: Sides, capabilities: tuple[str, ...], parameters: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What is set on one side. A name that the table doesn't know (a patched QEMU's own) is set on both."""

    def here(kind: str, name: str) -> bool:
        setting = find_setting(kind, name)
        return setting is None or setting.sides in (Sides.BOTH, side)

    return (
        [name for name in capabilities if here("capability", name)],
        {name: value for name, value in parameters.items() if here("parameter", name)},
    )
