"""The host's facts, and what doctor makes of what it tried. Runs with any privileges."""

from __future__ import annotations

import asyncio
import errno
import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import harness
from harness.errors import EnvironmentLackError
from harness.host import facts
from harness.host.facts import Check, Status, doctor_checks, host_facts
from harness.migrate.checks import check_host
from harness.model.plan import MigrationPlan
from harness.model.scenario import MigrationSection


def test_facts_are_json_and_name_nobody() -> None:
    found = host_facts()
    text = json.dumps(found)
    assert json.loads(text) == found
    values = {str(value) for value in found.values()}
    assert not values & {socket.gethostname(), getpass.getuser(), str(Path.home())}
    assert os.uname().version not in text  # may say who built the kernel, and where


def test_facts_are_this_hosts() -> None:
    found = host_facts()
    assert found["kernel"] == os.uname().release
    (total_kib,) = (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert found["memory_bytes"] == int(total_kib) * 1024
    assert 1 <= found["cores_usable"] <= found["cores"]
    assert f"model name\t: {found['cpu_model']}" in Path("/proc/cpuinfo").read_text()
    assert len(found["load"]) == 3


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    return asyncio.run(doctor_checks(cache=tmp_path_factory.mktemp("cache")))


def test_all_is_tried_and_nothing_raises(checks: list[Check]) -> None:
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"python", "tun", "namespaces", "kvm", "vhost-net", "userfaultfd", "memory", "cores", "cache", "receive-buffer",
            "locked-memory", "ccache", "iperf3", "tshark"} <= set(names)  # fmt: skip
    assert all(check.why for check in checks)
    assert all(check.mend for check in checks if check.status is Status.LACK)
    assert msgspec.json.decode(msgspec.json.encode(checks), type=list[Check]) == checks


def test_a_lab_is_tried_as_far_as_it_goes(checks: list[Check]) -> None:
    stages = [check for check in checks if check.name in ("namespaces", "tap", "bridge", "packet-socket", "qdiscs")]
    lacks = [check for check in stages if check.status is Status.LACK]
    if lacks:
        assert stages[-1] is lacks[0]  # nothing is built on what failed
    else:
        assert [check.name for check in stages] == ["namespaces", "tap", "bridge", "packet-socket", "qdiscs"]


def test_without_a_qemu_kvm_is_not_tried(checks: list[Check]) -> None:
    (kvm,) = (check for check in checks if check.name == "kvm")
    assert (kvm.status, kvm.why) == (Status.WARN, "not tried, for want of a QEMU")


def test_kvm_with_a_program_that_is_no_qemu_is_a_warning() -> None:
    check = asyncio.run(facts._kvm(["/nonexistent/qemu"]))
    assert check.status is Status.WARN
    assert "guests run under TCG" in check.why


@pytest.mark.parametrize(
    ("check", "status", "words"),
    [
        (facts._tun(""), Status.OK, "opens"),
        (facts._tun("/dev/net/tun: Permission denied"), Status.LACK, "every guest's NIC is a TAP"),
        (facts._vhost("/dev/vhost-net: No such file or directory"), Status.WARN, "vhost = true"),
        (facts._userfaultfd("userfaultfd: Operation not permitted"), Status.WARN, "postcopy"),
        (facts._receive_buffer("0.2 MiB instead of 64 MiB"), Status.WARN, "captures and tap-handover may drop"),
    ],
)
def test_what_fails_says_what_needs_it_and_how_to_mend_it(check: Check, status: Status, words: str) -> None:
    assert check.status is status
    assert words in check.why
    assert bool(check.mend) is (status is not Status.OK)


def test_a_small_host_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "PAIR_BYTES", 1 << 60)
    monkeypatch.setattr(facts, "CACHE_BYTES", 1 << 60)
    for check in (facts._memory(), facts._disk(tmp_path)):
        assert check.status is Status.WARN
        assert "GiB" in check.why
        assert check.mend


def test_a_cache_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    check = facts._disk(tmp_path / "not" / "yet")
    assert str(tmp_path / "not" / "yet") in check.why
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_can_not_be_written_is_a_lack() -> None:
    check = facts._disk(Path("/proc/self/cache"))
    assert check.status is Status.LACK
    assert "SWITCHOVER_CACHE" in check.mend


def test_old_python_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts._python().status is Status.OK
    monkeypatch.setattr(facts, "PYTHON_NEEDED", (4, 0))
    assert facts._python().status is Status.LACK


def test_programs_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tshark").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {check.name: check.status for check in facts._programs()} == {
        "ccache": Status.WARN, "iperf3": Status.WARN, "tshark": Status.OK,
    }  # fmt: skip


def test_the_trials_run_as_a_program() -> None:
    root = Path(harness.__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, "-m", "harness.host.facts"], cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(answer.stdout) == {name: facts._failure(trial) for name, trial in facts._TRIALS.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user could do")
def test_root_learns_what_an_ordinary_user_could_do() -> None:
    failures = facts._as_user(65534)
    assert set(failures) == {*facts._TRIALS, "namespaces"}
    may_open = Path("/dev/net/tun").exists() and Path("/dev/net/tun").stat().st_mode & 0o006 == 0o006
    assert (failures["tun"] == "") is may_open
    (check,) = facts._rootless()
    assert (check.status is Status.OK) is not any(failures[name] for name in facts._ROOTLESS)


def test_a_failure_names_the_file() -> None:
    assert facts._failure(lambda: facts._open("/nonexistent")) == "/nonexistent: No such file or directory"
    assert facts._failure(lambda: None) == ""


def test_a_host_without_vhost_says_so_before_anything_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/dev/vhost-net")

    monkeypatch.setitem(facts._TRIALS, "vhost-net", absent)
    with pytest.raises(EnvironmentLackError) as lack:
        facts.require_vhost()
    assert lack.value.message == "network.vhost is true, and this host has no vhost: /dev/vhost-net: No such file or directory"
    assert "as root" in (lack.value.hint or "")
    monkeypatch.setitem(facts._TRIALS, "vhost-net", lambda: None)
    facts.require_vhost()


@pytest.mark.parametrize("section", [{"mode": "postcopy"}, {"capabilities": ("postcopy-ram",)}])
def test_postcopy_without_a_userfaultfd_is_a_lack_of_the_host(monkeypatch: pytest.MonkeyPatch, section: dict[str, object]) -> None:
    plan = MigrationPlan.from_section(msgspec.convert(section, MigrationSection), mechanism="none")

    def refused() -> None:
        raise PermissionError(errno.EPERM, "userfaultfd: Operation not permitted")

    monkeypatch.setitem(facts._TRIALS, "userfaultfd", refused)
    with pytest.raises(EnvironmentLackError) as lack:
        check_host(plan)
    assert "this host gives none: userfaultfd: Operation not permitted" in lack.value.message
    assert lack.value.hint
    check_host(MigrationPlan.from_section(MigrationSection(), mechanism="none"))
    monkeypatch.setitem(facts._TRIALS, "userfaultfd", lambda: None)
    check_host(plan)
