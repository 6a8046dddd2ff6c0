"""Scenarios survive being written and read, and the check of shapes agrees with msgspec."""

from __future__ import annotations

import copy
import itertools
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ScenarioError
from harness.model.load import KNOWN_NAMES, dump_scenario, load_scenario, shipped_scenarios
from harness.model.scenario import (
    Accelerator,
    Cast,
    DestinationPort,
    Direction,
    GuestSection,
    MigrationMode,
    MigrationSection,
    NetworkSection,
    Peer,
    QemuSection,
    Scenario,
    SlowDeviceSection,
    TimingSection,
    TrafficSection,
)
from harness.model.schema import shape_problems

WRITES_FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(max_size=30)
paths = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()) and "\0" not in text)
plain = st.one_of(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), texts)
nested = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)



def _with_what_they_need(capabilities: list[str]) -> tuple[str, ...]:
    return ("return-path", *capabilities) if "switchover-ack" in capabilities else tuple(capabilities)


guests = st.builds(
    GuestSection, slow_device=st.none() | st.builds(SlowDeviceSection, prepare_ms=st.integers(-1, 60_000), ack=st.booleans()), memory=st.sampled_from(["64M", "256M", "1G", "2 GiB"]), vcpus=st.integers(1, 16), cpu=st.none() | paths,
    kernel=paths, modules=st.none() | paths, image=st.none() | paths, management=st.booleans(),
)  # fmt: skip
networks = st.builds(
    NetworkSection, peer=st.sampled_from(Peer), mtu=st.integers(1280, 9000), queues=st.integers(8, 64), vhost=st.booleans(),
    enabled_queues=st.none() | st.integers(1, 8), iterative_control=st.sampled_from(["none", "twice"]),
    destination_port=st.sampled_from(DestinationPort), static_neighbours=st.booleans(),
)  # fmt: skip
migrations = st.builds(
    MigrationSection, mode=st.sampled_from([MigrationMode.PRECOPY, MigrationMode.POSTCOPY]), transport=st.sampled_from(["unix", "tcp"]),
    capabilities=st.lists(st.sampled_from(KNOWN_NAMES["capability"]), max_size=3).map(_with_what_they_need),
    parameters=st.dictionaries(st.sampled_from(KNOWN_NAMES["parameter"]), nested, max_size=3),
    hold_ms=st.floats(0, 30_000), cancel_after_ms=st.none() | st.floats(0, 30_000),
) | st.builds(MigrationSection, cancel_at_switchover=st.booleans()) | st.builds(MigrationSection, mode=st.just(MigrationMode.STOP_CONT), outage_ms=st.floats(1, 60_000))  # fmt: skip
traffics = st.builds(
    TrafficSection, direction=st.sampled_from(Direction), cast=st.sampled_from([Cast.UNICAST, Cast.MULTICAST]),
    rate_pps=st.floats(0.001, 200_000), size=st.integers(32, 65_507), ip=st.sampled_from([4, 6]),
)  # fmt: skip
expectations = st.dictionaries(
    st.sampled_from(["lost", "duplicated", "downtime.compute_ms", "streams.s.ledger.unexplained"]),
    st.integers(0, 10**9) | st.sampled_from(["< 300", ">= 10", "!= 0", "10 .. 20"]),
)
scenarios = st.builds(
    Scenario, name=names, description=texts, accelerator=st.sampled_from(Accelerator), guest=guests, network=networks,
    qemu=st.builds(QemuSection, source=paths, destination=paths), migration=migrations,
    traffic=st.lists(traffics, max_size=3).map(lambda more: (TrafficSection(name="s", direction=Direction.ECHO), *more)),
    timing=st.builds(TimingSection, settle_s=st.floats(0, 9), tail_s=st.floats(0, 9), drain_s=st.floats(0, 9),
                     timeout_s=st.floats(100, 86_400)),
    expect=expectations,
)  # fmt: skip


@WRITES_FILES
@given(scenario=scenarios)
def test_what_is_written_is_read(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(dump_scenario(scenario), encoding="utf-8", newline="")
    assert load_scenario(str(path)) == scenario


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(dump_scenario(load_scenario(name)))
    assert load_scenario(str(path)) == load_scenario(name)


def test_defaults_are_spelt_out() -> None:
    written = tomllib.loads(dump_scenario(Scenario(name="x", traffic=(TrafficSection(),))))
    assert written["timing"] == {"settle_s": 1.0, "tail_s": 1.0, "drain_s": 0.3, "timeout_s": 120.0}
    assert written["traffic"] == [
        {"kind": "udp", "direction": "both", "cast": "unicast", "rate_pps": 1000.0, "size": 100, "ip": 4}
    ]


def _places(value: Any, key: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [key, *itertools.chain.from_iterable(_places(item, (*key, step)) for step, item in children)]


@settings(deadline=None)
@given(data=st.data(), scenario=scenarios, other=nested)
def test_the_check_of_shapes_accepts_only_what_msgspec_accepts(data: st.DataObject, scenario: Scenario, other: Any) -> None:
    document = tomllib.loads(dump_scenario(scenario))
    assert shape_problems(document, Scenario) == []
    broken = copy.deepcopy(document)
    place = data.draw(st.sampled_from([place for place in _places(document) if place]))
    here = broken
    for step in place[:-1]:
        here = here[step]
    here[place[-1]] = other
    if not shape_problems(broken, Scenario):
        msgspec.convert(broken, Scenario)


@WRITES_FILES
@given(content=st.binary(max_size=200) | texts.map(str.encode) | st.lists(
    st.sampled_from(['name = "x"', "[guest]", "[[traffic]]", "[expect]", "lost = 0", "size = 5", "vcpus = 2", "a.b = 1", '"""', "[", "="]),
    max_size=8).map("\n".join).map(str.encode))  # fmt: skip
def test_any_file_is_a_scenario_or_a_scenario_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    try:
        scenario = load_scenario(str(path))
    except ScenarioError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 -- both ways out are right
    else:
        assert scenario.name


@WRITES_FILES
@given(setting=st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(
    ["name", "traffic.0.size", "traffic", "guest", "expect.lost", "expect", "migration.parameters", "migration.capabilities.0", "x.y"]),
    texts | nested.map(str)))  # fmt: skip
def test_any_setting_makes_a_scenario_or_a_scenario_error(setting: str) -> None:
    try:
        scenario = load_scenario("udp-none", settings=[setting])
    except ScenarioError as error:
        assert error.exit_code == 4  # noqa: PT017 -- both ways out are right
    else:
        assert scenario.name
