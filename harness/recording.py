"""A recording: one stretch of traffic in a lab, with everything that the ledger needs, and at most one migration.

    recording = await Recording.begin(lab, directory, scenario=...)
    traffic = await recording.start_traffic(streams)
    await recording.migrate(plan)
    await recording.stop_traffic(traffic)
    analysis = await recording.conclude()

The run directory holds all raw data afterwards; the analysis is a pure function of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from harness.aftermath import keep_what_there_is, write_timeline
from harness.builds import QemuInstall
from harness.capture.bpf import drop_probes_bytecode
from harness.capture.live import LiveFrame
from harness.capture.ring import CapturePoint, CaptureSet
from harness.errors import GuestCrashError, MigrationError, SwitchoverError, TestbedError, UsageError
from harness.host.deadline import PATIENCE, Deadline
from harness.host.drops import PortDrops
from harness.host.facts import host_facts
from harness.host.network import Port, PortCounters
from harness.host.tap import read_queue
from harness.lab import Lab, LabSettings
from harness.migrate.account import StopPoint
from harness.migrate.driver import EndedSide, MigrationRecord
from harness.model.calibration import CalibrationResult
from harness.model.facts import CaptureFacts, CounterFacts, MigrationFacts, QueueFacts, RunFacts
from harness.model.plan import MigrationPlan
from harness.model.result import GuestIdentity, QemuIdentity, QemuPair
from harness.model.scenario import InjectSection, Scenario
from harness.model.streams import TcpStream, Traffic, UdpStream, Witness
from harness.store.analyze import Analysis, analyze_run
from harness.store.frames import write_frames
from harness.store.rundir import RunDirectory
from harness.traffic.generator import Generator, make_generators
from harness.vm.argv import MachineSpec
from harness.vm.crash import guest_crash

__all__ = ["Recording", "Respec"]

_QUIET_S = 3.0
"""How long to wait until nothing is sent to the guest any more, when all traffic of ours has ended."""

Respec = Callable[[MachineSpec], MachineSpec]
"""What makes another machine of the destination's description."""


