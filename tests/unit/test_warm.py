"""Warm states: what they depend on, and how each QEMU takes them."""

from __future__ import annotations

import msgspec
import pytest

from harness.vm.argv import DEFERRED, VHOST_PROPERTIES, MachineSpec, NicSpec
from harness.vm.warm import state_uri, warm_key

SPEC = MachineSpec(
    name="m0", argv_prefix=("qemu",), accelerator="tcg", kernel="/vmlinux", append=("quiet",),
    nics=(NicSpec(id="net0", mac="52:54:00:77:00:02"),),
)  # fmt: skip


class Knows:
    def __init__(self, *known: str) -> None:
        self.known = known

    def has(self, wish: str) -> bool:
        return wish in self.known


def key(spec: MachineSpec = SPEC, *, qemu_build: str = "q", image_digest: str = "i") -> str:
    return warm_key(spec, qemu_build=qemu_build, image_digest=image_digest)


@pytest.mark.parametrize(
    "change",
    [{"accelerator": "kvm"}, {"vcpus": 2}, {"cpu": "max"}, {"memory_mib": 512}, {"machine": "pc"}, {"machine": "q35,hpet=off"}, {"kernel": "/other"}, {"nics": ()}],
)
def test_a_state_is_never_shared_between_different_machines(change):
    assert key(msgspec.structs.replace(SPEC, **change)) != key()


def test_vhost_is_not_the_guest_s_affair_but_the_property_that_goes_with_it_is():
    """A host without vhost saves the state for a lab that has it."""
    (nic,) = SPEC.nics
    with_vhost = msgspec.structs.replace(nic, vhost=True, properties=VHOST_PROPERTIES)
    made_without = msgspec.structs.replace(nic, properties=VHOST_PROPERTIES)
    assert key(msgspec.structs.replace(SPEC, nics=(with_vhost,))) == key(msgspec.structs.replace(SPEC, nics=(made_without,))) != key()


def test_a_state_is_never_shared_between_builds_or_images():
    assert len({key(), key(qemu_build="other"), key(image_digest="other")}) == 3


def test_the_state_of_a_machine_does_not_depend_on_how_it_starts_or_what_it_logs():
    assert key(msgspec.structs.replace(SPEC, name="peer", incoming=DEFERRED, paused=True, traces=())) == key()


def test_a_qemu_with_the_file_transport_is_given_a_file():
    assert state_uri(Knows("capability:mapped-ram")) == "file:/proc/self/fd/6"
    assert state_uri(Knows()) == "fd:6"
