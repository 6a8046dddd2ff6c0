"""redirect: filters that work while the VM is stopped; and what the filters of a stock QEMU do in their place."""

from __future__ import annotations

import signal
from typing import ClassVar

import msgspec
import pytest
from helpers import account

from harness.errors import SwitchoverError
from harness.migrate.mechanisms.base import Mechanism
from harness.migrate.mechanisms.redirect import Redirect

REDIRECT = pytest.mark.switchover(requires=["redirect"], qemu="reference")
HELD = 80
"""Packets that come in a hold of 100 ms at 1000/s, less what a slow sender may be behind."""


class Redirector(Redirect):
    """With filter-redirector at the source, which takes the frames and leaves no copy."""

    source_filter: ClassVar[str] = "filter-redirector"


class KillsTheDestination(Redirect):
    async def before_continue(self, context, *, stop_ns):
        await context.destination.machine.process.signal(signal.SIGKILL)
        await context.destination.machine.process.ended


def migrated(guest_pair, udp, mechanism, **plan):
    """A stream of 1000/s around a migration; its account, and the migration's record."""
    with udp(rate_pps=1000) as stream:
        guest_pair.succeed("sleep 0.3")
        record = guest_pair.migrate(mechanism=mechanism, **{"hold_ms": 100} | plan)
        guest_pair.succeed("sleep 0.3")
    return stream, record


@REDIRECT
def test_nothing_is_lost_doubled_or_reordered_in_precopy_and_then_in_postcopy(guest_pair, udp):
    for mode in ("precopy", "postcopy"):
        with udp(rate_pps=500, direction="from-guest") as up:
            down, record = migrated(guest_pair, udp, "redirect", mode=mode)
        assert account(down) == account(up) == (0, 0, 0, 0)
        assert down.ledger.passed >= HELD
        assert record.report.figures["filter-failed"] == 0
        # Nothing of it stays at the destination: it is the next source.
        names = {entry["name"] for entry in guest_pair.qmp("qom-list", {"path": "/objects"})}
        assert not any(name.startswith("sw-") for name in names)


