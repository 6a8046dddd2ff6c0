"""Command lines, by snapshot and by property."""

from __future__ import annotations

import msgspec

from harness.vm.argv import DEFERRED, Descriptor, MachineSpec, NicSpec, machine_argv, tap_descriptors

SPEC = MachineSpec(
    name="m0", argv_prefix=("qemu-system-x86_64",), data_dirs=("/fw",), accelerator="tcg", kernel="/k", initrd="/i",
    append=("console=ttyS0", "quiet"), nics=(NicSpec(id="net0", mac="52:54:00:77:00:02"),), traces=("runstate_set",),
)  # fmt: skip

SNAPSHOT = """\
qemu-system-x86_64 -name m0 -no-user-config -nodefaults -display none -machine q35 -accel tcg -cpu qemu64 -smp 1 -m 256M
-kernel /k -append console=ttyS0 quiet -chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4 -serial chardev:console -device virtio-serial-pci,id=serial0,max_ports=2 -chardev socket,id=agent,fd=5
-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 -initrd /i -L /fw -netdev tap,id=net0-netdev,fd=16,vhost=off
-device virtio-net-pci,id=net0,netdev=net0-netdev,mac=52:54:00:77:00:02,romfile= -msg timestamp=on
-trace enable=runstate_set"""


def test_the_command_line_of_a_plain_machine():
    assert " ".join(machine_argv(SPEC)) == SNAPSHOT.replace("\n", " ")


def test_an_incoming_machine_differs_in_two_words():
    incoming = machine_argv(msgspec.structs.replace(SPEC, incoming=DEFERRED, paused=True))
    assert incoming == [*machine_argv(SPEC), "-incoming", "defer", "-S"]


def test_queues_get_descriptors_of_their_own_and_vectors():
    spec = msgspec.structs.replace(
        SPEC, nics=(NicSpec(id="a", mac="52:54:00:00:00:01", queues=3), NicSpec(id="b", mac="52:54:00:00:00:02"))
    )
    first = int(Descriptor.TAP)
    assert tap_descriptors(spec) == {"a": [first, first + 1, first + 2], "b": [first + 3]}
    argv = machine_argv(spec)
    assert f"tap,id=a-netdev,fds={first}:{first + 1}:{first + 2},vhost=off" in argv
    assert any("mq=on,vectors=8" in word for word in argv)


def test_vhost_mtu_and_properties_stand_at_their_devices():
    nic = NicSpec(id="n", mac="52:54:00:00:00:01", vhost=True, mtu=9000, properties=("packed=on",))
    argv = machine_argv(msgspec.structs.replace(SPEC, nics=(nic,)))
    assert "tap,id=n-netdev,fd=16,vhost=on" in argv
    assert "virtio-net-pci,id=n,netdev=n-netdev,mac=52:54:00:00:00:01,romfile=,host_mtu=9000,packed=on" in argv


def test_no_descriptor_is_used_twice():
    fixed = {int(d) for d in Descriptor if d is not Descriptor.TAP}
    spec = msgspec.structs.replace(SPEC, nics=tuple(NicSpec(id=f"n{i}", mac=f"52:54:00:00:00:{i:02x}", queues=8) for i in range(4)))
    taps = [fd for fds in tap_descriptors(spec).values() for fd in fds]
    assert len(taps) == len(set(taps)) == 32
    assert not fixed & set(taps)
