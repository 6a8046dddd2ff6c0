"""Trials: for every capability, parameter, mode and transport a migration that exercises it. Tests and the nightly matrix run them.

A trial is a few keys of a scenario over the defaults. What a QEMU, an accelerator or a host lacks is found out when it is
run, and is a skip with its reason.
"""

from __future__ import annotations

from typing import Any

import msgspec

from harness.migrate.modes import CAPABILITIES, IMPLIED, PARAMETERS
from harness.model.scenario import MigrationMode, Scenario

__all__ = ["TRIALS", "Expectations", "Trial", "exercised"]

RATE_PPS = 200
"""Of each stream: low enough for a busy machine, and what is lost is a count of at least a few."""


Expectations = dict[str, int | float | str | bool]
"""A run's keys, and what they must come to (`harness.model.expect`)."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One way to migrate. `migration`, `guest`, `network`: keys of these sections; `requires`: features; `stays`: the guest does not move.

    `group`: what kind of thing it is, for the table. `traffic`: keys of each stream. `expect`: what a run of it must come to beside an
    account of every packet, as in a scenario.
    """

    name: str
    group: str
    migration: dict[str, Any] = {}
    guest: dict[str, Any] = {}
    network: dict[str, Any] = {}
    mechanism: str = "none"
    traffic: dict[str, Any] = {}
    requires: tuple[str, ...] = ()
    stays: bool = False
    expect: Expectations = {}

    @property
    def capabilities(self) -> set[str]:
        """Those that are on in it."""
        mode = MigrationMode(self.migration.get("mode", "precopy"))
        pauses = {"pause-before-switchover"} if self.migration.get("hold_ms") else set()
        implied = {"return-path", "netpass"} if self.mechanism == "netpass" else set()
        return {*self.migration.get("capabilities", ()), *IMPLIED.get(mode, ()), *pauses, *implied, "events"}

    @property
    def parameters(self) -> set[str]:
        """Those that are set in it."""
        extra = set()
        if self.migration.get("mode", "").startswith("cpr-"):
            extra.add("mode")
        if self.migration.get("mode") == "cpr-exec":
            extra.add("cpr-exec-command")
        if self.migration.get("tls"):
            extra |= {"tls-creds", "tls-hostname"}
        return {*self.migration.get("parameters", {}), *extra}


    def scenario(self, *, source: str = "system", destination: str | None = None, machine: str | None = None) -> Scenario:
        """An experiment of about three seconds: this, under traffic both ways. `machine`: the machine type of both QEMUs."""
        guest = self.guest | ({"machine": machine} if machine is not None else {})
        directions = [self.traffic["direction"]] if "direction" in self.traffic else ["to-guest", "from-guest"]
        expect: dict[str, Any] = {"ledger.unexplained": 0, "duplicated": 0}
        if len(directions) == 2 and "outcome" not in self.expect:
            expect["streams.udp-from-guest.lost"] = 0
        if self.mechanism in ("tap-handover", "netpass"):
            expect["lost"] = 0
        document = {
            "name": f"{self.group}-{self.name}", "mechanism": self.mechanism, "guest": guest,
            "network": {"peer": "namespace"} | self.network, "qemu": {"source": source, "destination": destination or source},
            "migration": self.migration, "expect": expect | self.expect,
            "traffic": [{"kind": "udp", "rate_pps": RATE_PPS} | self.traffic | {"direction": each} for each in directions],
            "timing": {"settle_s": 0.3, "tail_s": 0.5, "timeout_s": 90},
        }  # fmt: skip
        return msgspec.convert(document, Scenario)


_SHARED = {"shared_memory": True}
_BUSY = {"dirty_mib_s": 15, "dirty_mib": 32}
_TCP = {"transport": "tcp"}


def _precopy(*capabilities: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"capabilities": capabilities, "parameters": parameters or {}, **more}


def _values(*names: str) -> dict[str, Any]:
    return {name: PARAMETERS[name].trial for name in names}


