"""The warden: namespaces and processes that end with the runner, whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import DeadlineError, ProcessError
from harness.host.deadline import Deadline
from harness.host.warden import SCRATCH, Warden


def test_a_program_runs_in_the_labs_own_namespaces(run):
    async def body():
        async with Warden() as warden:
            process = await warden.spawn("probe", ["sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net; exit 3"])
            status = await process.wait(Deadline(5))
            return status, process.read_output().decode().split()

    status, words = run(body())
    assert status == 3
    assert words[0] != str(Path("/proc/self/ns/net").readlink())


def test_a_failed_process_says_what_it_was_and_what_it_said(run):
    async def body():
        async with Warden() as warden:
            process = await warden.spawn("teller", ["sh", "-c", "echo last words >&2; exit 7"])
            await process.wait(Deadline(5))
            return process.error("failed")

    error = run(body())
    assert "exit status 7" in str(error)
    assert "last words" in str(error)
    assert "sh -c 'echo last words >&2; exit 7'" in str(error)


def test_a_folder_may_be_a_small_file_system_of_its_own(run):
    async def body():
        async with Warden() as warden:
            folder = SCRATCH / "small"
            await warden.request("mkdir", path=str(folder), disk_bytes=1 << 16)
            process = await warden.spawn("writer", ["dd", "if=/dev/zero", f"of={folder}/file", "bs=4096", "count=17"])
            return await process.wait(Deadline(5)), process.read_output().decode(), Path(folder).exists()

    status, said, outside = run(body())
    assert status == 1
    assert "No space left on device" in said
    assert not outside


def test_a_program_that_is_not_there_is_an_error_of_its_own(run):
    async def body():
        async with Warden() as warden:
            await warden.spawn("ghost", ["/nonexistent/program"])

    with pytest.raises(ProcessError, match="No such file"):
        run(body())


def test_stop_insists_when_asking_does_not_help(run):
    async def body():
        async with Warden() as warden:
            process = await warden.spawn("stubborn", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
            await asyncio.sleep(0.2)
            return await process.stop(grace_s=0.3)

    assert run(body()) == -signal.SIGKILL


def test_waiting_names_what_was_awaited(run):
    async def body():
        async with Warden() as warden:
            process = await warden.spawn("sleeper", ["sleep", "60"])
            await process.wait(Deadline(0.1))

    with pytest.raises(DeadlineError, match="sleeper to end"):
        run(body())


def test_descriptors_reach_the_program_under_the_numbers_asked_for(run):
    async def body():
        ours, theirs = socket.socketpair()
        async with Warden() as warden:
            with theirs:
                process = await warden.spawn("writer", ["sh", "-c", "echo through >&7"], fds={7: theirs.fileno()})
            await process.wait(Deadline(5))
            with ours:
                return ours.recv(100)

    assert run(body()) == b"through\n"


def test_sockets_of_two_namespaces_do_not_meet(run):
    async def body():
        async with Warden() as warden:
            await warden.netns("other")
            for name in ("lab", "other"):
                up = await warden.spawn("up", ["ip", "link", "set", "lo", "up"], netns=name)
                assert await up.wait(Deadline(5)) == 0
            listener = await warden.socket(family=socket.AF_INET, type=socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 5000))
            listener.listen()
            same = await warden.socket(family=socket.AF_INET, type=socket.SOCK_STREAM, connect=("127.0.0.1", 5000))
            with pytest.raises(OSError, match="refused"):
                await warden.socket(
                    netns="other", family=socket.AF_INET, type=socket.SOCK_STREAM, connect=("127.0.0.1", 5000)
                )
            same.close()
            listener.close()

    run(body())


def test_scratch_files_are_seen_by_the_lab_alone(run):
    async def body():
        async with Warden() as warden:
            process = await warden.spawn("maker", ["sh", "-c", f"echo secret > {SCRATCH}/note"])
            await process.wait(Deadline(5))
            with await warden.open(SCRATCH / "note") as file:
                inside = file.read()
            return inside, (SCRATCH / "note").exists()

    assert run(body()) == (b"secret\n", False)


RUNNER = """
import asyncio, sys
from harness.host.warden import Warden
from harness.host.network import Network
async def main():
    async with Warden() as warden, Network(warden) as network:
        await network.start()
        await network.add_tap("sw-left")
        await warden.netns("peer")
        await warden.spawn("leftover", ["sleep", sys.argv[1]])
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def _processes_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if word.encode() in words and state != "Z":
                found.append(entry.name)
    return found


@pytest.mark.parametrize("moment_s", [0.0, 0.05, 0.1, None])
def test_nothing_is_left_after_sigkill_of_the_runner(moment_s):
    """At several moments of the start, and (None) once everything is up."""
    mark = f"{600 + os.getpid()}.{time.monotonic_ns() % 10**9}"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, mark], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    if moment_s is None:
        assert runner.stdout.readline() == "up\n"
        assert _processes_with(mark), "the lab's process should run before the kill"
    else:
        time.sleep(moment_s)
    children = set(_children(runner.pid))
    runner.kill()
    runner.wait()
    runner.stdout.close()
    end = time.monotonic() + 2.0
    while time.monotonic() < end and (_processes_with(mark) or any(_alive(pid) for pid in children)):
        time.sleep(0.02)
    assert _processes_with(mark) == []
    assert [pid for pid in children if _alive(pid)] == []


def _children(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    try:
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    for child in map(int, direct):
        found += [child, *_children(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
