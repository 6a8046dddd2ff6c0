"""local-tap: the destination takes over the open TAP; whatever goes wrong, the source goes on with it and loses nothing more."""

from __future__ import annotations

import asyncio
import fcntl
import re
import signal
import struct
import time

import msgspec
import pytest
from helpers import account

from harness.errors import MigrationError
from harness.host.deadline import Deadline
from harness.migrate.mechanisms.local_tap import LocalTap
from harness.model.addresses import MOBILE

pytestmark = pytest.mark.switchover(requires=["local-tap"], qemu="reference")

TUNGETIFF, TUNGETVNETHDRSZ = 0x800454D2, 0x800454D7


def settings_of(port):
    """What can be asked of an open TAP: name and flags (among them those of its queues), length of its header."""
    return [
        (fcntl.ioctl(fd, TUNGETIFF, bytes(40)), struct.unpack("i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4)))) for fd in port.fds
    ]


def exactly_once(guest_pair, udp, *, rate_pps=1000, streams=1, **plan):
    """Migrate under traffic both ways; every packet arrives exactly once, through one TAP."""
    port = guest_pair.lab.mobile_side.port
    with udp(rate_pps=500, direction="from-guest") as up, udp(rate_pps=rate_pps) as down:
        more = [udp(rate_pps=rate_pps, ip=6) for _ in range(streams - 1)]
        others = [stream.__enter__() for stream in more]
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="local-tap", **{"hold_ms": 100} | plan)
        guest_pair.succeed("sleep 0.3")
        for stream in more:
            stream.__exit__(None, None, None)
    assert guest_pair.lab.mobile_side.port is port
    assert [account(stream) for stream in (down, up, *others)] == [(0, 0, 0, 0)] * (2 + len(others))
    assert down.ledger.passed >= 0.8 * 0.1 * rate_pps
    downtime = down.result.downtime
    assert all(figure.value >= 100 for figure in (downtime.compute_ms, downtime.network_ms, downtime.reported_ms))
    return down


def test_nothing_is_lost_doubled_or_reordered_on_the_way_to_the_next_machine_and_with_multifd_to_the_one_after(guest_pair, udp):
    for capabilities in ([], ["multifd"]):
        exactly_once(guest_pair, udp, capabilities=capabilities)
    assert guest_pair.lab.mobile.spec.name == "m2"


@pytest.mark.switchover(requires=["local-tap"], qemu="reference", queues=2)
def test_two_queues(guest_pair, udp):
    exactly_once(guest_pair, udp, rate_pps=400, streams=2)



# -- failures


class KilledBefore(LocalTap):
    """The destination is gone before the migration begins."""

    async def prepare(self, context):
        await context.destination.machine.process.kill()


class KilledAtTheStop(LocalTap):
    async def stopped(self, context, *, stop_ns):
        await context.destination.machine.process.kill()


class KilledWithTheTapOnItsWay(LocalTap):
    """The source has sent the descriptors, and nobody took them."""

    async def before_continue(self, context, *, stop_ns):
        source, destination = context.source.machine, context.destination.machine
        await destination.process.signal(signal.SIGSTOP)

        async def kill():
            async def sent():
                return source.process.read_output().count(b"tap_transfer_put ") == len(source.spec.nics)

            await context.deadline.poll(sent, awaited="the source to send its TAPs")
            await destination.process.kill()

        self.killer = asyncio.ensure_future(kill())


class FailsAfterTheHandover(LocalTap):
    """The destination has the TAP of the NIC under test, and then can't load the second NIC."""

    def destination_spec(self, spec, *, features):
        spec = super().destination_spec(spec, features=features)
        second = msgspec.structs.replace(spec.nics[1], properties=("csum=off", "guest_csum=off"))
        return msgspec.structs.replace(spec, nics=(spec.nics[0], second))


class HasATapOfItsOwn(LocalTap):
    keeps_port = False

    def destination_spec(self, spec, *, features):
        return spec


class IsNotTold(LocalTap):
    """The destination waits, but nobody told the source."""

    def source_parameters(self, *, features):
        return {}


class HasMoreQueues(LocalTap):
    def destination_spec(self, spec, *, features):
        spec = super().destination_spec(spec, features=features)
        return msgspec.structs.replace(spec, nics=(msgspec.structs.replace(spec.nics[0], queues=2), *spec.nics[1:]))


class HasNoVnetHeader(LocalTap):
    def destination_spec(self, spec, *, features):
        spec = super().destination_spec(spec, features=features)
        first = msgspec.structs.replace(spec.nics[0], takes_over=f"vnet_hdr=off,{spec.nics[0].takes_over}")
        return msgspec.structs.replace(spec, nics=(first, *spec.nics[1:]))


# Each with: was the VM stopped, the TAP sent, the TAP received, and the destination's words.
FAILURES = [
    (KilledBefore, (False, False, False), ""),
    (HasATapOfItsOwn, (False, False, False), "does not wait for the source's TAP, set option incoming-fds"),
    (HasMoreQueues, (False, False, False), "netdev 'net0-netdev' has 2 queues here, but 1 at the source"),
    (KilledAtTheStop, (True, False, False), ""),
    (IsNotTold, (True, False, False), "netdev 'net0-netdev' got no file descriptor from the source"),
    (HasNoVnetHeader, (True, True, True), "was created with vnet_hdr=off, but the source's TAP is not"),
    (FailsAfterTheHandover, (True, True, True), "error while loading state for instance 0x0 of device '0000:00:03.0/virtio-net'"),
]


def test_after_each_failure_the_source_goes_on_with_its_tap_and_can_be_migrated_in_the_end(guest_pair, udp, mechanism):
    for kind, stage, words in FAILURES:
        fails_and_goes_on(guest_pair, udp, kind=mechanism(kind), stage=stage, words=words)
    exactly_once(guest_pair, udp)


# With no memory to copy, all that is left fits into the socket; else the source would wait for its reader.
@pytest.mark.switchover(requires=["local-tap"], qemu="reference", shared_memory=True)
def test_with_memory_that_is_not_copied_also_after_a_death_with_the_tap_on_its_way(guest_pair, udp, mechanism):
    kind = mechanism(KilledWithTheTapOnItsWay)
    fails_and_goes_on(guest_pair, udp, kind=kind, stage=(True, True, False), capabilities=["x-ignore-shared"])
    stream = exactly_once(guest_pair, udp, capabilities=["x-ignore-shared"])
    assert stream.result.migration.ram["transferred"] < 64 << 20


@pytest.mark.nightly
@pytest.mark.parametrize("repeat", range(5))
@pytest.mark.parametrize(("kind", "stage", "words"), FAILURES, ids=lambda value: value.__name__ if isinstance(value, type) else "")
def test_after_a_failure_of_a_fresh_pair_the_source_goes_on_with_its_tap(guest_pair, udp, mechanism, kind, stage, words, repeat):
    fails_and_goes_on(guest_pair, udp, kind=mechanism(kind), stage=stage, words=words)


def fails_and_goes_on(guest_pair, udp, *, kind, stage, words="", **plan):
    lab = guest_pair.lab
    port = lab.mobile_side.port
    before = settings_of(port)
    logged = lab.mobile.process.read_output().count(b"tap_transfer_put ")
    began_ns = time.time_ns()
    with udp(rate_pps=1000) as down, udp(rate_pps=500, direction="from-guest") as up:
        guest_pair.succeed("sleep 0.2")
        with pytest.raises(MigrationError):
            guest_pair.migrate(mechanism=kind, hold_ms=60, **plan)
        guest_pair.succeed("sleep 0.3")
    # It failed where it was meant to,
    destination = lab.machines[-1].process.read_output().decode()
    stopped = lab.timeline.find("STOP", source="source", after_ns=began_ns) is not None
    sent = lab.mobile.process.read_output().count(b"tap_transfer_put ") > logged
    assert (stopped, sent, "tap_transfer_get " in destination) == stage, kind
    assert words in destination
    # and the source has its TAP, as it was, and all frames.
    assert account(down) == account(up) == (0, 0, 0, 0)
    assert lab.mobile is lab.machines[0]
    assert settings_of(port) == before


def test_after_a_cancel_the_source_goes_on_and_it_works_again(guest_pair, udp):
    with udp(rate_pps=1000) as stream:
        guest_pair.succeed("sleep 0.2")
        record = guest_pair.migrate(mechanism="local-tap", hold_ms=100, cancel_at_switchover=True)
        guest_pair.succeed("sleep 0.2")
    assert record.status == "cancelled"
    assert account(stream) == (0, 0, 0, 0)
    exactly_once(guest_pair, udp)


# -- the idea of the posted functional test, with figures


def test_every_unanswered_ping_lies_inside_the_window(guest_pair):
    for name in ("local-tap", "none"):
        pinged(guest_pair, name)


def pinged(guest_pair, name):
    lab = guest_pair.lab
    began_ns = time.time_ns()
    argv = ["ping", "-n", "-i", "0", "-O", "-D", MOBILE.ip4]
    ping = guest_pair.do(lab.warden.spawn("ping", argv, netns="peer"))
    guest_pair.succeed("sleep 0.3")
    record = guest_pair.migrate(mechanism=name, hold_ms=150)
    guest_pair.succeed("sleep 0.3")
    guest_pair.do(ping.signal(signal.SIGINT))
    guest_pair.do(ping.wait(Deadline(10)))
    text = ping.read_output().decode()
    unanswered = {int(seq): float(at) for at, seq in re.findall(r"^\[([\d.]+)\] no answer yet for icmp_seq=(\d+)$", text, re.MULTILINE)}
    answered = {int(seq) for seq in re.findall(r" bytes from .* icmp_seq=(\d+) ", text)}
    sent = int(re.search(r"^(\d+) packets transmitted", text, re.MULTILINE)[1])
    lost = set(range(1, sent)) - answered  # the last one may still be on its way
    begin_s = lab.timeline.find("migrate", source="harness", after_ns=began_ns).t_ns / 1e9
    late = [at for seq, at in unanswered.items() if seq in lost and not begin_s - 0.05 <= at <= record.resume_ns / 1e9 + 0.05]
    guest_pair.properties |= {f"ping.{name}.sent": sent, f"ping.{name}.lost": len(lost), f"ping.{name}.unanswered": len(unanswered)}
    assert sent > 30
    assert "DUP" not in text
    assert not late
    if name == "local-tap":
        assert not lost
        assert any(begin_s <= at <= record.resume_ns / 1e9 for at in unanswered.values()), "the switchover was not noticed"
    else:
        assert lost
