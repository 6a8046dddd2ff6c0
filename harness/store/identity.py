"""What a run may be compared with: the same host, accelerator, QEMU, guest kernel and scenario, each by what makes it the same."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from harness.model.baseline import RunKey
from harness.model.result import RunResult
from harness.model.scenario import Scenario, TrafficSection

__all__ = ["run_key"]

_HOST_FACTS = ("cpu_model", "cores_usable", "architecture", "virtualised", "kernel")
_NO_PART_OF_IT = ("description", "expect", "qemu")
"""Of a scenario: what changes nothing of the run, and what is a part of the key by itself."""


def run_key(result: RunResult) -> RunKey:
    """The key of a run, from its result alone."""
    source, destination = result.qemu.source.name, result.qemu.destination.name
    return RunKey(
        host=_host(result.host), accelerator=result.accelerator,
        qemu=source if source == destination else f"{source} -> {destination}",
        kernel=result.guest.kernel,
        scenario=f"{result.scenario.name}-{_settings(result.scenario)}",
    )  # fmt: skip


def _host(facts: dict[str, Any]) -> str:
    mine = {name: facts.get(name) for name in _HOST_FACTS}
    digest = hashlib.sha256(msgspec.json.encode(mine, order="deterministic")).hexdigest()[:8]
    return f"{mine['cpu_model']} x {mine['cores_usable']}, Linux {mine['kernel']} ({digest})"


def _settings(scenario: Scenario) -> str:
    """A digest of all that is not as it would be by itself: a key that a later version adds changes no digest."""
    plain = msgspec.to_builtins(scenario)
    for name in _NO_PART_OF_IT:
        plain.pop(name)
    for name in ("kernel", "modules", "image"):  # what was booted stands in the key, not where its file lay
        plain["guest"].pop(name)
    plain["traffic"] = [_changed(each, msgspec.to_builtins(TrafficSection())) for each in plain["traffic"]]
    changed = _changed(plain, msgspec.to_builtins(Scenario(name=scenario.name)))
    return hashlib.sha256(msgspec.json.encode(changed, order="deterministic")).hexdigest()[:8]


def _changed(given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict):
            value = _changed(value, usual[name])
            if value:
                found[name] = value
        elif value != usual.get(name):
            found[name] = value
    return found
