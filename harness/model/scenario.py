"""A scenario: the declarative description of one experiment, as it stands in a TOML file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from harness.model.fault import FaultSection

__all__ = [
    "KNOWN_MECHANISMS",
    "TRAFFIC_DEFAULTS",
    "Accelerator",
    "Cast",
    "DestinationPort",
    "Direction",
    "DiskFormat",
    "GuestSection",
    "InjectSection",
    "MigrationMode",
    "MigrationSection",
    "NetworkSection",
    "Obstacle",
    "Peer",
    "QemuSection",
    "Scenario",
    "SlowDeviceSection",
    "TcpMode",
    "TimingSection",
    "Topology",
    "TrafficKind",
    "TrafficSection",
    "Transport",
]


class Peer(StrEnum):
    GUEST = "guest"
    NAMESPACE = "namespace"


class DestinationPort(StrEnum):
    """When the bridge begins to forward to the destination's TAP."""

    AT_RESUME = "at-resume"
    FROM_START = "from-start"


class MigrationMode(StrEnum):
    NONE = "none"
    STOP_CONT = "stop-cont"
    PRECOPY = "precopy"
    POSTCOPY = "postcopy"
    BACKGROUND_SNAPSHOT = "background-snapshot"
    CPR_REBOOT = "cpr-reboot"
    CPR_TRANSFER = "cpr-transfer"
    CPR_EXEC = "cpr-exec"


class Transport(StrEnum):
    """What carries the migration stream."""

    UNIX = "unix"
    TCP = "tcp"
    TCP6 = "tcp6"
    FD = "fd"
    EXEC = "exec"
    FILE = "file"


class DiskFormat(StrEnum):
    NONE = "none"
    RAW = "raw"
    QCOW2 = "qcow2"


class Root(StrEnum):
    INITRAMFS = "initramfs"
    DISK = "disk"


class Topology(StrEnum):
    """`two-bridges`: each machine on a bridge of its own, as on two hosts; a third one joins them and has the peer.

    `two-hosts`: the same, and each machine in a namespace of its own, with a routed link between them for the migration.
    """

    ONE_BRIDGE = "one-bridge"
    TWO_BRIDGES = "two-bridges"
    TWO_HOSTS = "two-hosts"


class Obstacle(StrEnum):
    """What stands in the migration's way: a destination that is not what the source expects, or no room for the file."""

    OTHER_MEMORY = "other-memory"
    MISSING_DEVICE = "missing-device"
    MISSING_FEATURE = "missing-feature"
    FULL_DISK = "full-disk"


class TrafficKind(StrEnum):
    """`udp`, `tcp` and `idle-tcp` come from our own generator; `icmp` (ping), `iperf3` and `irtt` are other people's, as witnesses."""

    UDP = "udp"
    TCP = "tcp"
    IDLE_TCP = "idle-tcp"
    ICMP = "icmp"
    IPERF3 = "iperf3"
    IRTT = "irtt"


class TcpMode(StrEnum):
    """`bulk`: numbered blocks one way; `request`: requests that are answered, sent on schedule."""

    BULK = "bulk"
    REQUEST = "request"


class Direction(StrEnum):
    """Seen from the mobile guest. `both` stands for one stream each way; `echo` is judged by the replies."""

    TO_GUEST = "to-guest"
    FROM_GUEST = "from-guest"
    BOTH = "both"
    ECHO = "echo"


class Cast(StrEnum):
    UNICAST = "unicast"
    BROADCAST = "broadcast"
    MULTICAST = "multicast"


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


