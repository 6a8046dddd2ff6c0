"""Real fetches and builds: minutes, the network and the compiler. `SWITCHOVER_TEST_CACHE` keeps the cache for a repeat.

    pytest tests/build -m nightly
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.builds import FETCHABLE, QemuInstall, _source, build, fetch, list_qemus, resolve_qemu
from harness.builds._apt import PrivateApt, Suite
from harness.builds._install import load
from harness.builds._layout import Layout, exclusive
from harness.builds._process import silent
from harness.errors import EnvironmentLackError, UsageError

pytestmark = pytest.mark.timeout(3600)

PATCH = """\
From: Some Body <some@example.org>
Subject: [PATCH] net: {words}

---
--- a/net/announce.c
+++ b/net/announce.c
@@ -1,3 +1,4 @@
+/* {words} */
 /*
  *  Self-announce
  *  (c) 2017-2019 Red Hat, Inc.
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    if kept := os.environ.get("SWITCHOVER_TEST_CACHE"):
        return Path(kept)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def kernel(cache, tmp_path_factory):
    """Any Debian kernel: what a machine needs to show that its firmware is whole."""
    with exclusive(Layout(cache), progress=silent):
        apt = PrivateApt(Layout(cache).apt, Suite("bookworm"), progress=silent)
        apt.update()
        packages = apt.download(["linux-image-cloud-amd64"])
    image = next(package for package in packages if package.name.startswith("linux-image-6"))
    folder = tmp_path_factory.mktemp("kernel")
    subprocess.run(["dpkg-deb", "--extract", image, folder], check=True)
    return next((folder / "boot").glob("vmlinuz-*"))


def output(install: QemuInstall, *arguments: str) -> str:
    answer = subprocess.run([*install.start, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return answer.stdout


def boots(install: QemuInstall, kernel: Path) -> str:
    """What the kernel says on the serial line until it finds no root file system and the machine ends."""
    machine = ["-machine", "q35", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none"]
    guest = ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1", "-serial", "stdio", "-no-reboot"]
    network = ["-netdev", "hubport,id=n,hubid=0", "-device", "virtio-net-pci,netdev=n,romfile="]
    answer = subprocess.run([*install.start, *machine, *guest, *network], stdin=subprocess.DEVNULL, capture_output=True,
                            text=True, errors="replace", timeout=300, check=True)
    return answer.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("version", FETCHABLE)
def test_a_fetched_qemu_boots_a_kernel_and_touches_nothing_of_the_host(cache, kernel, version):
    before = host_state()
    install = fetch(version, cache=cache)
    assert host_state() == before
    assert install.version.startswith(f"{version}.")
    assert install == resolve_qemu(version, cache)
    assert install in list_qemus(cache)
    assert "Linux version" in boots(install, kernel)
    libraries = loaded(install)
    assert len(libraries) > 10
    assert [path for path in libraries if not path.startswith(str(cache))] == []


def loaded(install: QemuInstall) -> list[str]:
    """The shared libraries that its loader maps, by the loader's own account."""
    answer = subprocess.run([*install.argv_prefix[:-1], "--list", install.argv_prefix[-1]], capture_output=True,
                            text=True, check=True)
    return re.findall(r"=> (/\S+)", answer.stdout)


def host_state() -> list[tuple[str, int]]:
    """Names and times of what apt and dpkg keep on the host."""
    places = [Path("/var/lib/dpkg/status"), Path("/var/lib/apt/lists"), Path("/var/cache/apt"), Path("/etc/apt")]
    return [(str(path), path.stat().st_mtime_ns) for path in places if path.exists()]


def timed(name: str, cache: Path, **arguments: object) -> tuple[QemuInstall, float, float]:
    """A build, its wall-clock seconds, and the processor seconds that it and its children took."""
    wall, cpu = time.monotonic(), os.times()
    install = build(name, cache=cache, **arguments)  # type: ignore[arg-type]
    spent = os.times()
    return install, time.monotonic() - wall, spent.children_user + spent.children_system - cpu.children_user \
        - cpu.children_system


@pytest.mark.nightly
def test_the_reference_builds_without_warnings_and_boots(cache, kernel, capsys):
    install, wall_s, cpu_s = timed("reference", cache)
    with capsys.disabled():
        print(f"\nreference: {wall_s:.0f} s, {cpu_s:.0f} s of processor time on {os.cpu_count()} processors")
    entry = Path(install.path).parent
    assert [line for line in (entry / "build.log").read_text().splitlines() if "warning:" in line] == []
    record = load(entry)
    assert record.details["series"]
    assert "--enable-kvm" in record.details["options"]
    assert "Linux version" in boots(install, kernel)
    assert {"tcg", "kvm"} <= set(output(install, "-accel", "help").split())
    devices = output(install, "-device", "help")
    for device in ("virtio-net-pci", "virtio-serial-pci", "virtio-blk-pci", "virtio-rng-pci", "isa-debug-exit"):
        assert f'"{device}"' in devices
    objects = output(install, "-object", "help").split()
    assert {"filter-buffer", "filter-redirector", "filter-mirror"} <= set(objects)


@pytest.mark.nightly
def test_one_changed_file_is_compiled_alone(cache, tmp_path, capsys):
    patch = tmp_path / "a.patch"
    patch.write_text(PATCH.format(words="one"))
    first, *_ = timed("incremental", cache, series=[patch])
    patch.write_text(PATCH.format(words="two"))
    second, wall_s, cpu_s = timed("incremental", cache, series=[patch])
    with capsys.disabled():
        print(f"\nincremental: {wall_s:.1f} s, {cpu_s:.1f} s of processor time")
    assert second.build_id != first.build_id
    log = (Path(second.path).parent / "build.log").read_text()
    assert log.count("Compiling C object") == 1
    assert cpu_s < 30


@pytest.mark.nightly
def test_a_rebuild_needs_no_network(cache, tmp_path, monkeypatch):
    build("first", cache=cache)

    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(_source, "PrivateApt", unreachable)
    shutil.rmtree(cache / "qemu/slots/debian")
    shutil.rmtree(cache / "qemu/store" / load(cache / "qemu/names/first").build_id)
    with monkeypatch.context() as patched:
        for variable in ("http_proxy", "https_proxy"):
            patched.setenv(variable, "http://127.0.0.1:1")
        assert build("first", cache=cache).version.startswith("10.0.")


@pytest.mark.nightly
def test_a_missing_library_is_named_with_its_package(cache):
    if subprocess.run(["pkg-config", "--exists", "libnfs"], check=False).returncode == 0:
        pytest.skip("this host has libnfs: nothing is missing")
    with pytest.raises(EnvironmentLackError, match="libnfs") as caught:
        build("with-nfs", options=["--enable-libnfs"], cache=cache)
    assert "libnfs-dev" in str(caught.value)
    with pytest.raises(UsageError, match="unknown option --enable-nonsense"):
        build("nonsense", options=["--enable-nonsense"], cache=cache)
    assert not {"with-nfs", "nonsense"} & {each.name for each in list_qemus(cache)}


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from fake_qemu import write_tree
from harness.builds import _build, _toolchain, list_qemus
from harness.errors import EnvironmentLackError
_toolchain.require = lambda **_: None
_toolchain.prepare = lambda *_, **__: _toolchain.Toolchain(sys.executable, "0", {ninja!r}, "gcc")
_build._NEED_BYTES = 0
cache, tree = Path({disk!r}), Path({tree!r})
write_tree(tree)
(tree / "main.c").write_text((tree / "main.c").read_text() + "char ballast[64 << 20] = {{1}};\\n")
try:
    _build.build("a", source=str(tree), cache=cache)
except EnvironmentLackError as error:
    print(error)
    print([each.name for each in list_qemus(cache) if each.name != "system"], list((cache / "qemu/slots").iterdir()),
          list((cache / "qemu").glob(".scratch-*")))
"""


def test_a_disk_that_fills_up_in_mid_build_keeps_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    here = Path(__file__).resolve().parents[1] / "unit"
    ninja = Path(sys.executable).with_name("ninja")
    program = FULL_DISK.format(here=str(here), disk=str(disk), tree=str(tmp_path / "tree"),
                               ninja=str(ninja if ninja.exists() else shutil.which("ninja")))
    script = f'mount -t tmpfs -o size=16m none "{disk}" && exec "$0" -c "$1"'
    answer = in_mount_namespace(["sh", "-c", script, sys.executable, program])
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip(f"no mount namespace here: {answer.stderr.strip()}")
    assert "is full" in answer.stdout, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[] [] []"


def in_mount_namespace(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    mine = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(["unshare", "--mount", *mine, *argv], capture_output=True, text=True, check=False,
                          timeout=120)