@REDIRECT
def test_after_a_death_and_a_cancel_the_source_lost_nothing_and_it_works_again(guest_pair, udp, mechanism):
    with udp(rate_pps=1000) as stream:
        guest_pair.succeed("sleep 0.3")
        with pytest.raises(SwitchoverError):
            guest_pair.migrate(mechanism=mechanism(KillsTheDestination), hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    assert account(stream) == (0, 0, 0, 0)
    assert guest_pair.lab.mobile.spec.name == "m0"
    cancelled, record = migrated(guest_pair, udp, "redirect", cancel_at_switchover=True)
    assert record.status == "cancelled"
    assert account(cancelled) == (0, 0, 0, 0)
    moved, _ = migrated(guest_pair, udp, "redirect")
    assert account(moved) == (0, 0, 0, 0)


@REDIRECT
def test_a_redirector_loses_what_it_took_when_cancelled_and_else_passes_as_much_as_a_mirror(guest_pair, udp, mechanism):
    cancelled, _ = migrated(guest_pair, udp, mechanism(Redirector), cancel_at_switchover=True)
    assert cancelled.ledger.lost >= HELD
    moved, _ = migrated(guest_pair, udp, mechanism(Redirector))
    assert account(moved) == (0, 0, 0, 0)


@pytest.mark.switchover(requires=["redirect", "redirect-packet"], qemu="reference")
def test_by_way_of_a_packet_socket_nothing_is_lost_or_doubled(guest_pair, udp):
    moved, record = migrated(guest_pair, udp, "redirect-packet")
    ledger = moved.ledger
    # A frame that arrives while the bridge is moved over may come behind newer ones, and how many do is a matter of time.
    assert (ledger.lost, ledger.duplicated, ledger.ledger.unexplained) == (0, 0, 0)
    assert ledger.passed >= HELD
    figures = record.report.figures
    assert figures["tap-passed"] >= figures["filter-injected"] == figures["filter-passed"]
    assert figures["tap-failed"] == 0
    names = {entry["name"] for entry in guest_pair.qmp("qom-list", {"path": "/objects"})}
    assert not any(name.startswith("sw-") for name in names)


@pytest.mark.switchover(requires=["redirect"], qemu="reference", queues=2)
def test_two_queues(guest_pair, udp):
    with udp(rate_pps=400) as first, udp(rate_pps=400, ip=6) as second, udp(rate_pps=400) as third:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="redirect", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    for stream in (first, second, third):
        assert account(stream) == (0, 0, 0, 0)


@pytest.mark.switchover(requires=["redirect", "redirect-packet"], qemu="reference", vhost=True)
def test_by_way_of_a_packet_socket_vhost_is_served(guest_pair, udp):
    with udp(rate_pps=1000) as stream:
        guest_pair.succeed("sleep 0.3")
        guest_pair.migrate(mechanism="redirect-packet", hold_ms=100)
        guest_pair.succeed("sleep 0.3")
    # With vhost no ring of QEMU's says what the guest got: only the guest's own records count.
    assert (stream.ledger.lost, stream.ledger.duplicated) == (0, 0)
    assert guest_pair.record.report.figures["tap-passed"] >= HELD


# -- stock QEMU


@pytest.fixture
def stock(guest_pair):
    """Skips where the QEMU under test has the filters that work while stopped: then this says nothing of a stock one."""
    if guest_pair.features[0].has("redirect"):
        pytest.skip(f"{guest_pair.features[0]} has filters that work while the VM is stopped; this is about one that has not")


class StockRedirector(Mechanism):
    """The same chain with what a stock QEMU has; the redirector is switched on when the VM has stopped."""

    name: ClassVar[str] = "stock-redirect"
    needs_pause: ClassVar[bool] = True
    injects: ClassVar[bool] = True

    def destination_spec(self, spec, *, features):
        extra = (
            "-chardev", f"socket,id=in,path={Redirect.socket_path(spec.name)},server=on,wait=off",
            "-object", "filter-redirector,id=in,netdev=net0-netdev,queue=tx,indev=in,vnet_hdr_support=on",
            "-object", "filter-buffer,id=hold,netdev=net0-netdev,queue=tx,interval=50000",
        )  # fmt: skip
        return msgspec.structs.replace(spec, extra=(*spec.extra, *extra))

    async def prepare(self, context):
        qmp, path = context.source.machine.qmp, Redirect.socket_path(context.destination.machine.spec.name)
        backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": False}}
        await qmp.call("chardev-add", {"id": "out", "backend": backend})
        await qmp.call("object-add", {
            "qom-type": "filter-redirector", "id": "out", "netdev": "net0-netdev", "queue": "tx", "outdev": "out",
            "vnet_hdr_support": True, "status": "off",
        })  # fmt: skip

    async def switch_on(self, context):
        await context.source.machine.qmp.call("qom-set", {"path": "/objects/out", "property": "status", "value": "on"})

    async def stopped(self, context, *, stop_ns):
        await self.switch_on(context)


class StockRedirectorInTime(StockRedirector):
    """Switched on before the VM stops, so that it misses no frame."""

    heard: ClassVar[list[int]] = []

    async def prepare(self, context):
        await super().prepare(context)
        await self.switch_on(context)
        self.heard.clear()
        for _ in range(2):
            text = await context.source.machine.agent.shell("cat /sys/class/net/eth0/statistics/rx_packets; sleep 0.2")
            self.heard.append(int(text))

    async def stopped(self, context, *, stop_ns):
        pass


@pytest.mark.usefixtures("stock")
def test_a_stock_redirector_that_is_switched_on_at_the_stop_saves_next_to_nothing(guest_pair, udp, mechanism):
    stream, _ = migrated(guest_pair, udp, mechanism(StockRedirector))
    # The first frame after the stop was parked by then, and behind a parked frame the TAP is not read any more.
    assert stream.ledger.ledger.stranded_at_source >= HELD


@pytest.mark.usefixtures("stock")
def test_a_stock_redirector_that_is_on_in_time_cuts_the_running_guest_off(guest_pair, udp, mechanism):
    stream, _ = migrated(guest_pair, udp, mechanism(StockRedirectorInTime))
    assert stream.ledger.sent > 500
    before, after = StockRedirectorInTime.heard
    assert before == after, "the running guest should have heard nothing from the moment on in which the redirector was on"
    # What it takes does arrive, after the destination's start: the filter stands before the place where frames are parked.
    assert stream.ledger.ledger.stranded_at_source < HELD


@pytest.mark.usefixtures("stock")
def test_a_stock_buffer_drops_beyond_10000_frames_without_a_word(guest_pair, udp):
    buffer = {"qom-type": "filter-buffer", "id": "hold", "netdev": "net0-netdev", "queue": "tx", "interval": 2_500_000}
    with udp(rate_pps=6000) as stream:
        guest_pair.qmp("object-add", buffer)
        guest_pair.succeed("sleep 2.7")
        guest_pair.qmp("object-del", {"id": "hold"})
    properties = guest_pair.qmp("qom-list-properties", {"typename": "filter-buffer"})
    assert not {"dropped", "held", "released", "release"} & {entry["name"] for entry in properties}
    assert stream.ledger.sent > 14_000
    assert stream.ledger.ledger.unexplained >= 2000, "no counter of anybody's tells where these packets went"
