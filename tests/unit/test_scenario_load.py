"""Scenario files that are wrong: each class of error with its whole message."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from harness.errors import ScenarioError
from harness.model.load import KNOWN_NAMES, dump_scenario, load_scenario, shipped_scenarios
from harness.model.scenario import (
    KNOWN_MECHANISMS,
    Direction,
    MigrationMode,
    MigrationSection,
    Peer,
    Scenario,
    TrafficSection,
)
from harness.model.streams import plan_streams

MANUAL = (Path(__file__).parents[2] / "docs" / "scenario.md").read_text()
SHIPPED = {
    "null", "known-outage", "tcp-known-outage", "udp-none", "udp-tap-handover", "udp-netpass", "udp-redirect", "udp-redirect-packet",
    "udp-local-tap",
    "postcopy-none", "postcopy-netpass", "udp-broadcast-none", "udp-broadcast-tap-handover",
    "tcp-none", "tcp-tap-handover", "tcp-netpass", "tcp-request-none", "tcp-request-tap-handover", "tcp-request-netpass",
    "tcp-request-redirect", "tcp-request-local-tap",
    "witnesses", "discovery-tap-handover",
}  # fmt: skip
COSTS = {"ack-never", "ack-off", "ack-on", "iterative-off", "iterative-full", "iterative-delta", "iterative-reset", "iterative-twice"}
"""Arms of campaigns about what a switchover's parts cost: no hold, and little traffic."""
WAYS = {"ping-pong", "postcopy-waits"}
"""For many migrations of one guest, and for postcopy's figures: no hold, and little traffic."""
VHOST = {"vhost-none", "vhost-tap-handover", "vhost-netpass", "vhost-redirect-packet"}
"""For hosts with vhost, and for the nested lab: few packets, and a stop long enough to count some."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Messages name files as they were given: relative names make them the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, *settings: str) -> Scenario:
    Path("my.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_scenario("my.toml", settings=settings)


def refusal(text: str | bytes, *settings: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load(text, *settings)
    assert caught.value.exit_code == 4
    return str(caught.value)


ONE_KEY = [
    # what follows `name = "x"` in the file, and the whole message
    ('mechansim = "none"', "my.toml:2: mechansim = \"none\": there is no such key\n  mend: did you mean 'mechanism'?"),
    ("[migraton]\nhold_ms = 1",
     "my.toml:2: migraton = { hold_ms = 1 }: there is no such key\n  mend: did you mean 'migration'?"),
    ("[network]\n\nrate_pps = 5",
     "my.toml:4: network.rate_pps = 5: there is no such key\n  mend: it belongs to [[traffic]]"),
    ('[guest]\nmechanism = "none"', 'my.toml:3: guest.mechanism = "none": there is no such key\n  mend: it belongs to the top'),
    ("[qemu]\nzzz = 1", "my.toml:3: qemu.zzz = 1: there is no such key\n  mend: known: source, destination, migration_properties"),
    ("[network]\nqueues = 0", "my.toml:3: network.queues = 0: must be at least 1 and at most 64"),
    ("[network]\nmtu = 65536", "my.toml:3: network.mtu = 65536: must be at least 1280 and at most 9000"),
    ("[[traffic]]\nrate_pps = 0", "my.toml:3: traffic.0.rate_pps = 0: must be more than 0 and at most 200000"),
    ("[[traffic]]\nrate_pps = nan", "my.toml:3: traffic.0.rate_pps = nan: must be more than 0 and at most 200000"),
    ("[[traffic]]\n[[traffic]]\nsize = -4", "my.toml:4: traffic.1.size = -4: must be at least 32 and at most 65507"),
    ("[[traffic]]\nsize = 65508", "my.toml:3: traffic.0.size = 65508: must be at least 32 and at most 65507"),
    ("[[traffic]]\nsize = 100.5",
     "my.toml:3: traffic.0.size = 100.5: must be a whole number\n  mend: it is at least 32 and at most 65507"),
    ('[[traffic]]\nrate_pps = "1000"',
     'my.toml:3: traffic.0.rate_pps = "1000": must be a number\n  mend: write it without quotes'),
    ("[[traffic]]\nip = 5", "my.toml:3: traffic.0.ip = 5: must be 4 or 6"),
    ("[[traffic]]\nip = 4.0", "my.toml:3: traffic.0.ip = 4.0: must be 4 or 6"),
    ('[[traffic]]\ncast = "brodcast"',
     'my.toml:3: traffic.0.cast = "brodcast": must be "unicast" or "broadcast" or "multicast"\n  mend: did you mean \'broadcast\'?'),
    ('[migration]\ntransport = "rdma"', 'my.toml:3: migration.transport = "rdma": must be "unix" or "tcp" or "tcp6" or "fd" or "exec" or "file"'),
    ('[network]\nvhost = "on"', 'my.toml:3: network.vhost = "on": must be true or false'),
    ("[qemu]\nsource = 11.1", 'my.toml:3: qemu.source = 11.1: must be a string\n  mend: write it in quotes: "11.1"'),
    ('[qemu]\nsource = ""', 'my.toml:3: qemu.source = "": is no name and no path\n  mend: leave it out for the default'),
    ("guest = 5", "my.toml:2: guest = 5: must be a table\n  mend: write its keys below [guest]"),
    ("[[guest]]\nvcpus = 1", "my.toml:2: guest = [{ vcpus = 1 }]: must be a table\n  mend: begin it with [guest]"),
    ("[traffic]\nsize = 100",
     "my.toml:2: traffic = { size = 100 }: must be a list of tables\n  mend: begin each with [[traffic]]"),
    ('[migration]\ncapabilities = "multifd"',
     'my.toml:3: migration.capabilities = "multifd": must be a list\n  mend: write [...], even for a single one'),
    ("[migration]\nparameters = { announce-max = inf }",
     "my.toml:3: migration.parameters.announce-max = inf: must be a finite number, a string, true, false, a list or a table"),
    ("[migration.parameters]\ndowntime-limit = 1979-05-27",
     "my.toml:3: migration.parameters.downtime-limit = 1979-05-27: must be a finite number, a string, true, false, a list or a table"),
    ('mechanism = "tap-hand"',
     "my.toml:2: mechanism = \"tap-hand\": there is no such mechanism\n  mend: did you mean 'tap-handover'?"),
    ('mechanism = "magic"',
     'my.toml:2: mechanism = "magic": there is no such mechanism\n'
     "  mend: known: none, tap-handover, netpass, redirect, redirect-packet, local-tap"),
    ('[guest]\nmemory = "lots"',
     'my.toml:3: guest.memory = "lots": is no size\n  mend: write a whole number with K, M or G, such as "256M"'),
    ('[guest]\nmemory = "-5M"',
     'my.toml:3: guest.memory = "-5M": is no size\n  mend: write a whole number with K, M or G, such as "256M"'),
    ('[guest]\nmemory = "1500K"',
     'my.toml:3: guest.memory = "1500K": must be whole mebibytes, and not none\n  mend: write for example "256M"'),
    ("[guest]\nmemory = 256",
     'my.toml:3: guest.memory = 256: must be a string: a size such as "256M"\n  mend: write it in quotes'),
    ('[guest]\nmachine = "pc -S"', 'my.toml:3: guest.machine = "pc -S": must be a QEMU machine type such as q35'),
    ('[[traffic]]\nname = "a/b"',
     'my.toml:3: traffic.0.name = "a/b": must be 1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first'),
    ('[migration]\ncapabilities = ["events", "netpas"]',
     'my.toml:3: migration.capabilities.1 = "netpas": no QEMU is known to have this migration capability\n'
     "  mend: did you mean 'netpass'?"),
    ('[migration]\ncapabilities = ["multifd-channels"]',
     'my.toml:3: migration.capabilities.0 = "multifd-channels": multifd-channels is a migration parameter, no capability\n'
     "  mend: write it in [migration.parameters]"),
    ('[migration]\ncapabilities = [""]',
     'my.toml:3: migration.capabilities.0 = "": is no name of a migration capability\n'
     "  mend: write it as QEMU does, such as return-path"),
    ("[migration.parameters]\nDowntime_Limit = 300",
     "my.toml:3: migration.parameters.Downtime_Limit = 300: no QEMU is known to have this migration parameter\n"
     "  mend: did you mean 'downtime-limit'?"),
    ("[migration.parameters]\nmultifd = true",
     "my.toml:3: migration.parameters.multifd = true: multifd is a migration capability, no parameter\n"
     "  mend: write it in migration.capabilities"),
]  # fmt: skip


@pytest.mark.parametrize(("rest", "message"), ONE_KEY)
def test_a_wrong_key_or_value(rest: str, message: str) -> None:
    assert refusal(f'name = "x"\n{rest}\n') == message


_STAYS = "means nothing in mode {}: the guest does not migrate\n  mend: {}, or take migration.mode = precopy or postcopy"
CONTRADICTIONS = [
    ('[migration]\nmode = "none"\nhold_ms = 150', "my.toml:4: migration.hold_ms = 150: " + _STAYS.format("none", "set it to 0")),
    ('[migration]\nmode = "stop-cont"\ncancel_at_switchover = true',
     "my.toml:4: migration.cancel_at_switchover = true: " + _STAYS.format("stop-cont", "set it to false")),
    ('[migration]\nmode = "none"\ncapabilities = ["multifd"]',
     'my.toml:4: migration.capabilities = ["multifd"]: ' + _STAYS.format("none", "set it to []")),
    ('[migration]\nmode = "none"\nparameters = { downtime-limit = 1 }',
     "my.toml:4: migration.parameters = { downtime-limit = 1 }: " + _STAYS.format("none", "leave it out")),
    ('mechanism = "netpass"\n[migration]\nmode = "stop-cont"',
     'my.toml:2: mechanism = "netpass": ' + _STAYS.format("stop-cont", "take none")),
    ("[migration]\noutage_ms = 200",
     "my.toml:3: migration.outage_ms = 200: is for mode stop-cont only, not for precopy\n"
     "  mend: take migration.mode = stop-cont, or hold_ms for a longer switchover"),
    ('mechanism = "tap-handover"\n[migration]\nmode = "postcopy"',
     'my.toml:4: migration.mode = "postcopy": tap-handover works in precopy only\n  mend: take precopy, or the mechanism netpass'),
    ('mechanism = "tap-handover"\n[network]\nqueues = 2',
     "my.toml:4: network.queues = 2: tap-handover can keep the order of one queue only\n  mend: take queues = 1, or another mechanism"),
    ('mechanism = "redirect"\n[network]\nvhost = true',
     "my.toml:4: network.vhost = true: redirect needs QEMU to handle the frames, and with vhost the host's kernel does\n"
     "  mend: take vhost = false, or the mechanism tap-handover or redirect-packet"),
    ('mechanism = "tap-handover"\n[network]\ndestination_port = "from-start"',
     "my.toml:4: network.destination_port = \"from-start\": tap-handover opens the destination's port itself\n"
     "  mend: leave it out, or take another mechanism"),
    ('mechanism = "local-tap"\n[migration]\ntransport = "tcp"',
     'my.toml:4: migration.transport = "tcp": local-tap hands descriptors over, which only a UNIX socket can carry\n'
     '  mend: take transport = "unix"'),
    ('[guest]\nmodules = "m"',
     'my.toml:3: guest.modules = "m": modules belong to a kernel, and none is given\n  mend: give guest.kernel too'),
    ("[timing]\nsettle_s = 5\ntail_s = 6\ntimeout_s = 11",
     "my.toml:5: timing.timeout_s = 11: is too short: settling, stop, tail and draining alone take longer or as long\n"
     "  mend: take a larger one, and leave time for booting and migrating"),
    ("[timing]\ntail_s = 600",
     "my.toml: timing.timeout_s = 120.0: is too short: settling, stop, tail and draining alone take longer or as long\n"
     "  mend: take a larger one, and leave time for booting and migrating"),
    ('[migration]\ncapabilities = ["switchover-ack"]',
     'my.toml:3: migration.capabilities = ["switchover-ack"]: switchover-ack needs return-path: the ACK comes on it\n'
     '  mend: add "return-path"'),
    ("[network]\niterative_delta = true",
     "my.toml:3: network.iterative_delta = true: means nothing without the capability virtio-iterative\n"
     '  mend: add "virtio-iterative" to migration.capabilities'),
    ('[network]\niterative_control = "reset"',
     'my.toml:3: network.iterative_control = "reset": without the capability virtio-iterative there is no load at the setup\n'
     '  mend: add "virtio-iterative" to migration.capabilities'),
    ("[network]\nqueues = 4\nenabled_queues = 5",
     "my.toml:4: network.enabled_queues = 5: the NIC has 4 queue pairs\n  mend: take fewer, or more queues"),
    ("[migration]\ncancel_at_switchover = true\ncancel_after_ms = 5",
     "my.toml:4: migration.cancel_after_ms = 5: a migration is cancelled once, and cancel_at_switchover is true\n"
     "  mend: leave one of them out"),
    ('[migration]\nmode = "none"\ncancel_after_ms = 5',
     "my.toml:4: migration.cancel_after_ms = 5: means nothing in mode none: the guest does not migrate\n"
     "  mend: leave it out, or take migration.mode = precopy or postcopy"),
    ('[[traffic]]\ncast = "broadcast"\nip = 6',
     'my.toml:3: traffic.0.cast = "broadcast": IPv6 has no broadcast\n  mend: take multicast, or ip = 4'),
    ('[[traffic]]\nname = "a"\n[[traffic]]\nname = "a"',
     'my.toml:5: traffic.1.name = "a": another stream has that name\n  mend: choose another'),
    ('[[traffic]]\nname = "a"\n[[traffic]]\nname = "a-to-guest"\ndirection = "echo"',
     'my.toml:5: traffic.1.name = "a-to-guest": another stream has that name\n  mend: choose another'),
]  # fmt: skip


@pytest.mark.parametrize(("rest", "message"), CONTRADICTIONS)
def test_a_contradiction(rest: str, message: str) -> None:
    assert refusal(f'name = "x"\n{rest}\n') == message


NOT_TOML: list[tuple[str | bytes, str]] = [
    ('name = "x"\nhello world\n',
     "my.toml:2:7: hello world: is no TOML: Expected '=' after a key in a key/value pair"),
    ("name: x\n",
     "my.toml:1:5: name: x: is no TOML: Expected '=' after a key in a key/value pair\n  mend: write KEY = VALUE"),
    ("name = x\n", "my.toml:1:8: name = x: is no TOML: Invalid value\n  mend: write strings in quotes"),
    ('name = "x\n',
     "my.toml:1:10: name = \"x: is no TOML: Illegal character '\\n'\n  mend: close the quotes on the line on which they begin"),
    ('name = "x"\nname = "y"\n',
     'my.toml:2:11: name = "y": is no TOML: Cannot overwrite a value\n  mend: it is there already: leave one out'),
    ('name = "x"\n[guest', "my.toml:2: [guest: is no TOML: Expected ']' at the end of a table declaration"),
    ("", 'my.toml: is empty\n  mend: a scenario needs at least name = "..."; see docs/scenario.md'),
    ("# nothing\n\n", 'my.toml: is empty\n  mend: a scenario needs at least name = "..."; see docs/scenario.md'),
    (b'# ok\nname = "\xff"', "my.toml:2: byte 0xff is no UTF-8\n  mend: save the file as UTF-8 text"),
    ("x = " + "[" * 3000, "my.toml: is nested too deeply\n  mend: a scenario needs four levels at most"),
    ("x" + ".x" * 3000 + " = 1", "my.toml: is nested deeper than 32 levels\n  mend: a scenario needs four at most"),
    ("x = " + "9" * 5000, "my.toml: holds a number that is too long to be read"),
    ("#" * (1 << 20) + "\n", "my.toml: is larger than 1 MiB\n  mend: a scenario is a TOML file of a few lines"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), NOT_TOML, ids=range(len(NOT_TOML)))
def test_a_file_that_is_no_scenario(content: str | bytes, message: str) -> None:
    assert refusal(content) == message


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    message = refusal(
        'mechanism = "tap-handover"\n[network]\nqueues = 2\nmut = 1500\n[migration]\nhold_ms = "x"\nmode = "none"\n'
        '[[traffic]]\ncast = "broadcast"\nip = 6\n'
    )
    assert message.splitlines() == [
        "my.toml: 6 problems",
        '  my.toml:1: mechanism = "tap-handover": means nothing in mode none: the guest does not migrate',
        "    mend: take none, or take migration.mode = precopy or postcopy",
        "  my.toml:3: network.queues = 2: tap-handover can keep the order of one queue only",
        "    mend: take queues = 1, or another mechanism",
        "  my.toml:4: network.mut = 1500: there is no such key",
        "    mend: did you mean 'mtu'?",
        # hold_ms is also a contradiction to the mode, but its value has to be known for that
        '  my.toml:6: migration.hold_ms = "x": must be a number',
        "    mend: it is at least 0 and at most 60000",
        '  my.toml:9: traffic.0.cast = "broadcast": IPv6 has no broadcast',
        "    mend: take multicast, or ip = 4",
        "  my.toml: name: is missing",
        "    mend: write name = ...",
    ]


def test_a_line_is_that_of_the_key_and_not_of_text_that_looks_like_it() -> None:
    text = 'name = "x"\ndescription = """\n[network]\nqueues = 0\n"""\n[migration]\ncapabilities = [\n  "events",\n]\n[network]\nqueues = 0'
    assert refusal(text).startswith("my.toml:11: network.queues = 0: ")


def test_lines_are_given_up_for_huge_files() -> None:
    text = 'name = "x"\n' + "".join(f"[[traffic]]\nname = \"s{n}\"\n" for n in range(600)) + "[network]\nqueues = 0\n"
    assert refusal(text).startswith("my.toml: network.queues = 0: ")


def test_sizes_beyond_the_mtu_are_fragments_and_allowed() -> None:
    assert load('name = "x"\n[[traffic]]\nsize = 65507\n').traffic[0].size == 65507


@pytest.mark.parametrize("name", ["early-mig", "enable-when-stopped", "x-new"])
def test_a_name_far_from_all_known_ones_is_left_to_discovery(name: str) -> None:
    scenario = load(f'name = "x"\n[migration]\ncapabilities = ["{name}"]\nparameters = {{ {name} = 1 }}\n')
    assert (scenario.migration.capabilities, scenario.migration.parameters) == ((name,), {name: 1})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KNOWN_NAMES.items() for name in names])
def test_every_known_name_passes(kind: str, name: str) -> None:
    with_it = '"return-path", ' if name == "switchover-ack" else ""
    listed = f'capabilities = [{with_it}"{name}"]' if kind == "capability" else f"parameters = {{ {name} = 1 }}"
    load(f'name = "x"\n[migration]\n{listed}\n')


# -- files


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may read everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_files_that_are_not_there_or_no_files(folder: Path) -> None:
    Path("my.toml").write_text('name = "x"')
    os.mkfifo("pipe.toml")
    expected = {
        "mi.toml": "mi.toml: there is no such file\n  mend: did you mean 'my.toml'?",
        "./quite-different.toml": "./quite-different.toml: there is no such file",
        "none/x.toml": "none/x.toml: there is no such file",
        "udp-non": "there is no scenario 'udp-non'\n  mend: did you mean 'udp-none'?",
        ".": ".: is a folder\n  mend: name the scenario file in it",
        "pipe.toml": "pipe.toml: is no regular file\n  mend: write the scenario to a file first",
        "my.toml/x.toml": "my.toml/x.toml: can't be read: Not a directory",
        "a\0b": "'a\\x00b': can't be read: embedded null byte",
    }
    for name, message in expected.items():
        with pytest.raises(ScenarioError) as caught:
            load_scenario(name)
        assert str(caught.value) == message


def test_an_unreadable_file() -> None:
    path = Path("my.toml")
    path.write_text('name = "x"')
    path.chmod(0)
    descriptor = os.open(".", os.O_RDONLY)  # the path to the folder may be closed to others as well
    try:
        with as_ordinary_user(), pytest.raises(ScenarioError) as caught:
            load_scenario("my.toml")
    finally:
        os.close(descriptor)
    assert str(caught.value) == "my.toml: can't be read: Permission denied"


def test_a_byte_order_mark_and_foreign_line_ends_do_no_harm() -> None:
    assert load(b'\xef\xbb\xbfname = "x"\r\n[network]\r\nqueues = 2\r\n').network.queues == 2


# -- settings


def test_settings_lie_over_the_file() -> None:
    scenario = load(
        'name = "x"\n[[traffic]]\nname = "s"\ndirection = "to-guest"\n[expect]\n"downtime.compute_ms" = "< 9"\n',
        "migration.hold_ms=200", "traffic.0.rate_pps=3000", "migration.parameters.downtime-limit=300", "network.peer=namespace",
        "migration.capabilities=['events']", "qemu.source=11.1", "qemu.destination=\"7.2\"", "expect.downtime.compute_ms=< 300",
        "expect.streams.s.lost=0", "network.vhost=true", "migration.hold_ms=250", "description=1 = 2",
    )  # fmt: skip
    assert scenario.migration.hold_ms == 250
    assert scenario.migration.parameters == {"downtime-limit": 300}
    assert scenario.migration.capabilities == ("events",)
    assert scenario.traffic[0].rate_pps == 3000
    assert scenario.network.peer is Peer.NAMESPACE
    assert scenario.network.vhost is True
    assert (scenario.qemu.source, scenario.qemu.destination) == ("11.1", "7.2")
    assert scenario.expect == {"downtime.compute_ms": "< 300", "streams.s.lost": 0}
    assert scenario.description == "1 = 2"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("foo", "--set foo: is no KEY=VALUE\n  mend: for example --set migration.hold_ms=200"),
        ("=3", "--set =3: is no KEY=VALUE\n  mend: for example --set migration.hold_ms=200"),
        ("network..mtu=3", "--set network..mtu=3: is no KEY=VALUE\n  mend: for example --set migration.hold_ms=200"),
        ("migration.hold_ms=long",
         '--set migration.hold_ms=long: migration.hold_ms = "long": must be a number\n  mend: it is at least 0 and at most 60000'),
        ("migration.hold=3", "--set migration.hold=3: migration.hold = 3: there is no such key\n  mend: did you mean 'hold_ms'?"),
        ("traffic.1.size=99", "--set traffic.1.size=99: there is no traffic.1\n  mend: there is 0 to 0"),
        ("traffic.first.size=99", "--set traffic.first.size=99: there is no traffic.first\n  mend: there is 0 to 0"),
        ("name.x=3", "--set name.x=3: name has no keys\n  mend: set name itself"),
        ("name=[1", "--set name=[1: the value is no TOML\n  mend: close quotes and brackets"),
        ("traffic.0.cast=broad",
         '--set traffic.0.cast=broad: traffic.0.cast = "broad": must be "unicast" or "broadcast" or "multicast"\n'
         "  mend: did you mean 'broadcast'?"),
        ("migration.mode=none", "my.toml:3: migration.hold_ms = 150: " + _STAYS.format("none", "set it to 0")),
    ],
)  # fmt: skip
def test_a_wrong_setting(setting: str, message: str) -> None:
    assert refusal('name = "x"\n[migration]\nhold_ms = 150\n[[traffic]]\n', setting) == message


# -- shipped scenarios


def test_the_shipped_scenarios_are_those_of_the_manual() -> None:
    assert set(shipped_scenarios()) == SHIPPED | COSTS | WAYS | VHOST
    assert not [name for name in SHIPPED | COSTS | VHOST if f"`{name}`" not in MANUAL]


def test_the_manual_has_every_key_and_its_example_is_a_scenario() -> None:
    sections = msgspec.to_builtins(Scenario(name="x"))
    keys = [f"{section}.{key}" for section, keys in sections.items() if isinstance(keys, dict) for key in keys]
    keys += [f"traffic.{key}" for key in TrafficSection.__struct_fields__]
    assert len(keys) > 30
    assert not [key for key in keys if f"`{key}`" not in MANUAL]
    example = MANUAL.split("The smallest useful one:\n")[1].split("\n## ")[0]
    assert load(textwrap.dedent(example)).mechanism == "tap-handover"


@pytest.mark.parametrize("name", sorted(WAYS))
def test_a_shipped_scenario_of_a_way(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.expect["ledger.unexplained"] == 0
    assert scenario.migration.hold_ms == 0


@pytest.mark.parametrize("name", sorted(VHOST))
def test_a_shipped_scenario_for_vhost(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name == f"vhost-{scenario.mechanism}"
    assert scenario.network.vhost
    assert scenario.migration.hold_ms == 500
    assert {stream.rate_pps for stream in plan_streams(scenario.traffic)} == {50.0}
    assert (scenario.qemu.source, scenario.qemu.destination) == ("reference", "reference")


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_scenario(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.description
    assert scenario.expect
    assert {stream.direction for stream in plan_streams(scenario.traffic)} == {Direction.TO_GUEST, Direction.FROM_GUEST}
    assert {stream.rate_pps for stream in plan_streams(scenario.traffic)} == {1000.0}
    migrates = scenario.migration.mode in (MigrationMode.PRECOPY, MigrationMode.POSTCOPY)
    assert scenario.migration.hold_ms == (150 if migrates else 0)
    build = "reference" if scenario.mechanism in ("netpass", "redirect", "redirect-packet", "local-tap") else "system"
    assert (scenario.qemu.source, scenario.qemu.destination) == (build, build)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_a_shipped_scenario_about_costs(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.description
    assert scenario.expect["lost"] == 0
    assert scenario.migration.hold_ms == 0
    assert (scenario.qemu.source, scenario.qemu.destination) == ("reference", "reference")


def test_every_mechanism_has_a_scenario() -> None:
    assert {load_scenario(name).mechanism for name in SHIPPED} == set(KNOWN_MECHANISMS)


def test_a_file_called_like_a_shipped_scenario_needs_its_path() -> None:
    Path("null").write_text('name = "mine"')
    assert load_scenario("null").name == "null"
    assert load_scenario("./null").name == "mine"


def test_null_in_a_scenario_cannot_be_written() -> None:
    scenario = Scenario(name="x", migration=MigrationSection(parameters={"downtime-limit": None}))
    with pytest.raises(ScenarioError, match="TOML has no word for: null"):
        dump_scenario(scenario)