TRIALS: tuple[Trial, ...] = (
    Trial(name="unix", group="transport", migration={"transport": "unix"}),
    Trial(name="tcp", group="transport", migration={"transport": "tcp"}),
    Trial(name="tcp6", group="transport", migration={"transport": "tcp6"}),
    Trial(name="fd", group="transport", migration={"transport": "fd"}),
    Trial(name="exec", group="transport", migration={"transport": "exec"}),
    Trial(name="file", group="transport", migration={"transport": "file"}),
    Trial(name="hold", group="precopy", migration={"hold_ms": 50}),
    Trial(name="limits", group="precopy", migration=_precopy(parameters=_values("max-bandwidth", "downtime-limit"))),
    Trial(name="switchover-bandwidth", group="precopy", migration=_precopy(parameters=_values("avail-switchover-bandwidth"))),
    Trial(name="return-path", group="precopy", migration=_precopy("return-path")),
    Trial(name="switchover-ack", group="precopy", migration=_precopy("return-path", "switchover-ack")),
    Trial(name="validate-uuid", group="precopy", migration=_precopy("validate-uuid")),
    Trial(name="announce", group="precopy",
          migration=_precopy(parameters=_values("announce-initial", "announce-max", "announce-rounds", "announce-step"))),
    Trial(name="auto-converge", group="precopy", guest=_BUSY, migration=_precopy("auto-converge", parameters={
        **_values("cpu-throttle-initial", "cpu-throttle-increment", "cpu-throttle-tailslow", "max-cpu-throttle",
                  "throttle-trigger-threshold"), "max-bandwidth": 25 << 20, "downtime-limit": 300})),
    Trial(name="dirty-limit", group="precopy", guest=_BUSY,
          migration=_precopy("dirty-limit", parameters=_values("vcpu-dirty-limit", "x-vcpu-dirty-limit-period"))),
    Trial(name="xbzrle", group="precopy", guest=_BUSY,
          migration=_precopy("xbzrle", parameters={**_values("xbzrle-cache-size"), "downtime-limit": 300, "max-bandwidth": 100 << 20})),
    Trial(name="compress", group="precopy", migration=_precopy("compress", parameters=_values(
        "compress-level", "compress-threads", "compress-wait-thread", "decompress-threads"))),
    Trial(name="x-ignore-shared", group="precopy", guest=_SHARED, migration=_precopy("x-ignore-shared")),
    Trial(name="multifd", group="multifd", migration=_precopy("multifd", parameters=_values("multifd-channels"))),
    Trial(name="multifd-tcp-8", group="multifd", migration=_precopy("multifd", parameters={"multifd-channels": 8}, **_TCP)),
    Trial(name="multifd-zlib", group="multifd", migration=_precopy("multifd", parameters=_values(
        "multifd-channels", "multifd-compression", "multifd-zlib-level"))),
    Trial(name="multifd-zstd", group="multifd", migration=_precopy("multifd", parameters={
        "multifd-compression": "zstd", **_values("multifd-channels", "multifd-zstd-level")})),
    Trial(name="multifd-zero-pages", group="multifd",
          migration=_precopy("multifd", parameters=_values("multifd-channels", "zero-page-detection"))),
    Trial(name="zero-copy-send", group="multifd",
          migration=_precopy("multifd", "zero-copy-send", parameters=_values("multifd-channels"), **_TCP)),
    Trial(name="tls", group="tls", migration={"tls": True, **_TCP}),
    Trial(name="tls-unix", group="tls", migration=_precopy(parameters=_values("tls-hostname"), tls=True)),
    Trial(name="tls-authz", group="tls", migration=_precopy(parameters=_values("tls-authz"), tls=True, **_TCP)),
    Trial(name="tls-multifd", group="tls", migration=_precopy("multifd", parameters=_values("multifd-channels"), tls=True, **_TCP)),
    Trial(name="postcopy", group="postcopy", migration={"mode": "postcopy"}),
    Trial(name="postcopy-tcp", group="postcopy", migration={"mode": "postcopy", **_TCP}),
    Trial(name="postcopy-fd", group="postcopy", migration={"mode": "postcopy", "transport": "fd"}),
    Trial(name="postcopy-preempt", group="postcopy", migration=_precopy("postcopy-preempt", mode="postcopy")),
    Trial(name="postcopy-blocktime", group="postcopy", migration=_precopy("postcopy-blocktime", mode="postcopy")),
    Trial(name="postcopy-slow", group="postcopy", migration=_precopy(mode="postcopy", parameters=_values("max-postcopy-bandwidth"))),
    Trial(name="postcopy-release-ram", group="postcopy", migration=_precopy("release-ram", mode="postcopy")),
    Trial(name="postcopy-tls", group="postcopy", migration={"mode": "postcopy", "tls": True, **_TCP}),
    Trial(name="postcopy-recover", group="postcopy", migration=_precopy(
        "postcopy-preempt", mode="postcopy", cut_after_ms=200, parameters={"max-postcopy-bandwidth": 8 << 20}, **_TCP)),
    Trial(name="mapped-ram", group="file", migration=_precopy("mapped-ram", transport="file")),
    Trial(name="mapped-ram-multifd", group="file",
          migration=_precopy("mapped-ram", "multifd", transport="file", parameters=_values("multifd-channels"))),
    Trial(name="mapped-ram-direct", group="file", migration=_precopy("mapped-ram", "multifd", transport="file", parameters=_values(
        "multifd-channels", "direct-io"))),
    Trial(name="background-snapshot", group="file", migration={"mode": "background-snapshot", "transport": "file"}, stays=True),
    Trial(name="cpr-reboot", group="cpr", migration={"mode": "cpr-reboot", "transport": "file"}),
    Trial(name="cpr-reboot-in-place", group="cpr", guest=_SHARED,
          migration=_precopy("x-ignore-shared", mode="cpr-reboot", transport="file")),
    Trial(name="cpr-exec", group="cpr", guest=_SHARED, migration={"mode": "cpr-exec", "transport": "file"}, stays=True),
    Trial(name="cpr-transfer", group="cpr", guest=_SHARED, migration={"mode": "cpr-transfer"}),
    Trial(name="disk", group="disk", guest={"disk": "raw"}),
    Trial(name="disk-qcow2", group="disk", guest={"disk": "qcow2"}),
    Trial(name="late-block-activate", group="disk", guest={"disk": "raw"}, migration=_precopy("late-block-activate")),
    Trial(name="dirty-bitmaps", group="disk", guest={"disk": "qcow2"}, migration=_precopy("dirty-bitmaps")),
    Trial(name="dirty-bitmaps-mapped", group="disk", guest={"disk": "qcow2"},
          migration=_precopy("dirty-bitmaps", parameters=_values("block-bitmap-mapping"))),
    Trial(name="block", group="disk", guest={"disk": "raw"}, migration=_precopy("block", parameters=_values("block-incremental"))),
    Trial(name="zero-blocks", group="disk", guest={"disk": "raw"}, migration=_precopy("zero-blocks")),
    Trial(name="netpass", group="series", mechanism="netpass", migration={"hold_ms": 50, "parameters": _values(
        "netpass-hold-back", "netpass-max-bytes", "netpass-max-packets", "netpass-wait-limit")}),
    Trial(name="virtio-iterative", group="series", migration=_precopy("virtio-iterative")),
)  # fmt: skip
"""All trials; names are unique."""


def exercised() -> tuple[set[str], set[str]]:
    """Names of capabilities and of parameters that some trial has on, or set; former names count for the present one."""
    capabilities, parameters = set[str](), set[str]()
    for trial in TRIALS:
        capabilities |= trial.capabilities & set(CAPABILITIES)
        parameters |= trial.parameters & set(PARAMETERS)
    return capabilities, parameters
