"""One machine for two QEMUs: a type that both have, without the devices of its board that only one was built with."""

from __future__ import annotations

from harness.errors import FeatureLackError
from harness.vm.discovery import Features

__all__ = ["BOARD", "common_machine", "common_type"]

BOARD: dict[str, str] = {"hpet": "hpet", "vmport": "vmport"}
"""Devices that a PC's board brings unasked where QEMU was built with them (vmport with vmmouse), and the machine property that leaves each out.

Each has a section of its own in a migration's stream, which a QEMU without the device refuses."""

_LISTED = "`switchover features --json` shows its machine types"


def common_type(machine: str, *, source: Features, destination: Features) -> str:
    """A machine type that is the same one at both sides. A short name ("q35") that stands for two is pinned to the older QEMU's.

    `FeatureLackError`, with the newest that both have, where a side doesn't know it.
    """
    for side in (source, destination):
        if lacking := side.lacking([f"machine:{machine}"]):
            mend = _newest(machine, source, destination)
            # The nearest name would be a misspelling's mend, and where a type of the family is there this is none.
            raise FeatureLackError(f"{side} has no machine type {machine!r}" if mend else lacking[0], hint=mend or _LISTED)
    older, newer = sorted((source, destination), key=lambda side: _numbers(side.version))
    pinned = _full_name(machine, older)
    if pinned == _full_name(machine, newer):
        return machine
    if newer.lacking([f"machine:{pinned}"]):
        raise FeatureLackError(
            f"QEMU {newer.version} has no machine type {pinned}, the newest {machine} of {older.version}", hint=_newest(pinned, older, newer) or _LISTED
        )
    return pinned


def common_machine(machine: str, *, source: Features, destination: Features) -> tuple[str, tuple[str, ...]]:
    """The machine of both sides as `-machine` takes it, and what there is to say about it, for the run's notes.

    `FeatureLackError` where it can't be made the same at both.
    """
    pinned = common_type(machine, source=source, destination=destination)
    notes = [] if pinned == machine else [f"machine type {pinned}: what {machine} is at the older QEMU"]
    if not _full_name(pinned, source).startswith("pc"):
        return pinned, tuple(notes)
    without = {}
    for option, device in BOARD.items():
        poor = [side for side in (source, destination) if side.lacking([f"device:{device}"])]
        if len(poor) == 1:
            without[option] = poor[0]
    for option, side in without.items():
        for each in (source, destination):
            if each.lacking([f"machine-property:{option}"]):
                raise FeatureLackError(f"{side} was built without {BOARD[option]}, and {each} can't leave it out of a machine")
        notes.append(f"both machines are without {BOARD[option]}, which {side} was built without")
    return ",".join([pinned, *(f"{option}=off" for option in without)]), tuple(notes)


def _full_name(machine: str, features: Features) -> str:
    return next((each.name for each in features.machines if each.alias == machine), machine)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _newest(machine: str, one: Features, other: Features) -> str:
    """The mend: the newest type of the same family that both sides have; empty where there is none."""
    family = machine.rpartition("-")[0]
    shared = {each.name for each in one.machines} & {each.name for each in other.machines}
    same = sorted((name for name in shared if family and name.rpartition("-")[0] == family), key=lambda name: _numbers(name.rpartition("-")[2]))
    return f"set guest.machine to {same[-1]}, the newest that both have" if same else ""
