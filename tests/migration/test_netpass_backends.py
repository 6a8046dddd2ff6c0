"""netpass and the backends that it can't serve: each is left out with a warning that names it, and the migration goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess

import pytest

from harness.builds import resolve_qemu
from harness.cache import cache_dir
from harness.errors import SwitchoverError
from harness.host.deadline import Deadline
from harness.vm.qmp import Qmp

BACKENDS = {
    "stream": "stream,id=n0,server=on,addr.type=unix,addr.path={folder}/net",
    "dgram": "dgram,id=n0,local.type=unix,local.path={folder}/net,remote.type=unix,remote.path={folder}/other",
    "hubport": "hubport,id=n0,hubid=0",
}


@contextlib.contextmanager
def machine(qemu, folder, netdev: str, *words: str):
    """A machine without a guest, with its monitor's socket and its messages."""
    folder.mkdir()
    ours, theirs = socket.socketpair()
    argv = [
        *qemu.start, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64",
        "-netdev", netdev.format(folder=folder), "-device", "virtio-net-pci,netdev=n0,romfile=",
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control", *words,
    ]  # fmt: skip
    with (folder / "messages").open("w") as messages, theirs:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages, pass_fds=[theirs.fileno()])
    try:
        yield ours, folder / "messages"
    finally:
        process.kill()
        process.wait()
        ours.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_cannot_be_read_while_stopped_is_declined_with_a_warning(tmp_path, backend):
    try:
        qemu = resolve_qemu("reference", cache=cache_dir())
    except SwitchoverError as error:
        pytest.skip(error.message)
    uri = f"unix:{tmp_path}/migrate"

    async def migrate(source: socket.socket, destination: socket.socket) -> None:
        sides = [Qmp("source"), Qmp("destination")]
        for qmp, sock in zip(sides, (source, destination), strict=True):
            await qmp.attach(sock, deadline=Deadline(30.0))
            wanted = [{"capability": name, "state": True} for name in ("return-path", "netpass")]
            await qmp.command("migrate-set-capabilities", capabilities=wanted)
        await sides[1].command("migrate-incoming", uri=uri)
        await sides[0].command("migrate", uri=uri)

        async def completed() -> bool:
            info = await sides[0].command("query-migrate")
            assert info.get("status") not in ("failed", "cancelled"), info
            return bool(info.get("status") == "completed")

        await Deadline(60.0).poll(completed, awaited="the migration to complete")
        for qmp in sides:
            await qmp.detach()

    with (
        machine(qemu, tmp_path / "source", BACKENDS[backend]) as (source, messages),
        machine(qemu, tmp_path / "destination", BACKENDS[backend], "-incoming", "defer") as (destination, _),
    ):
        asyncio.run(migrate(source, destination))
    said = messages.read_text()
    assert "netpass: frames of netdev 'n0' are not passed" in said, said
