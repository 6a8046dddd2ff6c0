"""Obstacles, NICs of other kinds, two bridges: what they change, and what does not go with them."""

from __future__ import annotations

import pytest
from test_modes import EVERYTHING

from harness.errors import UsageError
from harness.host.migration_link import LinkShape, queue_words, read_queues
from harness.host.network import Network
from harness.migrate.checks import check_plan
from harness.migrate.obstacles import with_obstacle
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationMode, NetworkSection, Obstacle, Scenario, Topology, Transport
from harness.vm.argv import MachineSpec, NicSpec, machine_argv
from harness.vm.nic import guest_nic_properties

SPEC = MachineSpec(
    name="m1", argv_prefix=("qemu",), accelerator="tcg", kernel="/k", traces=(),
    nics=(NicSpec(id="net0", mac="52:54:00:77:00:02"), NicSpec(id="mgmt0", mac="52:54:00:78:00:02")),
)  # fmt: skip


def argv(obstacle: Obstacle | None) -> str:
    return " ".join(machine_argv(with_obstacle(SPEC, obstacle)))


def test_without_an_obstacle_the_destination_is_as_it_was():
    assert with_obstacle(SPEC, None) is SPEC
    assert with_obstacle(SPEC, Obstacle.FULL_DISK) is SPEC


def test_each_obstacle_changes_what_the_source_will_not_find():
    assert "-m 320M" in argv(Obstacle.OTHER_MEMORY)
    assert "mgmt0" in argv(None)
    assert "mgmt0" not in argv(Obstacle.MISSING_DEVICE)
    assert "netdev=net0-netdev,mac=52:54:00:77:00:02,romfile=,mrg_rxbuf=off" in argv(Obstacle.MISSING_FEATURE)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"obstacle": Obstacle.FULL_DISK}, "only a file can meet a full disk"),
        ({"obstacle": Obstacle.OTHER_MEMORY, "cancel_at_percent": 5}, "meant to fail can't be cancelled"),
    ],
)
def test_what_an_obstacle_does_not_go_with_is_refused(plan, why):
    with pytest.raises(UsageError, match=why) as refusal:
        check_plan(MigrationPlan(**plan), scenario=Scenario(name="x"), source=EVERYTHING, destination=EVERYTHING)
    assert refusal.value.hint


def test_a_full_disk_goes_with_a_file():
    plan = MigrationPlan(obstacle=Obstacle.FULL_DISK, transport=Transport.FILE, mode=MigrationMode.PRECOPY)
    check_plan(plan, scenario=Scenario(name="x"), source=EVERYTHING, destination=EVERYTHING)


def test_nic_properties_are_those_that_differ():
    assert guest_nic_properties(NetworkSection()) == ()
    assert guest_nic_properties(NetworkSection(packed=True, mergeable=False)) == ("packed=on", "mrg_rxbuf=off")
    assert {"csum=off", "guest_tso4=off", "host_tso6=off"} <= set(guest_nic_properties(NetworkSection(offloads=False)))


def test_machines_are_on_the_hosts_bridges_by_turns():
    network = Network(warden=None)  # type: ignore[arg-type]
    assert [network.bridge_of(name) for name in ("m0", "m1", "peer")] == ["br0", "br0", "br0"]
    network._topology = Topology.TWO_BRIDGES
    assert [network.bridge_of(name) for name in ("m0", "m1", "m2", "peer")] == ["br-a", "br-b", "br-a", "br0"]


def test_a_mechanism_that_steers_the_bridge_wants_one():
    scenario = Scenario(name="x", network=NetworkSection(topology=Topology.TWO_BRIDGES))
    check_plan(MigrationPlan(), scenario=scenario, source=EVERYTHING, destination=EVERYTHING)
    with pytest.raises(UsageError, match="tap-handover works on one bridge"):
        check_plan(MigrationPlan(mechanism="tap-handover"), scenario=scenario, source=EVERYTHING, destination=EVERYTHING)


def test_two_hosts_are_joined_by_tcp_alone():
    scenario = Scenario(name="x", network=NetworkSection(topology=Topology.TWO_HOSTS, link_mbit_s=100))
    check_plan(MigrationPlan(transport=Transport.TCP), scenario=scenario, source=EVERYTHING, destination=EVERYTHING)
    with pytest.raises(UsageError, match="between two hosts a migration goes over TCP"):
        check_plan(MigrationPlan(), scenario=scenario, source=EVERYTHING, destination=EVERYTHING)
    with pytest.raises(UsageError, match="only two hosts have a migration link"):
        check_plan(
            MigrationPlan(), scenario=Scenario(name="x", network=NetworkSection(link_delay_ms=5)), source=EVERYTHING, destination=EVERYTHING
        )


def test_machines_are_on_the_hosts_by_turns_and_are_reached_there():
    network = Network(warden=None)  # type: ignore[arg-type]
    assert (network.namespace_of("m1"), network.migration_address("m1")) == ("lab", None)
    network._topology = Topology.TWO_HOSTS
    assert [network.namespace_of(name) for name in ("m0", "m1", "m2", "peer")] == ["host-a", "host-b", "host-a", "lab"]
    assert [network.migration_address(name) for name in ("m0", "m1")] == ["10.79.0.1", "10.79.1.1"]
    assert network.bridge_of("m1") == "br-b"


def test_the_link_is_shaped_by_tbf_and_with_delay_or_loss_by_netem():
    assert queue_words(LinkShape()) == []
    assert queue_words(LinkShape(mbit_s=200)) == ["tbf", "rate", "200mbit", "burst", "256kb", "latency", "100ms"]
    assert queue_words(LinkShape(mbit_s=10, delay_ms=2.5, loss_percent=0.1)) == [
        "netem", "delay", "2.5ms", "loss", "0.1%", "limit", "100000", "rate", "10mbit",
    ]  # fmt: skip


def test_what_the_link_s_queues_did_is_read_from_tc_s_words():
    rest = '"refcnt":3,"bytes":0,"overlimits":0,"requeues":0,"backlog":0,"qlen":0'
    text = f"""[
        {{"kind":"noqueue","handle":"0:","dev":"lo","root":true,"options":{{}},"packets":0,"drops":0,{rest}}},
        {{"kind":"netem","handle":"8002:","dev":"to-host-b","root":true,"options":{{"limit":100000,
          "delay":{{"delay":0.02,"jitter":0,"correlation":0}},"loss-random":{{"loss":0.00099999993,"correlation":0}},"ecn":false,"gap":0}},
          "packets":41022,"drops":38,{rest}}},
        {{"kind":"tbf","handle":"8001:","dev":"to-host-a","root":true,"options":{{"rate":1250000,"burst":262143,"lat":100000}},"packets":7,"drops":0,{rest}}}]"""
    assert [str(queue) for queue in read_queues(text.encode())] == [
        "tbf towards host-a: 7 frames, 0 dropped", "netem, 20 ms, 0.1 % loss towards host-b: 41022 frames, 38 dropped",
    ]  # fmt: skip
