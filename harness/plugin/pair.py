"""The pair as a test sees it: plain calls, plain values."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import paramiko

from harness.aftermath import keep_what_there_is
from harness.cache import cache_dir
from harness.errors import FeatureLackError, MigrationError, TestbedError, UsageError
from harness.host.deadline import Deadline
from harness.lab import Lab
from harness.migrate.checks import check_host, check_plan
from harness.migrate.driver import MigrationRecord
from harness.model.plan import MigrationPlan
from harness.model.result import RunResult, StreamResult, TcpResult, WitnessResult
from harness.model.scenario import (
    Accelerator,
    GuestSection,
    MigrationSection,
    NetworkSection,
    QemuSection,
    Scenario,
    TrafficKind,
    TrafficSection,
)
from harness.model.streams import plan_traffic
from harness.model.traffic_rules import traffic_problems
from harness.plugin.loop import LoopThread
from harness.plugin.told import figures_of
from harness.recording import Recording, Respec
from harness.run import RunOptions, prepare
from harness.store.rundir import RunDirectory
from harness.traffic.witness import require_programs
from harness.vm.agent import CommandResult, GuestAgent
from harness.vm.discovery import Features, discover
from harness.vm.logs import LabLogs

__all__ = ["GuestPair", "Settings", "Stream", "TrafficFactory"]

TrafficFactory = Callable[..., contextlib.AbstractContextManager["Stream"]]
T = TypeVar("T")
log = logging.getLogger("switchover")

_RUN_S = 180.0
_DRAIN_S = 0.3
_SETTLE_S = 10.0
_SCOPES = ("function", "module", "session")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a test's pair is made of, from the options and the marker."""

    qemu: str | None
    qemu_destination: str | None
    kernel: str | None
    image: str | None
    accel: str
    results: Path
    name: str
    requires: tuple[str, ...] = ()
    cold: bool = False
    scope: str = "function"
    guest: dict[str, Any] = {}
    migration_properties: dict[str, str] = {}
    network: dict[str, Any] = msgspec.field(default_factory=lambda: {"peer": "namespace"})

    @property
    def kind(self) -> str:
        """What makes two tests' pairs the same pair."""
        own = msgspec.structs.replace(self, name="", requires=(), results=Path())
        return msgspec.json.encode(msgspec.to_builtins(own, enc_hook=str), order="deterministic").decode()

    def with_marker(self, marker: Mapping[str, Any]) -> Settings:
        """With what the marker says; `UsageError` for a word it doesn't know. A marker's `qemu` stands back behind the option's."""
        guest, network, plain = dict(self.guest), dict(self.network), dict[str, Any]()
        for key, value in marker.items():
            if key in GuestSection.__struct_fields__:
                guest[key] = value
            elif key in NetworkSection.__struct_fields__:
                network[key] = value
            elif key == "qemu":
                if self.qemu is None:
                    plain.update(qemu=value, qemu_destination=self.qemu_destination or value)
            elif key == "migration_properties":
                plain[key] = dict(value)
            elif key in ("requires", "cold", "scope"):
                if key == "scope" and value not in _SCOPES:
                    raise UsageError(f"the marker switchover: scope is not {value!r}", hint=f"it is one of {', '.join(_SCOPES)}")
                plain[key] = tuple(value) if key == "requires" else value
            else:
                known = ["requires", "cold", "qemu", "scope", "migration_properties", *GuestSection.__struct_fields__, *NetworkSection.__struct_fields__]
                raise UsageError(f"the marker switchover knows no {key!r}", hint=f"it knows {', '.join(known)}")
        return msgspec.structs.replace(self, guest=guest, network=network, **plain)

    def scenario(self) -> Scenario:
        """The scenario that stands in the test's run directories."""
        safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name)[:60].strip("-.")
        return Scenario(
            name=safe or "test", accelerator=Accelerator(self.accel),
            guest=msgspec.convert({"kernel": self.kernel, "image": self.image} | self.guest, GuestSection),
            network=msgspec.convert(self.network, NetworkSection),
            qemu=QemuSection(
                source=self.qemu or "system", destination=self.qemu_destination or self.qemu or "system", migration_properties=self.migration_properties
            ),
            migration=MigrationSection(capabilities=("x-ignore-shared",) if self.guest.get("shared_memory") else ()),
        )  # fmt: skip


