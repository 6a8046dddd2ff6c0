"""What discovery asks, and what it makes of the answers; QEMU is a fake at the other end of a socket."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qemu.qmp import QMPError

from harness.errors import UsageError
from harness.host.deadline import Deadline
from harness.vm.discovery import DEVICES, FEATURES, Features, MachineType, ask, discover
from harness.vm.qmp import Qmp

SCHEMA = [
    {"meta-type": "command", "name": "query-kvm", "arg-type": "0", "ret-type": "9"},
    {"meta-type": "command", "name": "migrate-set-parameters", "arg-type": "1", "ret-type": "0"},
    {"meta-type": "command", "name": "netdev_add", "arg-type": "3", "ret-type": "0"},
    {"meta-type": "command", "name": "object-add", "arg-type": "5", "ret-type": "0"},
    {"meta-type": "event", "name": "STOP", "arg-type": "0"},
    {"meta-type": "object", "name": "0", "members": []},
    {"meta-type": "object", "name": "1", "members": [
        {"name": "mode", "type": "2", "default": None}, {"name": "downtime-limit", "type": "int", "default": None},
    ]},
    {"meta-type": "enum", "name": "2", "values": ["normal", "cpr-transfer"]},
    {"meta-type": "object", "name": "3", "tag": "type", "members": [{"name": "id", "type": "str"}],
     "variants": [{"case": "tap", "type": "4"}, {"case": "none", "type": "0"}]},
    {"meta-type": "object", "name": "4", "members": [{"name": "fds", "type": "str"}, {"name": "fd", "type": "str"}]},
    {"meta-type": "object", "name": "5", "tag": "qom-type", "members": [],
     "variants": [{"case": "filter-buffer", "type": "0"}, {"case": "iothread", "type": "0"}]},
    {"meta-type": "builtin", "name": "int", "json-type": "int"},
    {"meta-type": "builtin", "name": "str", "json-type": "string"},
]  # fmt: skip

ANSWERS: dict[str, Any] = {
    "query-qmp-schema": SCHEMA,
    "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": "ours"},
    "query-migrate-capabilities": [{"capability": name, "state": False} for name in ("return-path", "netpass")],
    "query-migrate-parameters": {"downtime-limit": 300, "announce-max": 550},
    "query-kvm": {"enabled": False, "present": True},
    "query-machines": [
        {"name": "pc-q35-10.0", "alias": "q35", "cpu-max": 1},
        {"name": "pc-i440fx-10.0", "alias": "pc", "is-default": True, "cpu-max": 1, "deprecated": True},
    ],
    "trace-event-get-state": [{"name": "vm_stop", "state": "disabled"}, {"name": "savevm", "state": "disabled"}],
    "device-list-properties virtio-net-pci": [{"name": "mq", "type": "bool"}, {"name": "mac", "type": "str"}],
    "qom-list-properties filter-buffer": [{"name": "interval", "type": "uint32"}],
    "qom-list-properties generic-pc-machine": [{"name": "hpet", "type": "bool"}],
    "qom-list-properties migration": [{"name": "send-vm-started", "type": "bool"}],
}
"""By command, and by type where it asks about one; anything else is refused."""


async def fake_qemu(sock: socket.socket, *, answers: dict[str, Any], hang_up_at: str = "") -> None:
    reader, writer = await asyncio.open_connection(sock=sock)

    def send(message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\r\n")

    send({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": ""}, "capabilities": []}})
    buffer = b""
    while data := await reader.read(1 << 16):
        buffer += data
        try:
            request = json.loads(buffer)  # the client sends one at a time, and no line ends
        except ValueError:
            continue
        buffer = b""
        arguments = request.get("arguments", {})
        asked = " ".join(filter(None, (request["execute"], arguments.get("typename"))))
        if asked == hang_up_at:
            break
        if asked != "qmp_capabilities":  # from then on, an event may come before any answer
            send({"event": "RTC_CHANGE", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}})
        number = {"id": request["id"]} if "id" in request else {}  # the negotiation has none
        if asked == "qmp_capabilities" or asked in answers:
            send({"return": answers.get(asked, {}), **number})
        else:
            send({"error": {"class": "DeviceNotFound", "desc": f"no {asked}"}, **number})
    writer.close()


def ask_fake(answers: dict[str, Any], *, hang_up_at: str = "") -> Features:
    async def talk() -> Features:
        ours, theirs = socket.socketpair()
        qemu = asyncio.create_task(fake_qemu(theirs, answers=answers, hang_up_at=hang_up_at))
        qmp = Qmp("fake")
        try:
            await qmp.attach(ours, deadline=Deadline(10.0))
            return await ask(qmp, name="fake", build_id="abc", deadline=Deadline(10.0))
        finally:
            await qmp.detach()
            await qemu

    return asyncio.run(talk())


@pytest.fixture(scope="module")
def found() -> Features:
    return ask_fake(ANSWERS)


def test_every_list_is_what_the_qemu_said(found: Features) -> None:
    assert (found.version, found.package, found.build_id, found.kvm) == ("10.0.13", "ours", "abc", True)
    assert found.capabilities == ("netpass", "return-path")
    assert found.parameters == ("announce-max", "downtime-limit", "mode")
    assert found.parameter_values == {"mode": ("cpr-transfer", "normal")}
    assert found.commands == ("migrate-set-parameters", "netdev_add", "object-add", "query-kvm")
    assert found.events == ("STOP",)
    assert found.netdev_options == {"none": (), "tap": ("fd", "fds")}
    assert found.device_properties == {"virtio-net-pci": ("mac", "mq")}
    assert found.filter_properties == {"filter-buffer": ("interval",)}
    assert found.migration_properties == ("send-vm-started",)
    assert found.machine_properties == ("hpet",)
    assert found.trace_events == ("savevm", "vm_stop")
    assert found.machines == (
        MachineType(name="pc-i440fx-10.0", alias="pc", default=True, deprecated=True),
        MachineType(name="pc-q35-10.0", alias="q35"),
    )


def test_what_a_build_leaves_out_is_empty() -> None:
    optional = ("trace-event-get-state", "device-list-properties virtio-net-pci", "qom-list-properties migration")
    found = ask_fake({key: value for key, value in ANSWERS.items() if key not in optional})
    assert found.trace_events == found.migration_properties == ()
    assert found.device_properties == {}
    assert found.lacking(["device:virtio-net-pci"]) == ["QEMU 10.0.13 (fake) has no device 'virtio-net-pci'"]


def test_a_qemu_that_goes_away_is_an_error() -> None:
    with pytest.raises((QMPError, OSError, EOFError)):
        ask_fake(ANSWERS, hang_up_at="query-machines")


@pytest.mark.parametrize(
    "wish",
    [
        "capability:netpass", "parameter:mode", "parameter-value:mode=cpr-transfer", "migration-property:send-vm-started",
        "command:query-kvm", "event:STOP", "netdev:tap", "netdev-option:tap.fds", "netdev-option:fds",
        "device:virtio-net-pci", "device-property:virtio-net-pci.mq", "device-property:mq", "filter:filter-buffer",
        "filter-property:filter-buffer.interval", "filter-property:interval", "trace:vm_stop", "machine:q35", "machine-property:hpet",
        "machine:pc-q35-10.0", "netpass", "vm-started", "cpr-transfer",
    ],
)  # fmt: skip
def test_what_is_there_is_not_lacking(found: Features, wish: str) -> None:
    assert found.has(wish)
    assert found.lacking([wish]) == []


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("capability:multifd", "QEMU 10.0.13 (fake) has no migration capability 'multifd'"),
        ("capability:netpas", "QEMU 10.0.13 (fake) has no migration capability 'netpas' (the nearest that it has is 'netpass')"),
        ("netdev-option:tap.script", "QEMU 10.0.13 (fake) has no netdev option 'tap.script'"),
        ("switchover-ack", "QEMU 10.0.13 (fake) lacks switchover-ack: no migration capability 'switchover-ack'"),
        (
            "local-tap",
            "QEMU 10.0.13 (fake) lacks local-tap: no migration parameter 'backend-transfer' or 'local';"
            " no netdev option 'tap.incoming-fds' or 'tap.local-migration-supported'",
        ),
        (
            "virtio-iterative",
            "QEMU 10.0.13 (fake) lacks virtio-iterative: no migration capability 'virtio-iterative'"
            " or device property 'virtio-net-pci.early-mig'",
        ),
    ],
)
def test_a_reason_says_exactly_what_is_missing(found: Features, wish: str, reason: str) -> None:
    assert found.lacking(["netpass", wish]) == [reason]


@pytest.mark.parametrize("parameter", ["backend-transfer", "local"])
@pytest.mark.parametrize("option", ["incoming-fds", "local-migration-supported"])
def test_either_name_of_a_renamed_feature_will_do(found: Features, parameter: str, option: str) -> None:
    half = msgspec.structs.replace(found, parameters=(*found.parameters, parameter))
    assert half.lacking(["local-tap"]) == [
        "QEMU 10.0.13 (fake) lacks local-tap: no netdev option 'tap.incoming-fds' or 'tap.local-migration-supported'"
    ]
    assert msgspec.structs.replace(half, netdev_options={"tap": (option,)}).has("local-tap")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("netpas", "no feature 'netpas'; did you mean 'netpass'"),
        ("capabilty:netpass", "no kind of feature 'capabilty'; did you mean 'capability'"),
        ("", "no feature ''"),
        ("device:virtio-net-pc", "'virtio-net-pc'; did you mean 'virtio-net-pci'"),
    ],
)
def test_a_wish_that_can_not_be_meant_is_refused_with_the_nearest(found: Features, wish: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found.lacking([wish])


def test_every_entry_of_the_table_can_be_asked(found: Features) -> None:
    for feature, groups in FEATURES.items():
        assert groups
        assert all(groups)
        found.lacking([feature])  # a bad kind or an unknown device would be refused
    assert {name for groups in FEATURES.values() for group in groups for name in group if name.startswith("device:")} <= {
        f"device:{device}" for device in DEVICES
    }


names = st.lists(st.text(st.characters(codec="ascii"), min_size=1), unique=True).map(lambda each: tuple(sorted(each)))


@given(names, st.dictionaries(st.text(), names))
def test_features_survive_their_file(some: tuple[str, ...], groups: dict[str, tuple[str, ...]]) -> None:
    features = Features(
        name="x", version="1.2.3", package="", build_id="0", kvm=False, capabilities=some, parameters=some,
        parameter_values=groups, migration_properties=some, commands=some, events=some, netdev_options=groups,
        device_properties=groups, filter_properties=groups, trace_events=some, machines=(MachineType(name="q"),),
    )  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(features), type=Features) == features
    for name in some:
        assert features.has(f"capability:{name}")


class Unstartable(msgspec.Struct, frozen=True):
    name: str
    build_id: str

    @property
    def start(self) -> list[str]:
        raise AssertionError("a QEMU that is known was started again")


def test_a_known_build_is_not_started_again(found: Features, tmp_path: Any) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "abc.json").write_bytes(msgspec.json.encode(found))
    again = asyncio.run(discover(Unstartable("another name", "abc"), cache=tmp_path))
    assert again == msgspec.structs.replace(found, name="another name")
