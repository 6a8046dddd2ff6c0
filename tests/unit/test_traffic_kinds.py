"""Kinds of traffic: what a section stands for, what is refused, and the command lines of the clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import EnvironmentLackError, ScenarioError
from harness.model.load import dump_scenario, load_scenario
from harness.model.scenario import Cast, Direction, Peer, Scenario, TcpMode, TrafficKind, TrafficSection
from harness.model.streams import TcpRole, Traffic, plan_streams, plan_traffic
from harness.traffic.iperf3 import Iperf3
from harness.traffic.irtt import Irtt
from harness.traffic.ping import Ping
from harness.traffic.witness import require_programs

ALL = [
    TrafficSection(),
    TrafficSection(kind=TrafficKind.TCP),
    TrafficSection(kind=TrafficKind.TCP, mode=TcpMode.REQUEST, direction=Direction.FROM_GUEST, ip=6),
    TrafficSection(kind=TrafficKind.IDLE_TCP),
    TrafficSection(kind=TrafficKind.ICMP),
    TrafficSection(kind=TrafficKind.IPERF3),
    TrafficSection(kind=TrafficKind.IRTT),
]


def test_every_kind_has_its_defaults_and_keeps_what_is_given() -> None:
    udp, bulk, request, idle, ping, iperf3, _ = ALL
    assert (udp.direction, udp.cast, udp.rate_pps, udp.size, udp.mode) == (Direction.BOTH, Cast.UNICAST, 1000.0, 100, None)
    assert (bulk.mode, bulk.direction, bulk.rate_pps, bulk.size, bulk.cast) == (TcpMode.BULK, Direction.BOTH, None, 4096, None)
    assert (request.rate_pps, request.size, request.direction) == (200.0, 100, Direction.FROM_GUEST)
    assert (idle.direction, idle.rate_pps, idle.size) == (Direction.TO_GUEST, None, None)
    assert (ping.direction, ping.rate_pps, ping.size) == (None, 100.0, 56)
    assert (iperf3.direction, iperf3.rate_pps) == (Direction.TO_GUEST, None)


def test_a_plan_has_unique_names_ids_and_ports() -> None:
    plan = plan_traffic(ALL)
    everything = list(plan)
    assert [each.name for each in everything] == [
        "udp-to-guest", "udp-from-guest", "tcp-bulk-to-guest", "tcp-bulk-from-guest", "tcp-request-from-guest",
        "idle-tcp-to-guest", "icmp", "iperf3-to-guest", "irtt",
    ]  # fmt: skip
    assert len({each.id for each in everything}) == len({each.port for each in everything}) == len(everything)
    assert plan_streams(ALL) == plan.udp
    assert Traffic.of(reversed(everything)).tcp == plan.tcp[::-1]
    assert [stream.role for stream in plan.tcp] == [TcpRole.BULK, TcpRole.BULK, TcpRole.REQUEST, TcpRole.IDLE]


def test_the_generators_words_for_connections() -> None:
    down, up, request, idle = plan_traffic(ALL).tcp
    assert down.sender() == f"id={down.id},role=tcp-bulk,dst=10.77.0.2,port={down.port},size=4096"
    assert down.receiver() == f"id={down.id},role=tcp-serve,port={down.port}"
    assert (down.sender_is_peer, up.sender_is_peer) == (True, False)
    assert down.server == f"10.77.0.2:{down.port}"
    assert request.sender() == f"id={request.id},role=tcp-request,dst=fd77::1,port={request.port},size=100,rate=200"
    assert request.receiver().endswith(",src=::")
    assert request.server == f"[fd77::1]:{request.port}"
    assert request.interval_ns == 5_000_000
    assert idle.sender() == f"id={idle.id},role=tcp-idle,dst=10.77.0.2,port={idle.port}"
    assert idle.interval_ns is None


def test_the_clients_command_lines() -> None:
    ping, iperf3, irtt = plan_traffic(ALL).witnesses
    ends = {"mobile": None, "peer": None, "nonce": 1}
    assert Ping(ping, **ends).argv() == ["ping", "-4", "-D", "-O", "-n", "-s", "56", "-i", "0.01", "10.77.0.2"]  # type: ignore[arg-type]
    client = Iperf3(iperf3, **ends).client_argv()  # type: ignore[arg-type]
    assert client == ["iperf3", "-c", "10.77.0.2", "-4", "-p", str(iperf3.port), "-J", "-t", "86000", "-l", "4096"]
    (back,) = plan_traffic([TrafficSection(kind=TrafficKind.IPERF3, direction=Direction.FROM_GUEST, rate_pps=10, size=1000)]).witnesses
    assert Iperf3(back, **ends).client_argv()[-3:] == ["-b", "80000", "-R"]  # type: ignore[arg-type]
    assert Irtt(irtt, **ends).client_argv() == [  # type: ignore[arg-type]
        "irtt", "client", "-i", "10000us", "-d", "2000000000us", "-l", "100", "-q", "-o", "irtt.json", f"10.77.0.2:{irtt.port}",
    ]  # fmt: skip


REFUSED = [
    ('kind = "tcp"\ncast = "broadcast"', 'my.toml:4: traffic.0.cast = "broadcast": means nothing to kind tcp\n'
     "  mend: leave it out, or take kind udp"),
    ('kind = "udp"\nmode = "bulk"', 'my.toml:4: traffic.0.mode = "bulk": means nothing to kind udp\n'
     "  mend: leave it out, or take kind tcp"),
    ('kind = "idle-tcp"\nrate_pps = 2.5', "my.toml:4: traffic.0.rate_pps = 2.5: means nothing to kind idle-tcp\n"
     "  mend: leave it out, or take kind udp or tcp or icmp or iperf3 or irtt"),
    ('kind = "icmp"\ndirection = "to-guest"', 'my.toml:4: traffic.0.direction = "to-guest": means nothing to kind icmp: it always asks from '
     "the peer and is answered by the guest\n  mend: leave it out, or take kind udp or tcp or idle-tcp or iperf3"),
    ('kind = "tcp"\ndirection = "echo"', 'my.toml:4: traffic.0.direction = "echo": only kind udp has an echo, not tcp\n'
     "  mend: take to-guest, from-guest or both, or mode = request"),
    ('kind = "tcp"\nsize = 5000', "my.toml:4: traffic.0.size = 5000: bulk data goes in blocks of 4096 bytes\n"
     "  mend: take a multiple of 4096"),
    ('kind = "irrt"', 'my.toml:3: traffic.0.kind = "irrt": must be "udp" or "tcp" or "idle-tcp" or "icmp" or "iperf3" or "irtt"\n'
     "  mend: did you mean 'irtt'?"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "message"), REFUSED)
def test_what_means_nothing_to_a_kind_is_refused(section: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(f'name = "x"\n[[traffic]]\n{section}\n')
    with pytest.raises(ScenarioError) as caught:
        load_scenario("my.toml")
    assert str(caught.value) == message


def test_all_kinds_survive_being_written_and_read(tmp_path: Path) -> None:
    scenario = Scenario(name="x", traffic=tuple(ALL), expect={"tcp.tcp-bulk-to-guest.rto_events": 0, "tcp.idle-tcp-to-guest.survived": True})
    path = tmp_path / "x.toml"
    path.write_text(dump_scenario(scenario))
    assert load_scenario(str(path)) == scenario


def test_a_client_that_the_host_lacks_is_named_before_anything_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    require_programs(ALL, peer=Peer.GUEST)
    require_programs(ALL[:4], peer=Peer.NAMESPACE)
    with pytest.raises(EnvironmentLackError, match="irtt is not installed, and traffic of kind irtt") as caught:
        require_programs([ALL[-1]], peer=Peer.NAMESPACE)
    assert caught.value.hint is not None
    assert "apt-get install irtt" in caught.value.hint
