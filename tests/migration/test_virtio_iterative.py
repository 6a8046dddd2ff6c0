"""virtio-iterative: a state sent early and changed since must arrive as the source has it, field by field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from harness.analysis.virtio_state import decode_state, state_differences
from harness.host.bridge import PortFlags
from harness.host.deadline import Deadline
from harness.vm.machine import Machine
from harness.vm.migration_devices import SLOW
from harness.vm.trace import trace_events

MACHINE = {
    "requires": ["virtio-iterative", "slow-device", "command:x-query-virtio-state"], "qemu": "reference",
    "slow_device": {"prepare_ms": -1}, "queues": 4, "management": False,
}  # fmt: skip

BACKEND = "/machine/peripheral/net0/virtio-backend"
DRIVER = "/sys/bus/virtio/drivers/virtio_net"


async def state_of(machine: Machine) -> dict[str, bytes]:
    return decode_state(await machine.qmp.command("x-query-virtio-state", path=BACKEND))


async def migrate_held(pair: Any, change: Callable[[], Any], capabilities: tuple[str, ...]) -> tuple[Machine, Machine]:
    """Migrate while the guest runs on between setup and stop until `change` is done; the destination is left stopped."""
    lab, deadline = pair.lab, Deadline(60)
    source = lab.mobile
    side = await lab.add_destination(deadline=deadline)
    wanted = [{"capability": name, "state": True} for name in ("return-path", "switchover-ack", *capabilities)]
    for machine in (source, side.machine):
        await machine.qmp.command("migrate-set-capabilities", capabilities=wanted)
    uri = f"unix:{side.machine.scratch(f'{side.machine.spec.name}.migrate')}"
    await side.machine.qmp.command("migrate-incoming", uri=uri)
    await source.qmp.command("migrate", uri=uri)

    async def prepared() -> bool:
        return any(event.name == "trace:slow_migration_prepare" for event in trace_events(side.machine))

    await deadline.poll(prepared, awaited="the destination to load what is sent at the setup")
    await change()
    assert (await source.qmp.command("query-migrate"))["status"] == "active"  # it was held up to here
    await side.machine.qmp.command("qom-set", path=f"/machine/peripheral/{SLOW}", property="ready", value=True)
    for machine in (source, side.machine):

        async def completed(machine: Machine = machine) -> bool:
            return (await machine.qmp.command("query-migrate")).get("status") == "completed"

        await deadline.poll(completed, awaited=f"the migration to complete at {machine.spec.name}")
    pair.destination = side
    return source, side.machine


async def let_it_run(pair: Any) -> None:
    """The guest goes on at the destination; the source ends."""
    lab = pair.lab
    lab.network.set_port(lab.mobile_side.port, PortFlags.closed())
    lab.network.set_port(pair.destination.port, PortFlags.opened())
    await pair.destination.machine.qmp.command("cont")
    source = lab.mobile
    await lab.moved_to(pair.destination, deadline=Deadline(20))
    await source.close()


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


def carry_out(pair: Any, changes: tuple[Change, ...], capabilities: tuple[str, ...]) -> dict[str, str]:
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

            source, destination = await migrate_held(pair, make, capabilities)
            theirs, ours = await state_of(source), await state_of(destination)
            if differing := state_differences(theirs, ours):
                wrong[change.name] = differing
            changed = state_differences(before, theirs)
            if change.field is not None and not any(name.startswith(change.field) for name in changed):
                wrong[f"{change.name}: had no effect"] = sorted(changed)
            for event in trace_events(destination):
                words = event.data["text"].split()
                if event.name == "trace:virtio_net_iterative_load" and words[:2] == ["net0", "stop"]:
                    sent[change.name] = words[2]
            await let_it_run(pair)

    pair.do(all_of_them())
    assert wrong == {}
    return sent


@pytest.mark.switchover(**MACHINE)
def test_what_changed_since_the_setup_arrives(guest_pair):
    sent = carry_out(guest_pair, (*CHANGES, REBOOT), ("virtio-iterative",))
    assert sent == dict.fromkeys((change.name for change in (*CHANGES, REBOOT)), "full")


@pytest.mark.switchover(**MACHINE, iterative_delta=True)
def test_what_changed_since_the_setup_arrives_as_a_difference(guest_pair):
    sent = carry_out(guest_pair, (*CHANGES, REBOOT), ("virtio-iterative",))
    assert sent["nothing"] == "delta"
    assert sent["driver loaded again"] == "full"
