"""A lab: the private host world of one pair, and the pair in it.

    async with Lab(settings) as lab:
        await lab.start()
        record = await lab.migrate(plan, deadline=...)

The lab owns namespaces, bridges, TAPs and machines; whoever holds a reference to a machine after `migrate` finds the
guest in `lab.mobile`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from harness.builds import QemuInstall
from harness.capture.live import Injector, LiveTap
from harness.errors import DeadlineError, SwitchoverError, TestbedError
from harness.host.bridge import PortFlags
from harness.host.deadline import Deadline
from harness.host.learning import BridgeWatch
from harness.host.migration_link import LinkShape
from harness.host.network import MANAGEMENT_BRIDGE, Network, Port
from harness.host.vhost import VhostWatch
from harness.host.warden import SCRATCH, Warden
from harness.migrate.driver import MigrationDriver, MigrationRecord
from harness.migrate.in_place import execute_successor, stop_and_continue
from harness.migrate.mechanisms import make_mechanism
from harness.migrate.mechanisms.base import Side
from harness.migrate.obstacles import with_obstacle
from harness.migrate.queues import make_account
from harness.migrate.ways.cpr_transfer import cpr_channel
from harness.model.addresses import MOBILE, PEER, PREFIX4, PREFIX6, Addresses
from harness.model.events import Event, Timeline
from harness.model.plan import MigrationPlan
from harness.model.scenario import DestinationPort, DiskFormat, MigrationMode, Peer, Topology
from harness.model.units import parse_size
from harness.traffic.endpoint import Endpoint, GuestEndpoint, NamespaceEndpoint
from harness.vm.argv import DEFERRED, VHOST_PROPERTIES, DiskSpec, MachineSpec, NicSpec
from harness.vm.discovery import discover
from harness.vm.disk import make_disk
from harness.vm.image import GuestImage
from harness.vm.logs import LabLogs
from harness.vm.machine import Machine
from harness.vm.root_disk import RootDisk, copy_root
from harness.vm.warm import save_state, state_loaded, warm_state

__all__ = ["Lab", "LabSettings"]

NIC = "net0"
MANAGEMENT_NIC = "mgmt0"
PEER_PORT = "sw-peer"
DISK = SCRATCH / "disk"
ROOT = SCRATCH / "root"
DISK_BYTES = 64 << 20
TCG_CPU = "qemu64,+rdrand"
"""Without rdrand a cold guest waits for the kernel's randomness before SSH answers."""
# What the boot left in free memory would be saved, and loaded each time, and carried by each migration.
ZERO_FREE_MEMORY = (
    "sync; echo 3 >/proc/sys/vm/drop_caches; while read -r key value _; do [ $key = MemAvailable: ] && break; done </proc/meminfo;"
    " head -c $(((value - 24576) * 1024)) /dev/zero >/tmp/zero; rm /tmp/zero"
)
_LAST_WORDS_S = 0.2
KERNEL_ARGUMENTS = ("console=ttyS0", "quiet", "panic=1", "cryptomgr.notests")


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """Do all at once; when one fails, the others are ended before its error goes on."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class LabSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a lab is made of. `cold` boots for real instead of starting from a saved state; `notes` are what every run in it has to say."""

    source: QemuInstall
    destination: QemuInstall
    accelerator: str
    accelerator_reason: str = ""
    image: GuestImage
    cache: Path
    memory: str = "256M"
    vcpus: int = 1
    machine: str = "q35"
    cpu: str | None = None
    peer: Peer = Peer.GUEST
    topology: Topology = Topology.ONE_BRIDGE
    link: LinkShape = LinkShape()
    mtu: int = 1500
    queues: int = 1
    enabled_queues: int | None = None
    extra_nics: int = 0
    guest_nic_properties: tuple[str, ...] = ()
    nic_properties: tuple[str, ...] = ()
    destination_nic_properties: tuple[str, ...] = ()
    migration_devices: tuple[str, ...] = ()
    vhost: bool = False
    management: bool = True
    shared_memory: bool = False
    aux_ram_share: bool = False
    disk: DiskFormat = DiskFormat.NONE
    root: RootDisk | None = None
    dirty_mib_s: float = 0.0
    dirty_mib: int = 64
    static_neighbours: bool = True
    destination_port: DestinationPort = DestinationPort.AT_RESUME
    cold: bool = False
    migration_properties: dict[str, str] = {}
    boot_s: float = 60.0
    state_uri: str
    notes: tuple[str, ...] = ()

    def spec(self, name: str, qemu: QemuInstall, addresses: Addresses, *, queues: int = 1, incoming: bool = False) -> MachineSpec:
        """The machine that runs a guest with these addresses. `incoming`: a migration's destination."""
        mtu = self.mtu if self.mtu != 1500 else None
        extra = [word for name, value in self.migration_properties.items() for word in ("-global", f"migration.{name}={value}")]
        moves = addresses == MOBILE
        properties = (*self.nic_properties, *(self.destination_nic_properties if incoming else ())) if moves else ()
        own = (*(self.guest_nic_properties if moves else ()), *(VHOST_PROPERTIES if self.vhost else ()))
        nics = [NicSpec(id=NIC, mac=addresses.mac, queues=queues, vhost=self.vhost, mtu=mtu, properties=own, migration_properties=properties)]
        if self.management:
            nics.append(NicSpec(id=MANAGEMENT_NIC, mac=addresses.management_mac))
        if moves:
            nics += [NicSpec(id=f"extra{number}", mac=f"52:54:00:79:00:{number:02x}") for number in range(self.extra_nics)]
        return MachineSpec(
            name=name, argv_prefix=qemu.argv_prefix, data_dirs=qemu.data_dirs, accelerator=self.accelerator,
            machine=self.machine, cpu=self.cpu or ("host" if self.accelerator == "kvm" else TCG_CPU),
            memory_mib=parse_size(self.memory) >> 20, vcpus=self.vcpus, kernel=str(self.image.kernel),
            initrd=str(self.root.initrd if self.root is not None and moves else self.image.initrd), append=KERNEL_ARGUMENTS, nics=tuple(nics), extra=tuple(extra),
            migration_devices=self.migration_devices if moves else (),
            memory_file=str(SCRATCH / f"memory-{name}") if self.shared_memory else None,
            aux_ram_share=self.aux_ram_share and self.shared_memory,
            disk=None if self.disk is DiskFormat.NONE else DiskSpec(path=str(DISK), format=str(self.disk)),
            root=DiskSpec(path=str(ROOT)) if self.root is not None and moves else None,
        )  # fmt: skip