class Stream:
    """One stream of a test. `ledger` and `result` are there when its block has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.concluded: RunResult | None = None

    @property
    def result(self) -> RunResult:
        """The whole recording's result; `TestbedError` while its block of traffic goes on."""
        if self.concluded is None:
            raise TestbedError("the ledger is made when the outermost block of traffic has ended")
        return self.concluded

    @property
    def ledger(self) -> StreamResult:
        """This stream's account: `lost`, `delivered`, `duplicated`, `reordered`, `passed`, `ledger` (the classes), ..."""
        return self._mine(self.result.streams, "a UDP stream")

    @property
    def connection(self) -> TcpResult:
        """This connection's account: `survived`, `longest_stall_ms`, `rto_events`, `retransmitted_segments`, ..."""
        return self._mine(self.result.tcp, "a TCP connection")

    @property
    def witness(self) -> WitnessResult:
        """What this client says (`figures`), and the capture of the same packets (`capture`)."""
        return self._mine(self.result.witnesses, "a witness")

    def _mine(self, entries: Sequence[T], what: str) -> T:
        for entry in entries:
            if getattr(entry, "name", None) == self.name:
                return entry
        raise UsageError(f"{self.name} is not {what}", hint="udp has .ledger, tcp has .connection, ping has .witness")


class GuestPair:
    """The mobile guest and its peer."""

    def __init__(self, settings: Settings, lab: Lab, features: tuple[Features, Features], loop: LoopThread) -> None:
        self.lab = lab
        self.features = features
        self.properties: dict[str, Any] = {}
        self.directories: list[Path] = []
        self.broken: list[Path] = []
        self.record: MigrationRecord | None = None
        self._settings = settings
        self._loop = loop
        self._scenario = settings.scenario()
        self._recording: Recording | None = None
        self._directory: RunDirectory | None = None
        self._open_blocks = 0
        self._stream_count = 0
        self._streams: list[Stream] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: Settings, *, loop: LoopThread) -> Iterator[GuestPair]:
        """A started pair; `FeatureLackError` where a required feature is missing."""
        scenario = settings.scenario()
        options = RunOptions(results=settings.results, cache=cache_dir(), cold=settings.cold)

        def say(text: str) -> None:
            log.info("%s", text)

        async def start() -> tuple[Lab, tuple[Features, Features]]:
            lab_settings = await prepare(scenario, options=options, progress=say)
            features = (
                await discover(lab_settings.source, cache=options.cache),
                await discover(lab_settings.destination, cache=options.cache),
            )
            _require(features, settings)
            settings.results.mkdir(parents=True, exist_ok=True)
            lab = Lab(lab_settings, logs=LabLogs(), progress=say)
            say("starting a pair of guests")
            try:
                await lab.start()
            except BaseException as error:
                await _keep(lab, scenario, settings, error)
                await lab.close()
                raise
            return lab, features

        lab, features = loop.run(start())
        try:
            yield cls(settings, lab, features, loop)
        finally:
            loop.run(lab.close())

    def lend(self, settings: Settings) -> None:
        """Let another test have the pair: its recordings go to its own folder, its figures start anew. `FeatureLackError` as in `open`."""
        _require(self.features, settings)
        self._settings = settings
        self._scenario = settings.scenario()
        self.properties, self.directories, self.broken, self.record = {}, [], [], None
        settings.results.mkdir(parents=True, exist_ok=True)

    @property
    def busy(self) -> bool:
        """Whether a block of traffic has not ended."""
        return self._recording is not None

    # -- traffic and migration

    def udp(self, **traffic: Any) -> contextlib.AbstractContextManager[Stream]:
        """A UDP stream for the length of the block. Keys as in a scenario's traffic section; direction "both" isn't one stream.

        Blocks may be nested, those of other kinds too; the account is made when the outermost one ends.
        """
        return self._block(TrafficKind.UDP, {"direction": "to-guest"} | traffic)

    def tcp(self, *, idle: bool = False, **traffic: Any) -> contextlib.AbstractContextManager[Stream]:
        """A TCP connection, as `udp`; `idle`: one that says nothing. Its account is `connection`."""
        return self._block(TrafficKind.IDLE_TCP if idle else TrafficKind.TCP, {"direction": "to-guest"} | traffic)

    def ping(self, **traffic: Any) -> contextlib.AbstractContextManager[Stream]:
        """ping from the peer, as `udp`. Its account is `witness`."""
        return self._block(TrafficKind.ICMP, traffic)

    @contextlib.contextmanager
    def _block(self, kind: TrafficKind, traffic: dict[str, Any]) -> Iterator[Stream]:
        section = msgspec.convert({"kind": kind.value} | traffic, TrafficSection)
        problems = list(traffic_problems(Scenario(name="block", traffic=(section,))))
        if problems:
            raise UsageError(f"{problems[0].key[-1]} = {problems[0].value!r}: {problems[0].wrong}", hint=problems[0].mend)
        if section.direction == "both":
            raise UsageError('direction "both" stands for two streams', hint=f"nest two {kind} blocks")
        require_programs([section], peer=self.lab.settings.peer)
        (plain,) = plan_traffic([section])
        self._stream_count += 1
        number = self._stream_count
        name = section.name or (f"{kind}{number}-{section.direction}" if section.direction else f"{kind}{number}")
        stream = msgspec.structs.replace(plain, id=number, port=plain.port + number, name=name)
        deadline = Deadline(_RUN_S)
        recording = self._begin()
        self._open_blocks += 1
        try:
            running = self._loop.run(recording.start_traffic([stream], deadline=deadline))
            stream_of_test = Stream(name)
            self._streams.append(stream_of_test)
            yield stream_of_test
            self._loop.run(recording.stop_traffic(running, drain_s=_DRAIN_S, deadline=deadline))
        except BaseException as error:
            self._abandon(error)
            raise
        self._open_blocks -= 1
        if self._open_blocks == 0:
            self._conclude()

    def migrate(
        self, *, mechanism: str = "none", deadline_s: float = 60.0, respec: Respec | None = None, **plan: Any
    ) -> MigrationRecord:
        """Migrate the mobile guest; keys as in a scenario's migration section (`mode`, `hold_ms`, `capabilities`, ...).

        `respec` changes the destination machine's description, for one that is not what the source expects.
        """
        section = msgspec.convert(plan, MigrationSection)
        wanted = MigrationPlan.from_section(section, mechanism=mechanism)
        check_plan(wanted, scenario=self._scenario, source=self.features[0], destination=self.features[1],
                   accelerator=self.lab.settings.accelerator)
        check_host(wanted)
        if self._recording is None:
            work = self.lab.migrate(wanted, deadline=Deadline(deadline_s), respec=respec)
        else:
            work = self._recording.migrate(wanted, deadline=Deadline(deadline_s), respec=respec)
        log.info("migrating: %s, mechanism %s", wanted.mode, wanted.mechanism)
        self.record = self._loop.run(work)
        if self.record.failure:
            raise MigrationError(self.record.failure)
        return self.record

    def _begin(self) -> Recording:
        if self._recording is None:
            self._directory = RunDirectory.create(self._settings.results, self._scenario.name)
            self._directory.write_scenario(self._scenario)
            with self._kept_on_failure(self._directory):
                self._loop.run(self.lab.settle(deadline=Deadline(_SETTLE_S)))
                self._recording = self._loop.run(Recording.begin(self.lab, self._directory, scenario=self._scenario))
            self._streams = []
        return self._recording

    def _conclude(self) -> None:
        assert self._recording is not None
        assert self._directory is not None
        recording, self._recording = self._recording, None
        with self._kept_on_failure(self._directory):
            result = self._loop.run(recording.conclude()).result
        self._directory.finish()
        for handle in self._streams:
            handle.concluded = result
        self.directories.append(self._directory.path)
        self.properties |= figures_of(result, number=len(self.directories))
        log.info("%s: %s", self._directory.path.name, ", ".join(f"{s.name} lost {s.lost} of {s.sent}" for s in result.streams))
        if recording.failure:
            raise MigrationError(recording.failure)

    @contextlib.contextmanager
    def _kept_on_failure(self, directory: RunDirectory) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.broken.append(directory.path)
            self._loop.run(keep_what_there_is(self.lab, directory, error=error))
            raise

    def _abandon(self, error: BaseException) -> None:
        recording, self._recording = self._recording, None
        self._open_blocks = 0
        if recording is not None:
            assert self._directory is not None
            self.broken.append(self._directory.path)
            self._loop.run(recording.abandon(error))

    def keep(self, error: BaseException) -> Path:
        """For a test that failed: see that everything known is in a folder of its own, or beside the last recording; that folder."""
        if not self.broken and self.directories:
            assert self.lab.logs is not None
            self.lab.logs.write(self.directories[-1])
            return self.directories[-1]
        if not self.broken:
            self.broken.append(self._loop.run(_keep(self.lab, self._scenario, self._settings, error)))
        return self.broken[-1]

    @property
    def run_directory(self) -> Path:
        """Where the raw data of the last block lies."""
        if self._directory is None:
            raise TestbedError("there was no traffic yet")
        return self._directory.path

    # -- the guests

    def succeed(self, command: str, *, on: str = "mobile", timeout_s: float = 30.0) -> str:
        """Run a shell command in a guest; its output. An exit status other than 0 is an error of the test."""
        return self._loop.run(self._agent(on).shell(command, deadline=Deadline(timeout_s)))

    def run(self, argv: Sequence[str], *, on: str = "mobile", timeout_s: float = 30.0) -> CommandResult:
        """Run a program in a guest, whatever its status."""
        return self._loop.run(self._agent(on).run(argv, deadline=Deadline(timeout_s)))

    def qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask the QEMU that the mobile guest is in; names as QEMU spells them. `CommandRefusedError` when it refuses."""
        return self._loop.run(self.lab.mobile.qmp.call(command, arguments))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a piece of the lab's asynchronous work, such as `lab.warden.spawn(...)`; returns what it returns."""
        return self._loop.run(work)

    def _agent(self, on: str) -> GuestAgent:
        if on == "mobile":
            return self.lab.mobile.agent
        if on == "peer" and self.lab.peer_machine is not None:
            return self.lab.peer_machine.agent
        raise UsageError(f"there is no guest {on!r}", hint='"mobile", and "peer" where the peer is a guest')

    @contextlib.contextmanager
    def ssh(self, *, on: str = "mobile") -> Iterator[paramiko.SSHClient]:
        """An SSH session as root, over the management network."""
        image = self.lab.settings.image
        sock = self._loop.run(self.lab.management_socket(peer=on == "peer"))
        client = paramiko.SSHClient()
        kind, key = image.host_key.split()[:2]
        client.get_host_keys().add("guest", kind, paramiko.PKey.from_type_string(kind, base64.b64decode(key)))
        key_file = paramiko.Ed25519Key.from_private_key_file(str(image.ssh_key))
        try:
            client.connect("guest", username="root", pkey=key_file, sock=sock, look_for_keys=False, allow_agent=False)
            yield client
        finally:
            client.close()


async def _keep(lab: Lab, scenario: Scenario, settings: Settings, error: BaseException) -> Path:
    """What there is, where no recording was made."""
    directory = RunDirectory.create(settings.results, scenario.name)
    directory.write_scenario(scenario)
    await keep_what_there_is(lab, directory, error=error)
    return directory.path


def _require(features: tuple[Features, Features], settings: Settings) -> None:
    for side in features:
        if lacking := side.lacking(list(settings.requires)):
            raise FeatureLackError("; ".join(lacking))
