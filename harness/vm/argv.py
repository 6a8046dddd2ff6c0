"""The command line of a machine, as a pure function of its description."""

from __future__ import annotations

from enum import IntEnum

import msgspec

__all__ = ["DEFERRED", "VHOST_PROPERTIES", "Descriptor", "DiskSpec", "MachineSpec", "NicSpec", "machine_argv"]

DEFERRED = "defer"

TRACES = (
    "vmstate_downtime_*",
    "migration_completion_*",
    "source_return_path_thread_*",
    "loadvm_state_switchover_ack_needed",
    "loadvm_approve_switchover*",
    "loadvm_switchover_ack_*",
    "migration_request_switchover_ack*",
    "qemu_savevm_query_pending",
    "slow_migration_*",
    "virtio_load_phase",
    "virtio_vmstate_change",
    "virtio_net_iterative_*",
    "*netpass*",
    "tap_transfer_*",
    "qemu_announce_self_iter",
    "runstate_set",
)
"""Patterns of trace events that every machine logs; those that a QEMU doesn't know match nothing."""


VHOST_PROPERTIES = ("queue_reset=off",)
"""What a NIC with vhost is given, so that it is the same device to the guest whichever kernel works its rings: vhost can't reset one before Linux 6.2."""


class Descriptor(IntEnum):
    """Numbers under which a machine finds the sockets it inherits; TAP queues follow from `TAP` on."""

    QMP = 3
    CONSOLE = 4
    AGENT = 5
    STATE = 6
    PACKET = 7
    TAP = 16


class NicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A virtio-net device on a TAP whose queues are inherited, or come with the migration.

    `migration_properties`: those of which the guest knows nothing. `takes_over`: the netdev option that makes it open nothing and
    wait for the source's TAP. `vhost`: the host's kernel works its rings, of which the guest knows nothing (but see `VHOST_PROPERTIES`).
    """

    id: str
    mac: str
    queues: int = 1
    vhost: bool = False
    takes_over: str | None = None
    mtu: int | None = None
    properties: tuple[str, ...] = ()
    migration_properties: tuple[str, ...] = ()


class DiskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A virtio disk in a file; `format` is QEMU's word for it. Its node and its device are called "disk0", those of a root disk "root0"."""

    path: str
    format: str = "raw"


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the command line depends on. `argv_prefix` starts the binary; `data_dirs` are firmware folders.

    `memory_file`: a file that is the guest's memory, for a destination on the same host to open as well; `aux_ram_share`: the rest of
    its RAM blocks can be handed over too. `migration_devices`: test devices without a side for the guest. `incoming`: where the guest
    comes from: `DEFERRED` until the monitor says it, or a saved state (`harness.vm.warm.state_uri`).
    """

    name: str
    argv_prefix: tuple[str, ...]
    data_dirs: tuple[str, ...] = ()
    accelerator: str
    machine: str = "q35"
    cpu: str = "qemu64"
    memory_mib: int = 256
    vcpus: int = 1
    kernel: str
    initrd: str | None = None
    append: tuple[str, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    incoming: str | None = None
    paused: bool = False
    memory_file: str | None = None
    aux_ram_share: bool = False
    disk: DiskSpec | None = None
    root: DiskSpec | None = None
    traces: tuple[str, ...] = TRACES
    migration_devices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def of_the_guest(self) -> MachineSpec:
        """Without whatever the guest knows nothing of: a saved state of the guest does not depend on it."""
        nics = tuple(msgspec.structs.replace(nic, vhost=False, migration_properties=()) for nic in self.nics)
        return msgspec.structs.replace(self, nics=nics, migration_devices=())


def tap_descriptors(spec: MachineSpec) -> dict[str, list[int]]:
    """For each NIC the descriptor numbers of its queues."""
    numbers: dict[str, list[int]] = {}
    following = int(Descriptor.TAP)
    for nic in spec.nics:
        inherited = 0 if nic.takes_over else nic.queues
        numbers[nic.id] = list(range(following, following + inherited))
        following += inherited
    return numbers


def _nic_argv(nic: NicSpec, fds: list[int]) -> list[str]:
    if nic.takes_over:
        backend = f"{nic.takes_over}=on,queues={nic.queues},downscript=no"
    else:
        handles = f"fd={fds[0]}" if nic.queues == 1 else "fds=" + ":".join(map(str, fds))
        backend = f"{handles},vhost={'on' if nic.vhost else 'off'}"
    device = f"virtio-net-pci,id={nic.id},netdev={nic.id}-netdev,mac={nic.mac},romfile="
    if nic.queues > 1:
        device += f",mq=on,vectors={2 * nic.queues + 2}"
    if nic.mtu is not None:
        device += f",host_mtu={nic.mtu}"
    device += "".join(f",{property}" for property in (*nic.properties, *nic.migration_properties))
    return [
        "-netdev", f"tap,id={nic.id}-netdev,{backend}",
        "-device", device,
    ]  # fmt: skip


_RAM = "pc.ram"


def _machine(spec: MachineSpec) -> str:
    shared = f",memory-backend={_RAM}" if spec.memory_file is not None else ""
    return spec.machine + shared + (",aux-ram-share=on" if spec.aux_ram_share else "")


def machine_argv(spec: MachineSpec) -> list[str]:
    """The whole command line."""
    fds = tap_descriptors(spec)
    argv = [
        *spec.argv_prefix,
        "-name", spec.name,
        "-no-user-config", "-nodefaults",
        "-display", "none",
        "-machine", _machine(spec),
        "-accel", spec.accelerator,
        "-cpu", spec.cpu,
        "-smp", str(spec.vcpus),
        "-m", f"{spec.memory_mib}M",
        "-kernel", spec.kernel,
        "-append", " ".join(spec.append),
        "-chardev", f"socket,id=qmp,fd={Descriptor.QMP:d}",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={Descriptor.CONSOLE:d}",
        "-serial", "chardev:console",
        # One port besides the console's. The default of 31 has 64 virtqueues, whose start keeps the guest waiting for 5 to 20 ms after RESUME.
        "-device", "virtio-serial-pci,id=serial0,max_ports=2",
        "-chardev", f"socket,id=agent,fd={Descriptor.AGENT:d}",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ]  # fmt: skip
    if spec.memory_file is not None:
        # The name of the default block: a state saved with private memory fits.
        size = f"{spec.memory_mib}M"
        argv += ["-object", f"memory-backend-file,id={_RAM},size={size},mem-path={spec.memory_file},share=on"]
    if spec.root is not None:  # the first disk that the guest finds
        argv += [
            "-drive", f"if=none,id=root-drive,node-name=root0,file={spec.root.path},format={spec.root.format}",
            "-device", "virtio-blk-pci,id=root0,drive=root-drive",
        ]  # fmt: skip
    if spec.disk is not None:
        argv += [
            # A drive with a name of its own, not only a node: block migration (until 9.0) finds disks by that.
            "-drive", f"if=none,id=drive0,node-name=disk0,file={spec.disk.path},format={spec.disk.format}",
            "-device", "virtio-blk-pci,id=disk0,drive=drive0",
        ]  # fmt: skip
    if spec.initrd is not None:
        argv += ["-initrd", spec.initrd]
    for folder in spec.data_dirs:
        argv += ["-L", folder]
    for nic in spec.nics:
        argv += _nic_argv(nic, fds[nic.id])
    for device in spec.migration_devices:
        argv += ["-device", device]
    if spec.traces:
        argv += ["-msg", "timestamp=on"]  # without it the log backend writes no times
    for pattern in spec.traces:
        argv += ["-trace", f"enable={pattern}"]
    if spec.incoming:
        argv += ["-incoming", spec.incoming]
    if spec.paused:
        argv += ["-S"]
    return [*argv, *spec.extra]