def _shown(console: str) -> str:
    lines = "\n".join(f"    {line}" for line in console.splitlines()) or "    (nothing)"
    return f"  its console ends with:\n{lines}"


class Lab:
    """One pair in its world. Use as an asynchronous context manager.

    `logs` are where QMP transcripts and consoles go, or None to keep none.
    """

    def __init__(self, settings: LabSettings, *, logs: LabLogs | None = None, progress: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.timeline = Timeline()
        self.warden = Warden()
        self.network = Network(self.warden)
        self.peer_port: Port | None = None
        self.mobile_side: Side | None = None
        self.peer_machine: Machine | None = None
        self.figures: dict[str, float] = {}
        self.logs = logs
        self._progress = progress or (lambda _: None)
        self._machines: list[Machine] = []
        self._live: list[LiveTap] = []
        self._ended: list[Side] = []  # machines that the guest left, with what they still hold
        self._generation = 0
        self.endpoints: dict[str, Endpoint] = {}
        self.learning: BridgeWatch | None = None
        self.vhost: VhostWatch | None = None

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- bring up and tear down

    async def start(self) -> None:
        """Bring the pair up: both ends have link and address, and answer."""
        began = time.monotonic()
        await self.warden.start()
        await self.network.start(mtu=self.settings.mtu, topology=self.settings.topology, link=self.settings.link)
        self.learning = await self.network.watch_learning()
        self.figures["lab_s"] = time.monotonic() - began
        if self.network.migration_link is not None:
            self.figures["link_relayed"] = float(self.network.migration_link.relayed)  # 0: netem or tbf of the kernel, or nothing to shape
        deadline = Deadline(self.settings.boot_s)
        if self.settings.peer is Peer.NAMESPACE:
            await self._start_namespace_peer()
        if self.settings.disk is not DiskFormat.NONE:
            await make_disk(self.warden, DISK, format=self.settings.disk, size_bytes=DISK_BYTES)
        if self.settings.root is not None:
            await copy_root(self.warden, self.settings.root.disk, ROOT)
        mobile_port, mobile_taps = await self._plug("m0", queues=self.settings.queues)
        mobile = self._machine("m0", "source", self.settings.source, MOBILE, queues=self.settings.queues)
        # The live view begins before the guest runs, so that no frame to it is unseen.
        live = await self._watch(mobile_port)
        self.mobile_side = await self._side(mobile, mobile_port, live)
        if self.settings.vhost:
            await self.mobile_side.account.empty_queue(deadline=deadline)
        guests = [self._bring_up(mobile, mobile_taps, MOBILE, PEER, deadline=deadline)]
        self.endpoints["mobile"] = GuestEndpoint("mobile", mobile.agent)
        if self.settings.peer is Peer.GUEST:
            self.peer_port, peer_taps = await self._plug("peer")
            peer = self._machine("peer", "peer", self.settings.source, PEER)
            self.peer_machine = peer
            guests.append(self._bring_up(peer, peer_taps, PEER, MOBILE, deadline=deadline))
            self.endpoints["peer"] = GuestEndpoint("peer", peer.agent)
        await together(*guests)
        await self.settle(deadline=deadline)
        if self.settings.disk is not DiskFormat.NONE:
            await mobile.qmp.command("block-dirty-bitmap-add", node="disk0", name="bitmap0")
        if self.settings.dirty_mib_s:
            rate, size = self.settings.dirty_mib_s, self.settings.dirty_mib
            await mobile.agent.shell(f"swgen dirty --rate-mib {rate:g} --size-mib {size} </dev/null >/dev/null 2>&1 &")
        if self.settings.vhost:
            self.vhost = VhostWatch()
        self.figures["ready_s"] = time.monotonic() - began
        self._event("ready", {"cold": self.settings.cold})

    async def close(self) -> None:
        """Tear everything down; goes on past failures and raises the first of them at the end."""
        failures: list[Exception] = []
        for machine in reversed(self._machines):
            try:
                await machine.close()
            except Exception as error:
                failures.append(error)
        for live in self._live:
            with contextlib.suppress(OSError):
                live.close()
        if self.learning is not None:
            self.learning.close()
        for last in (self.network.close, self.warden.close):
            try:
                await last()
            except Exception as error:
                failures.append(error)
        if self.logs is not None:
            self.logs.close()
        if failures:
            raise failures[0]

    @property
    def mobile(self) -> Machine:
        """The machine that the mobile guest is in now."""
        if self.mobile_side is None:
            raise TestbedError("the lab was not started")
        return self.mobile_side.machine

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Machines in the order in which they were made, ended ones included until the migration after their end."""
        return tuple(self._machines)

    # -- parts

    def _event(self, name: str, data: dict[str, Any]) -> None:
        self.timeline.record(Event(t_ns=time.time_ns(), source="harness", name=name, data=data))

    def _spec(self, name: str, qemu: QemuInstall, addresses: Addresses, *, queues: int = 1, incoming: bool = False) -> MachineSpec:
        spec = self.settings.spec(name, qemu, addresses, queues=queues, incoming=incoming)
        if addresses is PEER:  # it stays where it is
            spec = msgspec.structs.replace(spec, memory_file=None, aux_ram_share=False, disk=None)
        return spec

    def _machine(
        self, name: str, role: str, qemu: QemuInstall, addresses: Addresses, *, queues: int = 1, incoming: bool = False, paused: bool = False,
    ) -> Machine:
        spec = self._spec(name, qemu, addresses, queues=queues, incoming=incoming)
        warm = not incoming and not self.settings.cold
        spec = msgspec.structs.replace(
            spec, incoming=DEFERRED if incoming else self.settings.state_uri if warm else None, paused=warm or paused
        )
        logs = self.logs.of(name) if self.logs is not None else None
        machine = Machine(
            spec, role=role, warden=self.warden, timeline=self.timeline, logs=logs, netns=self.network.namespace_of(name)
        )
        self._machines.append(machine)
        return machine

    async def _plug(self, suffix: str, *, queues: int = 1, flags: PortFlags | None = None) -> tuple[Port, dict[str, list[int]]]:
        """A port on each bridge, with the TAP queues that the machine inherits."""
        port = await self.network.add_tap(f"sw-{suffix}", bridge=self.network.bridge_of(suffix), queues=queues, flags=flags)
        taps = {NIC: port.fds}
        if self.settings.management:
            management = await self.network.add_tap(f"mg-{suffix}", bridge=MANAGEMENT_BRIDGE)
            taps[MANAGEMENT_NIC] = management.fds
        for number in range(self.settings.extra_nics if suffix != "peer" else 0):
            extra = await self.network.add_tap(f"x{number}-{suffix}", bridge=MANAGEMENT_BRIDGE)
            taps[f"extra{number}"] = extra.fds
        return port, taps

    async def _watch(self, port: Port, *, queue: int | None = None) -> LiveTap:
        live = LiveTap(await self.network.packet_socket(), interface=port.name, queue=queue)
        self._live.append(live)
        return live

    async def _side(self, machine: Machine, port: Port, live: LiveTap, *, shared: tuple[LiveTap, ...] | None = None) -> Side:
        """A side with its account; `shared`: views of the port's queues that are there already."""

        async def watch(queue: int) -> LiveTap:
            return shared[queue] if shared else await self._watch(port, queue=queue)

        return Side(machine, port, live, await make_account(machine, live, network=self.network, port=port, nic=NIC, watch=watch))

    async def _start_namespace_peer(self) -> None:
        self.peer_port = await self.network.add_peer_namespace(
            PEER_PORT, mac=PEER.mac, addresses=[(PEER.ip4, PREFIX4), (PEER.ip6, PREFIX6)]
        )
        if self.settings.static_neighbours:
            for address in (MOBILE.ip4, MOBILE.ip6):
                await self.network.add_peer_neighbour(address, MOBILE.mac)
        self.endpoints["peer"] = NamespaceEndpoint(
            "peer", warden=self.warden, netns="peer", generator=self.settings.image.generator
        )

    async def _bring_up(
        self, machine: Machine, taps: dict[str, list[int]], own: Addresses, other: Addresses, *, deadline: Deadline
    ) -> None:
        """Boot the guest, or start it warm, and configure it."""
        if self.settings.cold:
            await machine.start(taps, deadline=deadline)
        else:
            state = await self._warm_state(machine.spec)
            await machine.start(taps, deadline=deadline, state=state)
            await state_loaded(machine, deadline=deadline)
            await machine.qmp.command("cont")
        await self._ready(machine, deadline=deadline)
        await self.configure(machine, own, other, deadline=deadline)

    async def _ready(self, machine: Machine, *, deadline: Deadline) -> None:
        assert machine.console is not None
        ready = asyncio.ensure_future(
            machine.unless_ended(machine.agent.sync(deadline=deadline), what="died before its guest was ready")
        )
        panic = machine.console.seen(b"Kernel panic - not syncing")
        try:
            await asyncio.wait({ready, panic}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await asyncio.sleep(_LAST_WORDS_S)
                raise TestbedError(f"the kernel of the guest in {machine.spec.name} panicked\n{_shown(machine.console.tail(lines=40))}")
            await ready
        except DeadlineError as error:
            raise DeadlineError(
                f"the guest in {machine.spec.name} was not ready within {self.settings.boot_s:g} s\n{_shown(machine.console.tail())}",
                hint="give a kernel that boots with virtio-pci and a serial console, or more time",
            ) from error
        finally:
            panic.cancel()
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)

    async def configure(self, machine: Machine, own: Addresses, other: Addresses, *, deadline: Deadline) -> dict[str, Any]:
        """Give a guest its addresses and fresh entropy, and see that its NIC has link and address."""
        words = [
            f"ip4={own.ip4}/{PREFIX4}", f"ip6={own.ip6}/{PREFIX6}", f"mtu={self.settings.mtu}",
            f"entropy={base64.b64encode(os.urandom(48)).decode()}", f"hostname={machine.spec.name}",
        ]
        if self.settings.enabled_queues is not None and own == MOBILE:
            words.append(f"queues={self.settings.enabled_queues}")
        if self.settings.management:
            words.append(f"mgmt={own.management}/{PREFIX4}")
        if self.settings.static_neighbours:
            words += [f"neigh={other.ip4}@{other.mac}", f"neigh={other.ip6}@{other.mac}"]
        report = json.loads(await machine.agent.succeed(["/usr/lib/switchover/configure", *words], deadline=deadline))
        wanted = {f"{own.ip4}/{PREFIX4}", f"{own.ip6}/{PREFIX6}"}
        if report["mac"] != own.mac or not wanted <= set(report["addresses"]) or not report["carrier"]:
            raise TestbedError(f"the guest in {machine.spec.name} is not what it was asked to be: {report}")
        return dict(report)

    async def _warm_state(self, spec: MachineSpec) -> Path:
        return await warm_state(
            spec, cache=self.settings.cache, qemu_build=self.settings.source.build_id,
            image_digest=self.settings.image.digest, boot=lambda path: self._make_warm_state(spec, path),
        )

    async def save_states(self) -> None:
        """Make the saved states that `start` needs and that are missing. It starts nothing that stays, and needs no vhost."""
        await self._warm_state(self._spec("m0", self.settings.source, MOBILE, queues=self.settings.queues))
        if self.settings.peer is Peer.GUEST:
            await self._warm_state(self._spec("peer", self.settings.source, PEER))

    async def _make_warm_state(self, spec: MachineSpec, path: Path) -> None:
        """Boot a guest in a lab of its own and save its state."""
        self._progress(f"booting a guest once, to start from its saved state later ({path.stem})")
        plain = msgspec.structs.replace(spec.of_the_guest(), name="warm", incoming=None, paused=False)
        async with Warden() as warden, Network(warden) as network:
            await network.start(mtu=self.settings.mtu)
            if spec.disk is not None:
                await make_disk(warden, DISK, format=spec.disk.format, size_bytes=DISK_BYTES)
            if spec.root is not None and self.settings.root is not None:
                await copy_root(warden, self.settings.root.disk, ROOT)
            taps = {nic.id: (await network.add_tap(f"warm-{nic.id}", queues=nic.queues)).fds for nic in spec.nics}
            machine = Machine(plain, role="warm", warden=warden, timeline=Timeline())
            deadline = Deadline(self.settings.boot_s)
            try:
                await machine.start(taps, deadline=deadline)
                await self._ready(machine, deadline=deadline)
                await machine.agent.shell(ZERO_FREE_MEMORY, deadline=deadline)
                await save_state(machine, path, deadline=deadline)
            finally:
                await machine.close()

    # -- use

    async def settle(self, *, deadline: Deadline) -> None:
        """Begin the account of the mobile guest's TAP, while nothing is sent to it. What can't be told is said when it is needed."""
        assert self.mobile_side is not None
        account = self.mobile_side.account
        if account.synchronised:
            return
        try:
            await account.sync(deadline=deadline.within(5.0))
        except SwitchoverError as error:
            account.reason = error.message

    async def management_socket(self, *, peer: bool = False) -> socket.socket:
        """A TCP connection to the SSH port of a guest, from within the lab."""
        address = (PEER if peer else MOBILE).management
        return await self.warden.socket(family=socket.AF_INET, type=socket.SOCK_STREAM, connect=(address, 22))

    async def migrate(
        self, plan: MigrationPlan, *, deadline: Deadline, capture: Callable[[Port], Any] | None = None,
        respec: Callable[[MachineSpec], MachineSpec] | None = None,
    ) -> MigrationRecord:
        """Migrate the mobile guest to a fresh machine; on success `mobile` is that one.

        `capture` is called with the destination's port before anything can pass it, unless it is the source's. `respec` changes the
        destination's description (to one that refuses, for one).
        """
        source = self.mobile_side
        if source is None:
            raise TestbedError("the lab was not started")
        if plan.mode is MigrationMode.STOP_CONT:
            return await stop_and_continue(plan, source, timeline=self.timeline)
        if plan.mode is MigrationMode.CPR_EXEC:
            return await self._execute_successor(plan, source, deadline=deadline)
        self._give_back(keep=source)
        self._generation += 1
        name = f"m{self._generation}"
        mechanism = make_mechanism(plan.mechanism)
        port, live, taps = source.port, source.live, dict[str, list[int]]()
        if not mechanism.keeps_port:
            from_start = self.settings.destination_port is DestinationPort.FROM_START
            flags = PortFlags.opened() if from_start else PortFlags.closed()
            port, taps = await self._plug(name, queues=self.settings.queues, flags=flags)
            if capture is not None:
                await capture(port)
            live = await self._watch(port)
        machine = self._machine(
            name, "destination", self.settings.destination, MOBILE, queues=self.settings.queues, incoming=True,
            paused=plan.starts_paused,
        )
        features = await discover(self.settings.destination, cache=self.settings.cache)
        machine.spec = mechanism.destination_spec(machine.spec, features=features)
        destination = await self._side(machine, port, live, shared=source.account.taps if mechanism.keeps_port else None)
        machine.spec = self._destination_spec(machine.spec, source.machine.spec, plan)
        if "block" in plan.capabilities and machine.spec.disk is not None:  # which the stream fills
            machine.spec = msgspec.structs.replace(machine.spec, disk=msgspec.structs.replace(machine.spec.disk, path=f"{DISK}-{name}"))
            await make_disk(self.warden, Path(f"{DISK}-{name}"), format=self.settings.disk, size_bytes=DISK_BYTES)
        machine.spec = with_obstacle(machine.spec, plan.obstacle)
        if respec is not None:
            machine.spec = respec(machine.spec)
        with contextlib.ExitStack() as handles:
            packet = None
            if mechanism.sends_to_tap:
                packet = handles.enter_context(await self.network.packet_socket())
                packet.bind((port.name, 0))  # protocol 0: it receives nothing
            if plan.mode is MigrationMode.CPR_TRANSFER:  # it has no monitor before the source began
                await machine.spawn(taps, packet=packet)
            else:
                await machine.start(taps, deadline=deadline.within(20.0), packet=packet)
        source.machine.role = "source"
        sockets = [await self.network.packet_socket() for _ in range(4)]

        injectors: list[Injector] = []

        def injector(side: Side) -> Injector:
            injectors.append(Injector(sockets.pop(), interface=side.port.name))
            return injectors[-1]

        driver = MigrationDriver(
            plan, source=source, destination=destination, network=self.network, timeline=self.timeline, nic=NIC,
            injector=injector, destination_port=self.settings.destination_port, deadline=deadline, mechanism=mechanism,
            source_features=await discover(self.settings.source, cache=self.settings.cache),
        )
        try:
            record = await driver.run()
        except SwitchoverError:
            await machine.close()
            self._ended.append(destination)
            raise
        finally:
            for handle in injectors:
                handle.close()
            for unused in sockets:
                unused.close()
        if record.moved:
            if source.machine.spec.memory_file not in (None, machine.spec.memory_file):
                await self.warden.unlink(Path(str(source.machine.spec.memory_file)))
            self._ended.append(source)
            await self.moved_to(destination, deadline=deadline)
        else:
            await machine.close()
            self._ended.append(destination)
            if record.survivor != "source":
                self.lose_guest()
        return record

    def lose_guest(self) -> None:
        """The mobile guest is gone: nobody asks it anything any more."""
        self._mobile_endpoint().gone = True

    def _mobile_endpoint(self) -> GuestEndpoint:
        endpoint = self.endpoints["mobile"]
        assert isinstance(endpoint, GuestEndpoint)
        return endpoint

    async def _execute_successor(self, plan: MigrationPlan, source: Side, *, deadline: Deadline) -> MigrationRecord:
        notes: list[str] = []
        record = await execute_successor(
            plan, source, successor=self.settings.destination, warden=self.warden, timeline=self.timeline, deadline=deadline,
            event=self._event, notes=notes,
        )  # fmt: skip
        self.settings = msgspec.structs.replace(self.settings, source=self.settings.destination, destination=self.settings.source)
        return replace(record, notes=tuple(notes))

    async def add_destination(self, *, deadline: Deadline) -> Side:
        """A machine that waits for the mobile guest (`migrate-incoming` is the caller's) and stays stopped when it has it; nothing passes its port.

        For those who drive a migration step by step; `migrate` does all of it. `moved_to` ends it.
        """
        self._generation += 1
        name = f"m{self._generation}"
        port, taps = await self._plug(name, queues=self.settings.queues, flags=PortFlags.closed())
        live = await self._watch(port)
        machine = self._machine(name, "destination", self.settings.destination, MOBILE, queues=self.settings.queues, incoming=True)
        machine.spec = msgspec.structs.replace(machine.spec, paused=True)
        await machine.start(taps, deadline=deadline.within(20.0))
        return await self._side(machine, port, live)

    async def moved_to(self, side: Side, *, deadline: Deadline) -> None:
        """The mobile guest runs on this side from now on, and its agent answers there."""
        self.mobile_side = side
        self.settings = msgspec.structs.replace(self.settings, source=self.settings.destination, destination=self.settings.source)
        self._mobile_endpoint().agent = side.machine.agent
        await side.machine.agent.sync(deadline=deadline.within(10.0))

    def _give_back(self, *, keep: Side) -> None:
        """Close what machines of earlier migrations hold: until the next one begins somebody may want to look at it."""
        for side in self._ended:
            for live in {side.live, *side.account.taps}.difference({keep.live, *keep.account.taps}):
                live.close()
                self._live.remove(live)
            if side.port is not keep.port:
                self.network.remove(side.port)
            for name in ("mg", *(f"x{number}" for number in range(self.settings.extra_nics))):
                self.network.remove_named(f"{name}-{side.machine.spec.name}")
            self._machines.remove(side.machine)
            side.machine.forget()
        self._ended.clear()
        self.warden.forget_ended()

    def _destination_spec(self, spec: MachineSpec, source: MachineSpec, plan: MigrationPlan) -> MachineSpec:
        """With what the way needs on the command line: memory that stays where it is, a channel to inherit through."""
        if plan.shares_memory:
            spec = msgspec.structs.replace(spec, memory_file=source.memory_file)
        if plan.mode is MigrationMode.BACKGROUND_SNAPSHOT:  # a twin of the guest, that must not speak for it
            spec = msgspec.structs.replace(spec, paused=True)
        if plan.mode is MigrationMode.CPR_TRANSFER:
            channel = json.dumps(cpr_channel(spec.name))
            spec = msgspec.structs.replace(spec, extra=(*spec.extra, "-incoming", channel))
        return spec
