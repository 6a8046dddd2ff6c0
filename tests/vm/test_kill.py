"""After SIGKILL of the runner, at any moment, nothing is left: no process, namespace, mount or device."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# How long a busy host may take over it; a quiet one takes a fraction of a second, and the last line says how long it was.
LIMIT_S = 30.0
LAB_LIMIT_S = 120.0
RUN_S = 5.0


def namespaces_of(pids: set[int]) -> set[str]:
    """The namespaces of some processes that are not ours."""
    found = set()
    for pid in pids:
        for kind in ("net", "mnt", "pid", "user"):
            try:
                found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
            except OSError:
                continue
    return found - {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "mnt", "pid", "user")}


def everybody() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*")}


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie only waits to be reaped."""
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.add(pid)
        except OSError:
            continue
    return found


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    except OSError:
        pass
    return found


def wait_for_a_lab(runner: subprocess.Popen[bytes]) -> None:
    """Until it has processes of its own, however slow the host is; or has ended."""
    began = time.monotonic()
    while len(descendants(runner.pid)) < 3 and runner.poll() is None:
        assert time.monotonic() - began < LAB_LIMIT_S, "no lab yet"
        time.sleep(0.02)


def devices() -> set[str]:
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


@pytest.mark.parametrize(
    "count", [pytest.param(4, id="4"), pytest.param(20, id="20", marks=[pytest.mark.nightly, pytest.mark.timeout(900)])]
)
def test_nothing_is_left_after_kill_9(tmp_path, count):
    command = [
        sys.executable, "-c", "from harness.cli import main; main()", "run", "udp-tap-handover",
        "--set", "network.peer=namespace", "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    before = (devices(), Path("/proc/mounts").read_text())
    scratch = set(Path("/tmp").iterdir()) | set(Path("/dev/shm").iterdir())
    moments = random.Random(77)
    slowest, most = 0.0, 0
    for number in range(count):
        runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number % 4:
            wait_for_a_lab(runner)
        time.sleep(moments.uniform(0.0, RUN_S))
        family = descendants(runner.pid)
        theirs = namespaces_of(family)
        most = max(most, len(family))
        os.kill(runner.pid, signal.SIGKILL)
        began = time.monotonic()
        runner.wait()
        while time.monotonic() - began < LIMIT_S and (alive(family) or namespaces_of(everybody()) & theirs):
            time.sleep(0.02)
        slowest = max(slowest, time.monotonic() - began)
        assert alive(family) == set()
        assert namespaces_of(everybody()) & theirs == set()
        assert devices() == before[0]
        assert Path("/proc/mounts").read_text() == before[1]
    assert most >= 3, "no run came so far as to have a lab"
    left = (set(Path("/tmp").iterdir()) | set(Path("/dev/shm").iterdir())) - scratch
    assert {path for path in left if path.name.startswith(("switchover", "sw-"))} == set()
    print(f"slowest to vanish: {slowest:.2f} s of {count}")
