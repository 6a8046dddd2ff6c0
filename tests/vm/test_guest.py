"""A guest: ready means link and address; agent, console and SSH answer; warm guests are their own."""

from __future__ import annotations

import pytest


def test_ready_means_link_and_address(guest_pair):
    state = guest_pair.succeed("cat /sys/class/net/eth0/carrier; ip -4 -br addr show dev eth0")
    assert state.split()[0] == "1"
    assert "10.77.0.2/24" in state


@pytest.mark.switchover(peer="guest")
def test_the_pair_reaches_each_other(guest_pair):
    assert "0% packet loss" in guest_pair.succeed("ping -c 2 -i 0.2 10.77.0.1")
    assert "0% packet loss" in guest_pair.succeed("ping -6 -c 2 -i 0.2 fd77::1")
    assert "10.77.0.1/24" in guest_pair.succeed("ip -4 -br addr show dev eth0", on="peer")


def test_the_tools_that_the_image_promises_are_there(guest_pair):
    for tool in ("swgen", "ping", "iperf3", "irtt", "ip", "ss", "nstat", "tc"):
        assert guest_pair.run(["/bin/sh", "-c", f"command -v {tool}"]).status == 0, tool


def test_a_command_that_fails_says_so(guest_pair):
    result = guest_pair.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 5"])
    assert (result.status, result.stdout, result.stderr) == (5, b"out\n", b"err\n")


def test_ssh_over_the_management_network(guest_pair):
    with guest_pair.ssh() as client:
        _, stdout, _ = client.exec_command("echo $((6 * 7)); ip -br addr show dev mgmt0", timeout=20)
        text = stdout.read().decode()
    assert text.split()[0] == "42"
    assert "10.78.0.2" in text


def test_the_console_answers(guest_pair):
    console = guest_pair.lab.mobile.console
    with console.spawn(timeout_s=20) as session:
        session.send(b"echo con$((40 + 2))sole\n")
        session.expect(rb"con42sole")


def test_two_warm_guests_have_entropy_of_their_own(guest_pair, request):
    """Guests started from one saved state must not draw the same random numbers."""
    first = guest_pair.succeed("head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'")
    from harness.plugin.pair import GuestPair

    loop = request.getfixturevalue("_switchover_loop")
    with GuestPair.open(guest_pair._settings, loop=loop) as other:
        second = other.succeed("head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'")
    assert len(first) == 32
    assert first != second


@pytest.mark.switchover(cold=True)
def test_a_cold_guest_boots(guest_pair):
    assert float(guest_pair.succeed("cat /proc/uptime").split()[0]) < 60