class Recording:
    """Made by `begin`; ends with `conclude` or `abandon`."""

    def __init__(self, lab: Lab, directory: RunDirectory, scenario: Scenario) -> None:
        self.figures: dict[str, float] = dict(lab.figures)
        self.notes: list[str] = [*lab.settings.notes]
        self.failure: str | None = None
        self.calibration: CalibrationResult | None = None
        self._lab = lab
        self._settings: LabSettings = lab.settings  # as they are before the migration swaps the sides
        self._directory = directory
        self._scenario = scenario
        self._captures = CaptureSet()
        self._ports: dict[str, Port] = {}
        self._before: dict[str, PortCounters] = {}
        self._traffic: list[UdpStream | TcpStream | Witness] = []
        self._migrations: list[MigrationFacts] = []
        self._drops: PortDrops | None = None
        self._summaries: list[dict[str, Any]] = []
        self._counters: list[CounterFacts] = []
        self._ended: tuple[EndedSide, ...] = ()
        self._stop_point: StopPoint | None = None
        self._nonce = secrets.randbits(32)
        self._start_ns = time.time_ns()

    @classmethod
    async def begin(cls, lab: Lab, directory: RunDirectory, *, scenario: Scenario) -> Recording:
        """Start capturing at the peer's port and at the mobile guest's TAP."""
        recording = cls(lab, directory, scenario)
        if lab.peer_port is None or lab.mobile_side is None:
            raise TestbedError("the lab was not started")
        await recording._watch("peer", lab.peer_port)
        await recording._watch("source", lab.mobile_side.port)
        return recording

    async def _watch(self, name: str, port: Port) -> None:
        path = self._directory.path / "capture" / f"{name}.pcapng"
        sock = await self._lab.network.packet_socket()
        self._captures.add(name, CapturePoint(sock=sock, interface=port.name, path=path))
        self._ports[name] = port
        self._before[name] = await self._lab.network.counters(port)

    # -- what happens in it

    async def start_traffic(self, traffic: Iterable[UdpStream | TcpStream | Witness], *, deadline: Deadline) -> Generator:
        """Start streams, connections and witnesses (with ids not used before in this recording)."""
        fresh = tuple(traffic)
        generator = make_generators(fresh, mobile=self._lab.endpoints["mobile"], peer=self._lab.endpoints["peer"], nonce=self._nonce)
        await generator.start(deadline=deadline)
        self._traffic += fresh
        return generator

    async def drop_on_purpose(self, inject: InjectSection, traffic: Iterable[UdpStream | TcpStream | Witness]) -> None:
        """Let the host drop packets of the first stream to the guest, at the peer's port; the kernel's counter of it is evidence."""
        stream = next((each for each in traffic if isinstance(each, UdpStream) and each.sender_is_peer and each.ip == 4), None)
        if stream is None:
            raise UsageError("inject.drop_packets needs a UDP stream to the guest over IPv4", hint="add one to [[traffic]]")
        program = drop_probes_bytecode(stream=stream.id, first=inject.drop_first, count=inject.drop_packets)
        self._drops = await PortDrops.install(self._lab.warden, port=self._ports["peer"], program=program)

    async def stop_traffic(self, traffic: Generator, *, drain_s: float, deadline: Deadline) -> None:
        """Stop sending, wait for the last packets, bring in the records.

        A guest that has crashed by then is the recording's `failure`; its records went with it. `GuestCrashError` when it crashes now.
        """
        began = time.monotonic()
        drain_s *= PATIENCE
        if (crash := self._crash()) is not None:
            self.failure = self.failure or crash
            self.notes.append(crash)
            self._lab.lose_guest()
        try:
            self._summaries += await traffic.stop(self._directory.path / "traffic", drain_s=drain_s, deadline=deadline)
        except TestbedError as error:
            if crash is None and (crash := self._crash()) is not None:
                raise GuestCrashError(crash) from error
            raise
        self.figures["records_s"] = time.monotonic() - began - drain_s

    def _crash(self) -> str | None:
        return guest_crash(self._lab.mobile, self._lab.timeline, since_ns=self._start_ns)

    async def migrate(self, plan: MigrationPlan, *, deadline: Deadline, respec: Respec | None = None) -> MigrationRecord:
        """Migrate the mobile guest (or stop and continue it, as the plan says). `MigrationError` when it ends in another way than planned."""
        if self._migrations:
            raise TestbedError("a recording holds one migration", hint="begin a new block of traffic for the next one")

        async def capture(port: Port) -> None:
            await self._watch("destination", port)

        if self._lab.vhost is not None:
            self._lab.vhost.look()  # while the source is there
        began, began_ns = time.monotonic(), time.time_ns()
        source, known = self._lab.mobile.spec.name, set(self._lab.machines)
        record = await self._lab.migrate(plan, deadline=deadline, capture=capture, respec=respec)
        self.figures["migration_s"] = time.monotonic() - began
        self.notes += record.notes
        self.figures |= record.figures
        names = (source, *(machine.spec.name for machine in self._lab.machines if machine not in known))
        self._ended, self._stop_point = record.ended, record.stop_point
        self._migrations.append(self._facts_of(record, plan, began_ns, names))
        if record.failure:
            raise MigrationError(record.failure)
        return record

    # -- the end

    async def conclude(self) -> Analysis:
        """Stop capturing, write everything down, analyse it. The folder keeps its partial name."""
        end_ns = time.time_ns()
        if self._lab.vhost is not None:
            self._lab.vhost.look()
            self.figures |= self._lab.vhost.figures
            self.notes.append(self._lab.vhost.note)
        if (link := self._lab.network.migration_link) is not None and (queues := await link.queues()):
            self.figures |= {"link_frames": float(sum(each.frames for each in queues)), "link_dropped": float(sum(each.dropped for each in queues))}
            self.notes.append("link: " + "; ".join(map(str, queues)))
        await self._count_drops()
        await self._collect_leftovers()
        captures = await self._stop_captures()
        write_timeline(self._lab, self._directory, end_ns=end_ns)
        self._directory.write_json("traffic/summaries.json", self._summaries)
        self._directory.write_json("run.json", self._facts(captures, end_ns))
        analysis = await asyncio.to_thread(analyze_run, self._directory)
        self._directory.write_json("result.json", analysis.result)
        return analysis

    def _facts(self, captures: dict[str, CaptureFacts], end_ns: int) -> RunFacts:
        settings, traffic = self._settings, Traffic.of(self._traffic)
        return RunFacts(
            run_id=self._directory.run_id, scenario=self._scenario, accelerator=settings.accelerator,
            accelerator_reason=settings.accelerator_reason, host=host_facts(),
            qemu=QemuPair(source=_identity(settings.source), destination=_identity(settings.destination)),
            guest=GuestIdentity(kernel=settings.image.kernel_release, image=settings.image.digest),
            streams=traffic.udp, tcp=traffic.tcp, witnesses=traffic.witnesses, nonce=self._nonce, traffic_start_ns=self._start_ns, traffic_end_ns=end_ns,
            migrations=tuple(self._migrations), captures=captures, counters=tuple(self._counters),
            calibration=self.calibration, figures=self.figures, notes=tuple(self.notes), failure=self.failure,
        )  # fmt: skip

    async def abandon(self, error: BaseException) -> None:
        """Stop capturing after a failure. What was captured stays, and what else is known is written down beside it; the error then names the folder."""
        end_ns = time.time_ns()
        self.failure = self.failure or f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # no second failure may take the place of the first
            captures = await self._stop_captures()
            await self._count_ports()
            self._directory.write_json("run.json", self._facts(captures, end_ns))
        await keep_what_there_is(self._lab, self._directory, error=error)

    async def _stop_captures(self) -> dict[str, CaptureFacts]:
        summaries = await asyncio.to_thread(self._captures.stop)
        return {
            name: CaptureFacts(
                interface=self._ports[name].name, file=f"capture/{summary.path.name}", packets=summary.packets,
                dropped=summary.dropped, incomplete=summary.shortened + summary.interruptions,
            )
            for name, summary in summaries.items()
        }  # fmt: skip

    def _frames(self, name: str, content: Sequence[bytes], times_ns: Sequence[int] = (), *, port: str = "source") -> str:
        """Write frames to a file of their own; its path in the run directory."""
        relative = f"capture/{name}.pcapng"
        path, times_ns = self._directory.path / relative, times_ns or [0] * len(content)
        write_frames(path, content, times_ns=times_ns, interface=self._ports[port].name)
        return relative

    def _sent(self, queues: Sequence[Sequence[LiveFrame]]) -> str:
        """What was sent to the source's TAP and not delivered, queue by queue."""
        frames = list(chain.from_iterable(queues))
        return self._frames("undelivered", [frame.frame for frame in frames], [frame.time_ns for frame in frames])

    async def _collect_leftovers(self) -> None:
        """What waits, now that the traffic has ended, at the TAPs of machines that a fault left without a guest."""
        for ended in self._ended:
            waiting = [read_queue([fd]) for fd in ended.side.port.fds]
            kind = "stranded" if ended.name == "source" else "abandoned"
            found: dict[str, Any] = {f"{kind}_file": self._frames(kind, list(chain.from_iterable(waiting)), port=ended.name)}
            if ended.name == "source" and self._stop_point is not None:
                left = await ended.side.account.left(self._stop_point)
                found["undelivered_file"] = self._sent(left)
                found["taken"] = None  # QEMU may have read on after it was asked: what does not wait was taken
                found["queues"] = _queues(left, waiting)
            self._migrations[-1] = msgspec.structs.replace(self._migrations[-1], **found)

    def _facts_of(self, record: MigrationRecord, plan: MigrationPlan, began_ns: int, names: tuple[str, ...]) -> MigrationFacts:
        begin = self._lab.timeline.find("migrate", source="harness", after_ns=began_ns)
        moved = record.moved

        undelivered = stranded = passed = None
        if record.stop_point is not None:
            undelivered = self._sent(record.source_frames)
        if record.stranded is not None:
            stranded = self._frames("stranded", list(chain.from_iterable(record.stranded)))
        if moved and record.undelivered_reason:
            self.notes.append(record.undelivered_reason)
        if record.report.passed:
            passed = self._frames("passed", [f.frame for f in record.report.passed], [f.time_ns for f in record.report.passed])
        return MigrationFacts(
            mode=plan.mode, mechanism=plan.mechanism, source=names[0] if len(names) > 1 else "", destination="".join(names[1:2]),
            capabilities=plan.capabilities, parameters=plan.parameters,
            status=record.status, statuses=record.statuses, info=record.info, moved=moved, transport=plan.transport, tls=plan.tls,
            destination_info=record.destination_info, migrate_ns=begin.t_ns if begin else None,
            stop_ns=record.stop_ns, resume_ns=record.resume_ns, completed_ns=record.completed_ns,
            undelivered_file=undelivered, undelivered_reason=record.undelivered_reason, stranded_file=stranded,
            taken=record.stop_point.swallowed if record.stop_point is not None and not record.stop_point.queues else None,
            queues=_queues(record.source_frames, record.stranded or ()), passed_file=passed, survivor=record.survivor,
            deaths={ended.name: ended.died_ns for ended in record.ended if ended.died_ns is not None},
            figures={name: float(value) for name, value in record.report.figures.items()},
        )  # fmt: skip

    async def _count_what_qemu_lost(self) -> None:
        """Where no queue can be read back to tell who lost a frame: two machines read the source's TAP, or the source runs on.

        But the frames that were sent to the TAP, less those it dropped and those that came to the guest's ring, were lost in QEMU.
        """
        side = self._lab.mobile_side
        if side is None or self._migrations[-1:] == [] or side.port is not self._ports["source"]:
            return
        dropped = sum(counter.count for counter in self._counters if counter.place == "source-tap")
        reason = ""
        try:
            count = await side.account.missing(deadline=Deadline(_QUIET_S)) - dropped
            self._counters.append(
                CounterFacts(name="QEMU (by the receive ring)", place="source-tap", direction="to-guest", count=count, fate="lost_in_qemu")
            )
        except SwitchoverError as error:
            reason = f"what QEMU lost can't be counted: {error.message.splitlines()[0]}"
        self._migrations[-1] = msgspec.structs.replace(self._migrations[-1], undelivered_reason=reason)

    async def _count_ports(self) -> None:
        """The increase of each port's drop counter."""
        places = {"source": ("source-tap", "to-guest"), "destination": ("destination-tap", "to-guest"), "peer": ("peer", "from-guest")}
        for name, (place, direction) in places.items():
            if name in self._ports:
                port = self._ports[name]
                after = await self._lab.network.counters(port)
                count = after.tx_dropped - self._before[name].tx_dropped
                self._counters.append(CounterFacts(name=f"{port.name} tx_dropped", place=place, direction=direction, count=count))

    async def _count_drops(self) -> None:
        """The increase of every drop counter on the way, as evidence for the ledger."""
        await self._count_ports()
        await self._count_what_qemu_lost()
        if self._drops is not None:
            count = await self._drops.count()
            name = f"the filter at {self._ports['peer'].name}"
            self._counters.append(CounterFacts(name=name, place="bridge", direction="to-guest", count=count))
        for end in self._lab.endpoints:
            # Several generators may have run at an end, at the same time too.
            seen = [summary["queue_drops"] for summary in self._summaries if summary["endpoint"] == end and "queue_drops" in summary]
            if not seen:
                continue
            place, direction = ("guest", "from-guest") if end == "mobile" else ("peer", "to-guest")
            count = max(drops["after"] for drops in seen) - min(drops["before"] for drops in seen)
            self._counters.append(CounterFacts(name=f"{end}'s queue", place=place, direction=direction, count=count))
        streams = {stream.id: stream for stream in Traffic.of(self._traffic).udp}
        for summary in self._summaries:
            for entry in summary["streams"]:
                stream = streams.get(entry["id"])
                if stream is None or entry["role"] == "send":
                    continue
                at_guest = stream.sender_is_peer
                self._counters.append(
                    CounterFacts(
                        name=f"{stream.name} socket drops", place="guest" if at_guest else "peer",
                        direction="to-guest" if at_guest else "from-guest", count=int(entry["socket_drops"]),
                    )
                )


def _queues(left: Sequence[Sequence[LiveFrame]], waiting: Sequence[Sequence[bytes]]) -> tuple[QueueFacts, ...]:
    """For each of several queues what was left in it; nothing where there is but one, or it is not known what waited."""
    if len(left) < 2 or len(waiting) != len(left):
        return ()
    return tuple(QueueFacts(undelivered=len(frames), waiting=len(rest)) for frames, rest in zip(left, waiting, strict=True))


def _identity(qemu: QemuInstall) -> QemuIdentity:
    return QemuIdentity(name=qemu.name, version=qemu.version, build=qemu.build_id)
