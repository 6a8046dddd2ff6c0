"""What the mechanisms ask of QEMU, and what is refused before anything boots."""

from __future__ import annotations

import struct

import msgspec
import pytest

from harness.capture.live import LiveFrame
from harness.errors import FeatureLackError, UsageError
from harness.migrate.checks import check_plan
from harness.migrate.mechanisms import MECHANISMS, make_mechanism
from harness.migrate.mechanisms.base import Mechanism
from harness.migrate.mechanisms.tap_handover import _has_flood_copy
from harness.model.plan import MigrationPlan
from harness.model.scenario import KNOWN_MECHANISMS, MigrationMode, NetworkSection, Scenario
from harness.vm.argv import MachineSpec, NicSpec, machine_argv
from harness.vm.discovery import Features

EMPTY = Features(
    name="mine", version="10.0.13", package="", build_id="abc", kvm=False, capabilities=(), parameters=(), parameter_values={},
    migration_properties=(), commands=(), events=(), netdev_options={"tap": ("fd",)}, device_properties={},
    filter_properties={"filter-buffer": ("interval",), "filter-mirror": ("outdev",)}, trace_events=(), machines=(),
)  # fmt: skip
WHOLE = msgspec.structs.replace(
    EMPTY, capabilities=("events", "multifd", "netpass", "pause-before-switchover", "return-path", "x-ignore-shared"),
    parameters=("backend-transfer",), netdev_options={"tap": ("incoming-fds",)},
    filter_properties={
        "filter-buffer": ("enable_when_stopped", "interval", "release"), "filter-mirror": ("enable_when_stopped", "outdev", "passed"),
        "filter-redirector": ("indev", "only_injected", "packet_fd"),
    },
)  # fmt: skip
SPEC = MachineSpec(
    name="m1", argv_prefix=("qemu",), accelerator="tcg", kernel="/k", traces=(),
    nics=(NicSpec(id="net0", mac="52:54:00:77:00:02", queues=2), NicSpec(id="mgmt0", mac="52:54:00:78:00:02")),
)  # fmt: skip


def check(mechanism: str, *, source: Features = WHOLE, destination: Features = WHOLE, scenario: Scenario | None = None, **plan) -> None:
    check_plan(
        MigrationPlan(mechanism=mechanism, **plan), scenario=scenario or Scenario(name="x"), source=source, destination=destination
    )


def test_every_known_mechanism_is_there():
    assert set(MECHANISMS) == set(KNOWN_MECHANISMS)
    assert all(make_mechanism(name).name == name for name in MECHANISMS)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_is_accepted_where_qemu_has_everything(mechanism):
    check(mechanism, hold_ms=10)


REFUSED = [
    ("redirect", {"capabilities": ("netpass",)}, "both pass the frames of the stopped source"),
    ("redirect-packet", {"capabilities": ("netpass",)}, "redirect-packet does not go together with the capability netpass"),
    ("local-tap", {"capabilities": ("netpass",)}, "would have the source read them"),
    ("local-tap", {"capabilities": ("virtio-iterative",)}, "loads the NIC's state at the setup"),
    ("local-tap", {"transport": "tcp"}, "only a UNIX socket can carry"),
    ("local-tap", {"mode": MigrationMode.POSTCOPY}, "local-tap does not work in postcopy"),
    ("tap-handover", {"mode": MigrationMode.POSTCOPY}, "tap-handover does not work in postcopy"),
    ("redirect", {"scenario": Scenario(name="x", network=NetworkSection(vhost=True))}, "vhost = true"),
    ("local-tap", {"scenario": Scenario(name="x", network=NetworkSection(vhost=True))}, "vhost = true"),
]


@pytest.mark.parametrize(("mechanism", "plan", "why"), REFUSED)
def test_what_does_not_go_together_is_refused_and_says_why(mechanism, plan, why):
    with pytest.raises(UsageError, match=why) as refusal:
        check(mechanism, **plan)
    assert refusal.value.hint


LACKING = [
    ("redirect", "source", "the mechanism redirect does not work at the source: QEMU 10.0.13 (mine) lacks redirect: no filter property"
     " 'enable_when_stopped' or 'enable-when-stopped'; no filter property 'filter-mirror.passed';"
     " no filter property 'filter-buffer.release'"),
    ("local-tap", "destination", "the mechanism local-tap does not work at the destination: QEMU 10.0.13 (mine) lacks local-tap: no"
     " migration parameter 'backend-transfer' or 'local'; no netdev option 'tap.incoming-fds' or 'tap.local-migration-supported'"),
]  # fmt: skip


