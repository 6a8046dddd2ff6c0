"""A machine for two QEMUs: the type means the same at both, and neither has a device that the other was built without."""

from __future__ import annotations

import msgspec
import pytest

from harness.errors import FeatureLackError
from harness.vm.board import BOARD, common_machine, common_type
from harness.vm.discovery import Features, MachineType

OLD, NEW = "pc-q35-10.0", "pc-q35-11.1"


def features(name: str, version: str, *machines: str, devices: tuple[str, ...] = tuple(BOARD.values())) -> Features:
    known = [MachineType(name=each, alias="q35" if each == machines[0] else None) for each in machines]
    return Features(
        name=name, version=version, package="", build_id=name, kvm=False, capabilities=(), parameters=(), parameter_values={},
        migration_properties=(), commands=(), events=(), netdev_options={}, device_properties=dict.fromkeys(devices, ("x",)),
        filter_properties={}, trace_events=(), machines=(*known, MachineType(name="microvm")), machine_properties=tuple(BOARD),
    )  # fmt: skip


STOCK = features("stock", "10.0.13", OLD, "pc-q35-9.2")
SMALL = features("small", "10.0.13", OLD, "pc-q35-9.2", devices=())
NEWER = features("newer", "11.1.3", NEW, OLD)


@pytest.mark.parametrize(("source", "destination"), [(STOCK, STOCK), (SMALL, SMALL), (NEWER, NEWER)])
def test_what_needs_no_care_is_left_as_it_is(source, destination):
    assert common_machine("q35", source=source, destination=destination) == ("q35", ())


def test_what_one_was_built_without_both_go_without_and_the_run_says_so():
    machine, notes = common_machine("q35", source=STOCK, destination=SMALL)
    assert machine == "q35,hpet=off,vmport=off"
    assert notes == tuple(f"both machines are without {device}, which QEMU 10.0.13 (small) was built without" for device in ("hpet", "vmport"))
    assert common_machine("q35", source=SMALL, destination=STOCK) == (machine, notes)


def test_only_what_lacks_is_left_out():
    half = msgspec.structs.replace(SMALL, device_properties={"vmport": ("x",)})
    assert common_machine(OLD, source=STOCK, destination=half)[0] == f"{OLD},hpet=off"


def test_machines_without_that_board_are_left_alone():
    assert common_machine("microvm", source=STOCK, destination=SMALL) == ("microvm", ())


def test_a_device_that_cant_be_left_out_is_a_lack_before_anything_boots():
    old = msgspec.structs.replace(STOCK, machine_properties=("hpet",))
    with pytest.raises(FeatureLackError) as lack:
        common_machine("q35", source=old, destination=SMALL)
    assert str(lack.value) == "QEMU 10.0.13 (small) was built without vmport, and QEMU 10.0.13 (stock) can't leave it out of a machine"


@pytest.mark.parametrize(("source", "destination"), [(STOCK, NEWER), (NEWER, STOCK)])
def test_a_short_name_that_stands_for_two_types_is_pinned_to_the_older(source, destination):
    assert common_machine("q35", source=source, destination=destination) == (OLD, (f"machine type {OLD}: what q35 is at the older QEMU",))
    assert common_machine(OLD, source=source, destination=destination) == (OLD, ())


@pytest.mark.parametrize(("source", "destination"), [(STOCK, NEWER), (NEWER, STOCK)])
def test_a_type_that_is_too_new_for_one_side_names_the_newest_of_both(source, destination):
    with pytest.raises(FeatureLackError) as lack:
        common_type(NEW, source=source, destination=destination)
    assert str(lack.value) == f"QEMU 10.0.13 (stock) has no machine type {NEW!r}\n  mend: set guest.machine to {OLD}, the newest that both have"


def test_a_misspelt_type_is_told_the_nearest():
    with pytest.raises(FeatureLackError, match=r"no machine type 'mikrovm' \(the nearest that it has is 'microvm'\)"):
        common_type("mikrovm", source=STOCK, destination=NEWER)


def test_nothing_in_common_is_said_with_both_sides():
    bare = features("bare", "12.0.0", "pc-q35-12.0")
    with pytest.raises(FeatureLackError, match=f"QEMU 12.0.0 has no machine type {OLD}, the newest q35 of 10.0.13") as lack:
        common_type("q35", source=STOCK, destination=bare)
    assert "switchover features" in str(lack.value.hint)