KNOWN_MECHANISMS = ("none", "tap-handover", "netpass", "redirect", "redirect-packet", "local-tap")
"""What may happen to the frames that arrive in switchover."""

Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first",
    ),
]
Queues = Annotated[int, Meta(ge=1, le=64)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, named fields only, unknown keys refused."""


class SlowDeviceSection(_Section, frozen=True):
    """A test device whose migration destination needs `prepare_ms` to get ready (-1: for ever), and that takes part in switchover-ack or not."""

    prepare_ms: Annotated[int, Meta(ge=-1, le=60_000)] = 0
    ack: bool = True


class GuestSection(_Section, frozen=True):
    """`memory`: size such as "256M". `machine`: QEMU machine type. `kernel`, `modules`, `image`: instead of the shipped ones.

    `shared_memory`: keep it in a file that a destination on the same host can map (for x-ignore-shared and cpr-transfer).
    `disk`: a virtio disk of 64 MiB. `root`: what the mobile guest runs from; "disk": a disk image with an ext4 file system (mounted
    read-only), which source and destination share. `dirty_mib_s`: the guest writes to `dirty_mib` of its memory at this rate, so that precopy has
    something to chase.
    """

    memory: Annotated[str, Meta(description='a size such as "256M"')] = "256M"
    vcpus: Annotated[int, Meta(ge=1, le=16)] = 1
    machine: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$", description="a QEMU machine type such as q35")] = "q35"
    cpu: str | None = None
    kernel: str | None = None
    modules: str | None = None
    image: str | None = None
    management: bool = True
    slow_device: SlowDeviceSection | None = None
    shared_memory: bool = False
    disk: DiskFormat = DiskFormat.NONE
    root: Root = Root.INITRAMFS
    dirty_mib_s: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    dirty_mib: Annotated[int, Meta(ge=1, le=65_536)] = 64


class NetworkSection(_Section, frozen=True):
    """`static_neighbours`: permanent ARP and ND entries, so that address resolution adds nothing of its own.

    `queues`: queue pairs of the NIC under test; `enabled_queues`: how many the guest uses (else what its driver chooses).
    `link_mbit_s`, `link_delay_ms`, `link_loss_percent`: what the migration link between two hosts does to each direction.
    `extra_nics`: so many more NICs of the mobile guest, which nobody uses, and which migrate with it.
    `packed`: virtio's packed rings; `mergeable`: receive buffers that are merged; `offloads`: checksums and segmentation left to others.
    `iterative_delta`: what virtio-iterative sends at the stop is only what changed; `iterative_control` (on the destination): reset the
    device after the setup's load, or load the stop's state twice.
    """

    topology: Topology = Topology.ONE_BRIDGE
    link_mbit_s: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    link_delay_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    link_loss_percent: Annotated[float, Meta(ge=0, lt=100)] = 0.0
    peer: Peer = Peer.GUEST
    mtu: Annotated[int, Meta(ge=1280, le=9000)] = 1500
    queues: Queues = 1
    enabled_queues: Queues | None = None
    iterative_delta: bool = False
    iterative_control: Literal["none", "reset", "twice"] = "none"
    extra_nics: Annotated[int, Meta(ge=0, le=8)] = 0
    packed: bool = False
    mergeable: bool = True
    offloads: bool = True
    vhost: bool = False
    destination_port: DestinationPort = DestinationPort.AT_RESUME
    static_neighbours: bool = True


class QemuSection(_Section, frozen=True):
    """A name that `switchover qemu list` knows, or a path. `migration_properties`: of QEMU's migration object, on both sides."""

    source: str = "system"
    destination: str = "system"
    migration_properties: dict[str, str] = {}


class MigrationSection(_Section, frozen=True):
    """`hold_ms`: stay in pre-switchover for at least this long. `outage_ms`: how long `stop-cont` stops the guest.

    `cancel_after_ms`: cancel so long after the start, if the guest has not moved by then. `cancel_at_percent`: cancel when so much of
    the memory was sent. `tls`: encrypted, with keys made for the lab. `cut_after_ms`: in postcopy, cut the migration link so long after
    the guest moved, and recover. `only_at_source`: capabilities that stay off at the destination. `start_after_ms`: the destination is
    started with `-S`, and told to go on so long after the migration completed. `compare_memory`: the same, and before it goes on, the guest's
    memory is compared with the source's (`figures.pages_differ`). `obstacle`: it is meant to fail on this.
    """

    mode: MigrationMode = MigrationMode.PRECOPY
    transport: Transport = Transport.UNIX
    tls: bool = False
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    hold_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    outage_ms: Annotated[float, Meta(ge=1, le=60_000)] = 100.0
    cancel_at_switchover: bool = False
    cancel_after_ms: Annotated[float, Meta(ge=0, le=600_000)] | None = None
    cancel_at_percent: Annotated[float, Meta(gt=0, lt=100)] | None = None
    cut_after_ms: Annotated[float, Meta(ge=0, le=60_000)] | None = None
    only_at_source: tuple[str, ...] = ()
    start_after_ms: Annotated[float, Meta(ge=0, le=60_000)] | None = None
    compare_memory: bool = False
    fault: FaultSection | None = None
    obstacle: Obstacle | None = None

    @property
    def cancels(self) -> bool:
        """Whether the migration is meant to end cancelled."""
        return self.cancel_at_switchover or self.cancel_after_ms is not None or self.cancel_at_percent is not None


class TrafficSection(_Section, frozen=True):
    """One kind of traffic. What is left out has the kind's default (`TRAFFIC_DEFAULTS`); a key that means nothing to it stays None.

    `rate_pps`: packets, requests or writes per second (None: as fast as TCP goes); `size`: bytes of each.
    """

    kind: TrafficKind = TrafficKind.UDP
    name: Name | None = None
    mode: TcpMode | None = None
    direction: Direction | None = None
    cast: Cast | None = None
    rate_pps: Annotated[float, Meta(gt=0, le=200_000)] | None = None
    size: Annotated[int, Meta(ge=32, le=65_507)] | None = None
    ip: Literal[4, 6] = 4

    def __post_init__(self) -> None:
        for key, value in self.defaults.items():
            if getattr(self, key) is None:
                msgspec.structs.force_setattr(self, key, value)

    @property
    def defaults(self) -> dict[str, Any]:
        """The keys that mean something to this kind of traffic, with what they are when left out."""
        defaults = TRAFFIC_DEFAULTS[self.kind]
        if self.kind is TrafficKind.TCP and self.mode is TcpMode.REQUEST:
            return defaults | {"rate_pps": 200.0, "size": 100}
        return defaults


TRAFFIC_DEFAULTS: dict[TrafficKind, dict[str, Any]] = {
    TrafficKind.UDP: {"direction": Direction.BOTH, "cast": Cast.UNICAST, "rate_pps": 1000.0, "size": 100},
    TrafficKind.TCP: {"mode": TcpMode.BULK, "direction": Direction.BOTH, "rate_pps": None, "size": 4096},
    TrafficKind.IDLE_TCP: {"direction": Direction.TO_GUEST},
    TrafficKind.ICMP: {"rate_pps": 100.0, "size": 56},
    TrafficKind.IPERF3: {"direction": Direction.TO_GUEST, "rate_pps": None, "size": 4096},
    TrafficKind.IRTT: {"rate_pps": 100.0, "size": 100},
}
"""Which keys belong to which kind of traffic (beside `kind`, `name` and `ip`), and their defaults."""


class InjectSection(_Section, frozen=True):
    """What is done to the traffic on purpose: a filter at the peer's port drops `drop_packets` packets of the first UDP stream to
    the guest, from the sequence number `drop_first` on."""

    drop_packets: Annotated[int, Meta(ge=0, le=100_000)] = 0
    drop_first: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 200


class TimingSection(_Section, frozen=True):
    """`settle_s`: traffic before the migration; `tail_s`: traffic after it; `drain_s`: wait for the last packets;
    `timeout_s`: the whole run's limit."""

    settle_s: Seconds = 1.0
    tail_s: Seconds = 1.0
    drain_s: Seconds = 0.3
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 120.0


class Scenario(_Section, frozen=True):
    """One experiment. `expect` maps a result's field to a value or a comparison such as "< 300"."""

    name: Name
    description: str = ""
    mechanism: str = "none"
    accelerator: Accelerator = Accelerator.AUTO
    guest: GuestSection = GuestSection()
    network: NetworkSection = NetworkSection()
    qemu: QemuSection = QemuSection()
    migration: MigrationSection = MigrationSection()
    traffic: tuple[TrafficSection, ...] = ()
    inject: InjectSection = InjectSection()
    timing: TimingSection = TimingSection()
    expect: dict[str, int | float | str | bool] = {}
