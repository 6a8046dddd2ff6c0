"""virtio-iterative: a state sent early and changed since must arrive as the source has it, field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from held import ACK, held_migration

from harness.analysis.virtio_state import decode_state, state_differences
from harness.host.deadline import Deadline
from harness.vm.machine import Machine
from harness.vm.trace import trace_events

MACHINE = {
    "requires": ["virtio-iterative", "slow-device", "command:x-query-virtio-state"], "qemu": "reference",
    "slow_device": {"prepare_ms": -1}, "queues": 4, "management": False,
}  # fmt: skip

BACKEND = "/machine/peripheral/net0/virtio-backend"
DRIVER = "/sys/bus/virtio/drivers/virtio_net"


async def state_of(machine: Machine) -> dict[str, bytes]:
    return decode_state(await machine.qmp.command("x-query-virtio-state", path=BACKEND))


@dataclass(frozen=True)
class Change:
    """What is done between setup and stop, and a field of the device's state that it must have changed."""

    name: str
    field: str | None
    shell: str = ""
    qmp: tuple[str, dict[str, Any]] | None = None
    restarts: bool = False


UNBIND = f'd=$(basename "$(readlink -f {DRIVER}/virtio*/net/eth0/device)"); echo "$d" >/tmp/nic; echo "$d" >{DRIVER}/unbind'
CHANGES = (
    Change("nothing", None),
    Change("promiscuous", "device.promisc", "ip link set eth0 promisc on"),
    Change("all multicast", "device.allmulti", "ip link set eth0 promisc off; ip link set eth0 allmulticast on"),
    Change("multicast group", "device.mac_table", "ip link set eth0 allmulticast off; ip maddr add 01:00:5e:01:02:03 dev eth0"),
    Change("MAC", "device.mac[", "ip link set eth0 address 52:54:00:77:00:42"),
    Change("VLAN added", "device.vlans", "modprobe 8021q && ip link add link eth0 name v5 type vlan id 5 && ip link set v5 up"),
    Change("VLAN removed", "device.vlans", "ip link del v5"),
    Change("more queue pairs", "device.curr_queue_pairs", "ethtool -L eth0 combined 4"),
    Change("fewer queue pairs", "device.curr_queue_pairs", "ethtool -L eth0 combined 2"),
    Change("offloads", "device.curr_guest_offloads", "ethtool -K eth0 rx-gro-hw off"),
    # One round: the further ones come from a timer that goes on when the guest has stopped, and change what was sent already.
    Change("announcement", None, qmp=("announce-self", {"initial": 50, "max": 550, "rounds": 1, "step": 100})),
    Change("link lost", "device.status", qmp=("set_link", {"name": "net0", "up": False})),
    Change("link back", "device.status", qmp=("set_link", {"name": "net0", "up": True})),
    Change("interface down", None, "ip link set eth0 down"),
    Change("driver gone", "status", UNBIND),
    Change("driver back", "status", f'cat /tmp/nic >{DRIVER}/bind; ip link set eth0 up'),
    Change("driver loaded again", "vq[0].desc", f'{UNBIND}; cat /tmp/nic >{DRIVER}/bind; ip link set eth0 up'),
)  # fmt: skip
REBOOT = Change("reboot", None, qmp=("system_reset", {}), restarts=True)


async def boot_id_of(machine: Machine) -> str:
    return await machine.agent.shell("cat /proc/sys/kernel/random/boot_id", deadline=Deadline(20))


async def booted_again(pair: Any, boot_id: str, *, deadline: Deadline) -> None:
    """Until another boot's guest answers, with its NIC up."""
    machine = pair.lab.mobile

    async def reset() -> bool:
        return pair.lab.timeline.find("RESET", source=machine.role) is not None

    await deadline.poll(reset, awaited="the machine's reset")
    await machine.agent.sync(deadline=deadline)
    assert await boot_id_of(machine) != boot_id
    await machine.agent.shell("ip link set eth0 up", deadline=deadline)


def carry_out(pair: Any, changes: tuple[Change, ...]) -> dict[str, str]:
    """Migrate once for each change and compare; what came at the stop ("full" or "delta"), by the change's name."""
    sent: dict[str, str] = {}
    wrong: dict[str, Any] = {}

    async def all_of_them() -> None:
        for change in changes:
            machine = pair.lab.mobile
            before, boot_id = await state_of(machine), await boot_id_of(machine) if change.restarts else ""

            async def make(change: Change = change, machine: Machine = machine, boot_id: str = boot_id) -> None:
                if change.qmp is not None:
                    await machine.qmp.command(change.qmp[0], **change.qmp[1])
                if change.shell:
                    await machine.agent.shell(change.shell, deadline=Deadline(20))
                if change.restarts:
                    await booted_again(pair, boot_id, deadline=Deadline(60))

            async with held_migration(pair, (*ACK, "virtio-iterative")) as held:
                await make()
                assert await held.status() == "active"  # the guest has run up to here
                await held.make_ready()
                await held.completed()
            theirs, ours = await state_of(held.source), await state_of(held.destination)
            if differing := state_differences(theirs, ours):
                wrong[change.name] = differing
            changed = state_differences(before, theirs)
            if change.field is not None and not any(name.startswith(change.field) for name in changed):
                wrong[f"{change.name}: had no effect"] = sorted(changed)
            for event in trace_events(held.destination):
                words = event.data["text"].split()
                if event.name == "trace:virtio_net_iterative_load" and words[:2] == ["net0", "stop"]:
                    sent[change.name] = words[2]
            await held.let_it_run()

    pair.do(all_of_them())
    assert wrong == {}
    return sent


@pytest.mark.switchover(**MACHINE)
def test_what_changed_since_the_setup_arrives(guest_pair):
    sent = carry_out(guest_pair, (*CHANGES, REBOOT))
    assert sent == dict.fromkeys((change.name for change in (*CHANGES, REBOOT)), "full")


@pytest.mark.switchover(**MACHINE, iterative_delta=True)
def test_what_changed_since_the_setup_arrives_as_a_difference(guest_pair):
    sent = carry_out(guest_pair, (*CHANGES, REBOOT))
    assert sent["nothing"] == "delta"
    assert sent["driver loaded again"] == "full"
