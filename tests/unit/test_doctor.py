"""What `switchover doctor` and `switchover features` print, and their exit codes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from harness.cli import doctor as doctor_module
from harness.cli import features as features_module
from harness.cli.doctor import doctor, exit_code, print_checks
from harness.cli.features import features, print_features
from harness.errors import EnvironmentLackError
from harness.host.facts import Check, Status
from harness.vm.discovery import FEATURES, Features, MachineType

OK = Check("tun", Status.OK, "/dev/net/tun opens")
WARN = Check("vhost-net", Status.WARN, "[no] such device", "modprobe vhost_net")
LACK = Check("qemu", Status.LACK, "there is none", "apt-get install qemu-system-x86")

FEATURES_SEEN = Features(
    name="mine", version="10.0.13", package="", build_id="abc", kvm=False, capabilities=("netpass", "return-path"),
    parameters=("downtime-limit",), parameter_values={"mode": ("normal",)}, migration_properties=(), commands=("stop",),
    events=("STOP",), netdev_options={"tap": ("fd", "fds")}, device_properties={"virtio-net-pci": ("mq",)},
    filter_properties={"filter-buffer": ("interval",)}, trace_events=("vm_stop",),
    machines=(MachineType(name="pc-q35-10.0", alias="q35", default=True),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("checks", "code"), [([], 0), ([OK], 0), ([OK, WARN], 0), ([OK, LACK], 3), ([LACK, WARN, OK], 3)]
)
def test_only_a_lack_makes_it_fail(checks: list[Check], code: int) -> None:
    assert exit_code(checks) == code


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_checks([OK, WARN, LACK], console=Console(file=io.StringIO()))
    assert capsys.readouterr().out.splitlines() == [
        "ok    tun             /dev/net/tun opens",
        "warn  vhost-net       [no] such device",
        "                      mend: modprobe vhost_net",
        "lack  qemu            there is none",
        "                      mend: apt-get install qemu-system-x86",
        "This host lacks what every run needs: qemu; 1 limit as said above",
    ]


def test_a_table_on_a_terminal() -> None:
    screen = io.StringIO()
    print_checks([OK, WARN], console=Console(file=screen, force_terminal=True, width=80, color_system="standard"))
    shown = screen.getvalue()
    assert "\x1b[" in shown
    assert "[no] such device" in shown  # not taken for markup
    assert "mend: modprobe vhost_net" in shown
    assert "All that a run needs is here; 1 limit as said above" in shown


@pytest.mark.parametrize(("checks", "code"), [([OK, WARN], 0), ([OK, LACK], 3)])
def test_json_only(
    checks: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def all_checks(*, cache: Path) -> list[Check]:
        return checks

    monkeypatch.setattr(doctor_module, "all_checks", all_checks)
    assert doctor(json=True) == code
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["ok"] is (code == 0)
    assert [(check["name"], check["status"]) for check in answer["checks"]] == [(c.name, c.status.value) for c in checks]
    assert answer["host"]["memory_bytes"] > 0
    assert said.err == ""


def test_no_qemu_is_a_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(*_: object) -> None:
        raise EnvironmentLackError("this host has no QEMU", hint="install it")

    monkeypatch.setattr(doctor_module, "resolve_qemu", none)
    qemu, check = asyncio.run(doctor_module._qemu(tmp_path))
    assert qemu is None
    assert (check.status, check.mend) == (Status.LACK, "install it")
    assert asyncio.run(doctor_module._reference(tmp_path)).status is Status.WARN


def test_an_image_is_found_or_can_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor_module._image(tmp_path)
    assert (check.status, check.mend) == (Status.LACK, "apt-get install apt dpkg gcc make")
    for program in ("apt-get", "dpkg-deb", "gcc", "make"):
        (tmp_path / program).touch(mode=0o755)
    check = doctor_module._image(tmp_path)
    assert (check.status, check.mend) == (Status.WARN, "switchover image build")
    links = tmp_path / "images" / "by-input"
    links.mkdir(parents=True)
    (links / "dangling").symlink_to("../nowhere")
    assert doctor_module._image(tmp_path).status is Status.WARN


@pytest.fixture
def one_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    async def discover(*_: object, **__: object) -> Features:
        return FEATURES_SEEN

    monkeypatch.setattr(features_module, "resolve_qemu", lambda *_: None)
    monkeypatch.setattr(features_module, "discover", discover)


def test_features_as_json(one_qemu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert features(qemu="mine", json=True) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert said.err == ""
    assert set(answer["features"]) == set(FEATURES)
    assert answer["features"]["netpass"] is None
    assert answer["features"]["ring-status"] == (
        "QEMU 10.0.13 (mine) lacks ring-status: no QMP command 'x-query-virtio-queue-status'"
    )
    assert answer["capabilities"] == ["netpass", "return-path"]
    assert answer["netdev_options"] == {"tap": ["fd", "fds"]}


def test_features_as_plain_lines(one_qemu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert features(qemu="mine", json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "QEMU 10.0.13 (mine), build abc, KVM not compiled in"
    assert "yes netpass" in lines
    assert "no  vm-started               no property of the migration object 'send-vm-started'" in lines
    assert "capabilities: netpass return-path" in lines
    assert "machines: q35 = pc-q35-10.0 (default)" in lines


def test_features_on_a_terminal() -> None:
    screen = io.StringIO()
    print_features(FEATURES_SEEN, console=Console(file=screen, force_terminal=True, width=100, color_system="standard"))
    shown = screen.getvalue()
    assert all(name in shown for name in FEATURES)
    assert "netpass return-path" in shown