@pytest.mark.parametrize(("mechanism", "side", "message"), LACKING)
def test_what_a_qemu_lacks_is_said_exactly(mechanism, side, message):
    with pytest.raises(FeatureLackError) as lack:
        check(mechanism, **{side: EMPTY})
    assert lack.value.message == message


def test_the_names_are_those_of_the_qemu_at_hand():
    later = msgspec.structs.replace(WHOLE, parameters=("local",), netdev_options={"tap": ("local-migration-supported",)})
    assert WHOLE.spelling("local-tap") == ("backend-transfer", "incoming-fds")
    assert later.spelling("local-tap") == ("local", "local-migration-supported")
    assert make_mechanism("local-tap").source_parameters(features=later) == {"local": True}
    with pytest.raises(FeatureLackError, match="lacks local-tap"):
        EMPTY.spelling("local-tap")


def test_with_local_tap_the_destination_opens_no_tap():
    spec = make_mechanism("local-tap").destination_spec(SPEC, features=WHOLE)
    argv = machine_argv(spec)
    assert "tap,id=net0-netdev,incoming-fds=on,queues=2,downscript=no" in argv
    assert "tap,id=mgmt0-netdev,incoming-fds=on,queues=1,downscript=no" in argv
    assert not any("fds=1" in word or "vhost" in word for word in argv)


def test_with_redirect_the_destinations_filters_stand_in_this_order():
    argv = machine_argv(make_mechanism("redirect").destination_spec(SPEC, features=WHOLE))
    filters = [word.split(",")[:2] for word in argv if word.startswith("filter-")]
    assert filters == [["filter-buffer", "id=sw-own"], ["filter-redirector", "id=sw-in"], ["filter-buffer", "id=sw-passed"]]
    assert sum("queue_index_support=on" in word for word in argv) == 1
    one = msgspec.structs.replace(SPEC, nics=SPEC.nics[1:])
    assert not any("queue_index_support" in w for w in machine_argv(make_mechanism("redirect").destination_spec(one, features=WHOLE)))


def test_with_vhost_the_packet_variant_is_accepted_and_all_its_filters_leave_the_backends_frames_alone():
    check("redirect-packet", scenario=Scenario(name="x", network=NetworkSection(vhost=True)))
    argv = machine_argv(make_mechanism("redirect-packet").destination_spec(SPEC, features=WHOLE))
    filters = [word for word in argv if word.startswith("filter-")]
    assert [word.split(",")[1] for word in filters] == ["id=sw-in", "id=sw-passed", "id=sw-tap"]
    assert all(word.endswith(",only_injected=on") for word in filters)
    assert "packet_fd=7" in filters[-1]


def test_a_mechanism_that_needs_nothing_leaves_the_machine_alone():
    class Plain(Mechanism):
        name = "plain"

    assert Plain().destination_spec(SPEC, features=EMPTY) is SPEC
    assert Plain().source_parameters(features=EMPTY) == {}


def test_guest_memory_in_a_file_is_shared():
    argv = " ".join(machine_argv(msgspec.structs.replace(SPEC, memory_file="/dev/shm/a.ram")))
    assert "-machine q35,memory-backend=pc.ram" in argv
    assert "-object memory-backend-file,id=pc.ram,size=256M,mem-path=/dev/shm/a.ram,share=on" in argv


def flooded(*, header: bytes, checksum: bytes, time_ns: int, payload: bytes = b"payload") -> LiveFrame:
    return LiveFrame(0, time_ns, header, bytes(40) + checksum + payload)


def test_copies_of_a_broadcast_are_known_whether_or_not_their_checksums_are_filled_in():
    open_ = struct.pack("=BBHHHHH", 1, 0, 0, 0, 34, 6, 0)
    at_source = flooded(header=open_, checksum=b"\x12\x34", time_ns=1_000)
    filled_in = flooded(header=bytes(12), checksum=b"\xab\xcd", time_ns=2_000)
    assert _has_flood_copy(filled_in, [at_source])
    assert _has_flood_copy(at_source, [filled_in])
    assert not _has_flood_copy(filled_in, [flooded(header=open_, checksum=b"\x12\x34", time_ns=1_000, payload=b"another")])
    assert not _has_flood_copy(filled_in, [flooded(header=bytes(12), checksum=b"\x12\x34", time_ns=1_000)])
    assert not _has_flood_copy(filled_in, [flooded(header=open_, checksum=b"\x12\x34", time_ns=1_000_000_000)])
