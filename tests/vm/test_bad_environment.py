"""Environments that lack something, and guests that never get ready: the cause is said, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness import lab
from harness.cache import cache_dir
from harness.errors import DeadlineError, TestbedError
from harness.model.load import load_scenario
from harness.run import RunOptions, prepare

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, for which it must be root")


def in_mount_namespace(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `script`, then the command with `words`, where mounts are seen by nobody else."""
    command = f'{script}; exec "$0" -c "from harness.cli import main; main()" "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", command, sys.executable, *words],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def leftovers(marker: Path) -> list[str]:
    """Processes whose command line names `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(marker).encode() in line:
                found.append(line.decode(errors="replace"))
    return found


@needs_root
@pytest.mark.parametrize("size_kib", [300, 700, 2500])
def test_a_full_disk_is_said_whenever_it_fills(tmp_path, size_kib):
    results = tmp_path / "results"
    results.mkdir()
    run = in_mount_namespace(
        f"mount -t tmpfs -o size={size_kib}k none '{results}'",
        "run", "udp-none", "--set", "network.peer=namespace", "--results", str(results),
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert str(results) in run.stderr
    assert "No space left on device" in run.stderr
    assert "Traceback" not in run.stderr
    assert leftovers(results) == []


@needs_root
@pytest.mark.parametrize(
    "device", ["true", "mknod /dev/net/tun c 10 200; mount -o remount,nodev /dev/net"], ids=["no-device", "no-permission"]
)
def test_a_host_without_usable_taps_is_told_what_to_mend(tmp_path, device):
    run = in_mount_namespace(
        f"mount -t tmpfs none /dev/net; {device}",
        "run", "udp-none", "--set", "network.peer=namespace", "--results", str(tmp_path),
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert "/dev/net/tun" in run.stderr
    assert "mend:" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("below", ["file/results", "results"])
def test_results_that_cannot_be_written_are_refused_before_anything_boots(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = Path("/proc/results") if below == "results" else tmp_path / below
    run = subprocess.run(
        [sys.executable, "-c", "from harness.cli import main; main()", "run", "udp-none", "--results", str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert str(folder) in run.stderr
    assert "--results" in run.stderr


def start_cold(tmp_path: Path, *, boot_s: float, initrd: Path | None = None) -> None:
    async def start() -> None:
        scenario = load_scenario("udp-none", settings=["network.peer=namespace"])
        options = RunOptions(results=tmp_path, cache=cache_dir(), cold=True)
        settings = await prepare(scenario, options=options, progress=lambda _: None)
        image = msgspec.structs.replace(settings.image, initrd=initrd or settings.image.initrd)
        async with lab.Lab(msgspec.structs.replace(settings, image=image, boot_s=boot_s)) as pair:
            await pair.start()

    asyncio.run(start())


def test_a_kernel_that_panics_is_shown_with_its_last_words(tmp_path):
    """The initramfs is empty: the kernel panics for want of an init."""
    empty = tmp_path / "initrd.cpio"
    empty.write_bytes(b"")
    with pytest.raises(TestbedError) as caught:
        start_cold(tmp_path, boot_s=60.0, initrd=empty)
    assert "the kernel of the guest in m0 panicked" in str(caught.value)
    assert "Unable to mount root fs" in str(caught.value)
    assert leftovers(empty) == []


def test_a_guest_that_is_not_ready_in_time_is_shown_with_its_console(tmp_path, monkeypatch):
    """Its init is a shell, which waits for ever."""
    monkeypatch.setattr(lab, "KERNEL_ARGUMENTS", (*lab.KERNEL_ARGUMENTS, "rdinit=/bin/sh"))
    with pytest.raises(DeadlineError, match=r"not ready within 8 s\n  its console ends with:\n    \S"):
        start_cold(tmp_path, boot_s=8.0)
