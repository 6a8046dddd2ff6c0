"""The reference build with nothing switched on: what its series add is off."""

from __future__ import annotations

import asyncio
import socket
import subprocess

import pytest

from harness.builds import resolve_qemu
from harness.cache import cache_dir
from harness.errors import SwitchoverError
from harness.host.deadline import Deadline
from harness.vm.qmp import Qmp

CAPABILITIES = {"netpass": False, "virtio-iterative": False}
PARAMETERS = {"backend-transfer": False, "netpass-hold-back": 0}
PROPERTIES = {"x-iterative-delta": False, "x-iterative-control-reset": False, "x-iterative-control-twice": False}


def test_what_the_series_add_is_off():
    try:
        qemu = resolve_qemu("reference", cache=cache_dir())
    except SwitchoverError as error:
        pytest.skip(error.message)
    ours, theirs = socket.socketpair()
    argv = [
        "setpriv", "--pdeathsig", "KILL", "--", *qemu.start, "-machine", "pc-q35-10.0", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S",
        "-netdev", "socket,id=n0,udp=127.0.0.1:9,localaddr=127.0.0.1:0", "-device", "virtio-net-pci,netdev=n0,romfile=,id=nic",
        "-object", "filter-mirror,id=mirror,netdev=n0,queue=tx,outdev=out", "-chardev", "null,id=out",
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    with theirs:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    async def ask() -> None:
        qmp = Qmp("reference")
        await qmp.attach(ours, deadline=Deadline(60.0))
        try:
            capabilities = {each["capability"]: each["state"] for each in await qmp.command("query-migrate-capabilities")}
            parameters = await qmp.command("query-migrate-parameters")
            properties = {name: await qmp.command("qom-get", path="/machine/peripheral/nic", property=name) for name in PROPERTIES}
            when_stopped = await qmp.call("qom-get", {"path": "/objects/mirror", "property": "enable_when_stopped"})
        finally:
            await qmp.detach()
        assert capabilities.items() >= CAPABILITIES.items()
        assert parameters.items() >= PARAMETERS.items()
        assert properties == PROPERTIES
        assert when_stopped is False

    try:
        asyncio.run(ask())
    finally:
        process.kill()
        process.wait()
        ours.close()
