"""The nested lab's first process and the command that it runs; the guest itself is for the nightly run."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import nested
from harness.errors import EnvironmentLackError, UsageError
from harness.host.deadline import PATIENCE, Deadline

CACHE, RESULTS = Path("/root/a cache"), Path("/srv/results")


def test_the_command_is_this_program_with_the_same_arguments():
    text = nested._command(["run", "udp-none", "--set", "network.vhost=true"], results=RESULTS, cache=CACHE)
    words = shlex.split(text)
    assert words[:2] == ["cd", str(Path.cwd())]
    assert f"PYTHONPATH={Path(nested.__file__).parent.parent}" in words
    assert {"SWITCHOVER_CACHE=/root/a cache", "SWITCHOVER_RESULTS=/srv/results", "SWITCHOVER_PATIENCE=20"} <= set(words)
    at = words.index(sys.executable)
    assert words[at + 1 : -1] == ["-c", "from harness.cli.app import main; main()", "run", "udp-none", "--set", "network.vhost=true"]


@pytest.mark.parametrize("results", [RESULTS, Path("/tmp/results")])
def test_the_first_process_is_a_script_that_a_shell_reads(results):
    command = nested._command(["run", "it's"], results=results, cache=CACHE)
    script = nested._script(command, results=results, cache=CACHE)
    assert "@" not in script.replace('"$@"', "")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    bound = [line for line in lines if "--bind \"/lower" in line]
    assert (str(results) in bound[0]) is (results == RESULTS)
    tmpfs = next(n for n, line in enumerate(lines) if "/new/tmp" in line)
    assert all(n > tmpfs for n, line in enumerate(lines) if line.startswith("for ") and "/tmp/results" in line)
    assert f"echo $? >/new{results}/{nested._DONE}" in script


def test_what_an_argument_names_below_tmp_is_there_inside_too(tmp_path, monkeypatch):
    scenario, qemu = tmp_path / "mine.toml", tmp_path / "qemu-system-x86_64"
    for path in (scenario, qemu):
        path.touch()
    named = nested._paths_in(["run", f"{scenario}:mechanism=none,qemu.source={qemu}", "--set", "migration.hold_ms=500", "udp-none", "/nowhere"])
    assert named == [str(scenario), str(qemu)]
    monkeypatch.setattr(Path, "cwd", lambda: Path("/srv"))
    script = nested._script("x", results=RESULTS, cache=CACHE, named=["/tmp/a/mine.toml", "/opt/qemu"])
    (loop,) = [line for line in script.splitlines() if line.startswith("for path in")]
    assert "/tmp/a/mine.toml" in loop
    assert "/opt/qemu" not in script, "the root is there as it is"


def test_a_missing_program_is_a_lack_with_its_mend(monkeypatch):
    monkeypatch.setattr(nested.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentLackError, match="the nested lab needs virtiofsd") as lack:
        nested._program("virtiofsd", "/nowhere/virtiofsd")
    assert "apt-get install" in str(lack.value.hint)


def test_a_host_kernel_that_is_none_is_refused_before_anything_boots(tmp_path, monkeypatch):
    async def boots(*args, **kwargs):
        raise AssertionError("nothing is to be booted")

    monkeypatch.setattr(nested, "_save_states", boots)
    monkeypatch.setattr(nested, "_program", lambda *names: names[0])
    monkeypatch.setattr(nested.os, "geteuid", lambda: 0)
    other = tmp_path / "kernel"
    other.write_text("no kernel")
    for path, said in ((tmp_path / "nowhere", "there is no kernel"), (other, "is not an x86 Linux kernel")):
        with pytest.raises(UsageError, match=said):
            asyncio.run(nested.run_nested(["run"], scenarios=(), host_kernel=str(path), results=tmp_path, cache=tmp_path, progress=lambda _: None))


def test_patience_makes_every_deadline_longer(monkeypatch):
    assert PATIENCE == 1
    monkeypatch.setattr("harness.host.deadline.PATIENCE", 10.0)
    assert Deadline(2.0).seconds == 20.0
    assert 19.0 < Deadline(100.0).within(2.0).remaining_s <= 20.0
    assert Deadline(2.0).within(100.0).remaining_s <= 20.0


@pytest.mark.parametrize(("accelerator", "words"), [("tcg", ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]), ("kvm", ["-accel", "kvm", "-cpu", "host"])])
def test_the_first_level_guest_runs_under_kvm_where_that_works(accelerator, words):
    argv = nested._argv("qemu", accelerator=accelerator, work=Path("/w"))
    at = argv.index("-accel")
    assert argv[at : at + 4] == words
    assert argv[argv.index("-smp") + 1] == "1"
    assert "file:/w/console.log" in argv


@pytest.mark.parametrize("ends", ["pass", "os.kill(os.getpid(), 9)"], ids=["in order", "killed"])
def test_the_work_folder_goes_with_its_process_however_that_ends(ends):
    program = f"""
import asyncio, os
from contextlib import AsyncExitStack
from harness.nested import _work_folder

async def body():
    async with AsyncExitStack() as stack:
        folder = _work_folder(stack)
        (folder / "file").write_text("x")
        print(folder, flush=True)
        {ends}

asyncio.run(body())
"""
    folder = Path(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout.strip())
    assert folder.name.startswith("switchover-nested-")
    deadline = Deadline(30.0)
    while folder.exists():
        assert not deadline.expired, f"{folder} is still there"
        time.sleep(0.01)
