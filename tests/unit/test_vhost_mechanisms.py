"""What tap-handover and netpass do with vhost: QEMU parks one frame while it stands, and frees that when vhost begins again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from harness.capture.live import LiveFrame
from harness.errors import DeadlineError
from harness.host.deadline import Deadline
from harness.migrate.account import StopPoint
from harness.migrate.mechanisms import tap_handover
from harness.migrate.mechanisms.netpass import NetPass
from harness.migrate.mechanisms.tap_handover import TapHandover
from harness.vm.argv import NicSpec

PROBE = b"\x52" * 100


class Source:
    """A stopped source whose TAP has `waiting` frames; `takes`: QEMU reads the first one when it is asked for the second time."""

    def __init__(self, waiting: list[bytes], *, takes: bool = True) -> None:
        self.all, self.takes, self.asked, self.continued = list(waiting), takes, 0, -1
        self.machine = SimpleNamespace(
            spec=SimpleNamespace(nics=(NicSpec(id="net0", mac="52:54:00:77:00:02", vhost=True),)),
            process=SimpleNamespace(returncode=None, read_output=lambda: b""),
        )  # fmt: skip
        self.account = self.live = self
        self.port = SimpleNamespace(fds=[])

    async def at_stop(self, *, stop_ns: int) -> StopPoint:
        self.asked += 1
        taken = int(self.takes and self.asked > 1 and bool(self.all))
        return StopPoint(first_undelivered=0, first_unread=taken, used_index=0)

    def frames(self, *, first: int = 0) -> list[LiveFrame]:
        return [LiveFrame(number, 0, bytes(12), frame) for number, frame in enumerate(self.all)][first:]

    def continue_without(self, freed: int) -> None:
        self.continued = freed

    # as an injector
    def send(self, vnet_header: bytes, frame: bytes, *, deadline_ns: int) -> None:
        self.all.append(frame)

    def send_all(self, frames: list[LiveFrame], *, deadline_ns: int) -> int:
        self.all += [frame.frame for frame in frames]
        return len(frames)


def context(source: Source, notes: list[str]) -> Any:
    return SimpleNamespace(source=source, nic="net0", deadline=Deadline(5), injector=lambda side: side, note=notes.append)


@pytest.mark.parametrize(("waiting", "given_back"), [([PROBE, PROBE], [PROBE]), ([], [])])
def test_what_qemu_parked_is_given_back_to_a_source_that_goes_on(waiting, given_back):
    source, notes = Source(waiting), []
    mechanism = TapHandover()
    asyncio.run(mechanism.before_cancel(context(source, notes), stop_ns=1))
    assert source.all == [*waiting, bytes(60)]  # nothing was parked yet: a frame for no address takes the place, or stands behind the one that came first
    asyncio.run(mechanism.aborted(context(source, notes), stop_ns=1))
    assert source.continued == 1
    assert source.all == [*waiting, bytes(60), *given_back]
    assert len(notes) == len(given_back)


def test_a_source_that_reads_nothing_is_said_so(monkeypatch):
    monkeypatch.setattr(tap_handover, "_PARKED_S", 0.01)
    with pytest.raises(DeadlineError, match="the stopped source to read its TAP"):
        asyncio.run(TapHandover().before_cancel(context(Source([PROBE], takes=False), []), stop_ns=1))


@pytest.mark.parametrize("nic", ["net0", "mgmt0"])
def test_netpass_that_leaves_the_nic_out_passes_nothing_and_says_why(nic):
    source, notes = Source([PROBE]), []
    said = f"qemu-system-x86_64: warning: netpass: frames of netdev '{nic}-netdev' are not passed: Vhost is not supported\n"
    source.machine.process = SimpleNamespace(returncode=1, read_output=lambda: b"2026 noise\n" + said.encode())
    whole = SimpleNamespace(**vars(context(source, notes)), destination=source, stop_point=StopPoint(0, 0, 0))
    report = asyncio.run(NetPass().finish(whole))
    declined = nic == "net0"
    assert [frame.frame for frame in report.passed] == ([] if declined else [PROBE])
    assert notes == (["netpass: frames of netdev 'net0-netdev' are not passed: Vhost is not supported"] if declined else [])
