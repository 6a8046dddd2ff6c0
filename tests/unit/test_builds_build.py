"""The builder on a source tree in miniature: identity, reuse, locking, and what is left after each kind of failure."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_qemu import write_tree

from harness.builds import QemuInstall, _build, _layout, _toolchain, build, list_qemus, resolve_qemu
from harness.builds._install import load
from harness.builds._layout import Layout, exclusive
from harness.builds._process import CommandError, run, silent
from harness.errors import EnvironmentLackError, SwitchoverError, TestbedError, UsageError

EDIT = """\
From: Some Body <some@example.org>
Subject: [PATCH] net: say {new}

---
--- a/net/net.c
+++ b/net/net.c
@@ -1,6 +1,6 @@
 /* one */
 /* two */
 /* three */
-const char *net_words = "{old}";
+const char *net_words = "{new}";
 /* five */
 /* six */
"""


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """The host's compiler and ninja; QEMU's libraries and meson aren't needed in miniature."""
    beside = Path(sys.executable).with_name("ninja")
    ninja = str(beside) if beside.exists() else shutil.which("ninja")
    if not (ninja and shutil.which("gcc")):
        pytest.skip("needs gcc and ninja")
    monkeypatch.setattr(_toolchain, "require", lambda **_: None)
    monkeypatch.setattr(_toolchain, "prepare", lambda *_, **__: _toolchain.Toolchain(sys.executable, "0", ninja, "gcc"))
    monkeypatch.setattr(_build, "_NEED_BYTES", 0)


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "qemu")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def patch(folder: Path, new: str, *, old: str = "stock") -> Path:
    path = folder / f"{new}.patch"
    path.write_text(EDIT.format(old=old, new=new))
    return path


def words(install: QemuInstall) -> bool:
    return b"stock" in Path(install.path).read_bytes()


def compiled(cache: Path) -> Counter[str]:
    """How often the slot's build folder compiled each file so far."""
    (listing,) = (cache / "qemu/slots").glob("*/build-*/compiled")
    return Counter(Path(line).name for line in listing.read_text().split())


def assert_clean(cache: Path) -> None:
    """Nothing half done: no scratch, no name without a whole build, the lock free."""
    layout = Layout(cache)
    assert list(layout.root.glob(".scratch-*")) == []
    for entry in layout.store.glob("*"):
        assert (entry / "record.json").is_file()
    said: list[str] = []
    with exclusive(layout, progress=said.append):
        assert said == []


def test_a_build_can_be_used_by_its_name(tree, cache):
    install = build("mine", source=str(tree), cache=cache)
    assert install == resolve_qemu("mine", cache)
    assert install in list_qemus(cache)
    assert install.version == "10.0.99"
    assert install.data_dirs == (str(Path(install.path).parent / "firmware"),)
    record = load(Path(install.path).parent)
    assert "--enable-kvm" in record.details["options"]
    assert any(line == "CONFIG_VIRTIO_NET=y" for line in record.details["devices"])
    assert_clean(cache)


def test_the_same_inputs_are_built_once(tree, cache, tmp_path):
    first = build("one", source=str(tree), cache=cache)
    said: list[str] = []
    second = build("two", source=str(tree), cache=cache, progress=said.append)
    assert second.build_id == first.build_id
    assert any("built already" in line for line in said)
    assert compiled(cache) == {"main.c": 1, "net.c": 1}


def test_identity_depends_on_source_series_and_options(tree, cache, tmp_path):
    series = patch(tmp_path, "patched")
    ids = [
        build("a", source=str(tree), cache=cache).build_id,
        build("a", source=str(tree), series=[series], cache=cache).build_id,
        build("a", source=str(tree), options=["--enable-something"], cache=cache).build_id,
        build("a", source=str(tree), minimal=False, cache=cache).build_id,
    ]
    (tree / "main.c").write_text((tree / "main.c").read_text() + "/* edited */\n")
    ids.append(build("a", source=str(tree), cache=cache).build_id)
    assert len(set(ids)) == 5


def test_a_series_compiles_only_what_it_touches_there_and_back(tree, cache, tmp_path):
    assert words(build("stock", source=str(tree), cache=cache))
    patched = build("patched", source=str(tree), series=[patch(tmp_path, "other")], cache=cache)
    assert not words(patched)
    assert compiled(cache) == {"main.c": 1, "net.c": 2}
    longer = build("longer", source=str(tree), series=[patch(tmp_path, "other"), patch(tmp_path, "more", old="other")],
                   cache=cache)
    assert compiled(cache) == {"main.c": 1, "net.c": 3}
    assert words(resolve_qemu("stock", cache))
    assert len({patched.build_id, longer.build_id}) == 2


def test_old_builds_and_old_configurations_make_room(tree, cache, monkeypatch):
    monkeypatch.setattr(_layout, "KEPT_UNNAMED", 1)
    monkeypatch.setattr(_build, "_KEPT_FOLDERS", 2)
    kept = build("kept", source=str(tree), cache=cache)
    for number in range(4):
        build("moving", source=str(tree), options=[f"--enable-{number}"], cache=cache)
    assert len(list((cache / "qemu/store").iterdir())) == 3  # kept, moving, and one that lost its name
    assert len([path for path in (cache / "qemu/slots").glob("*/build-*") if path.is_dir()]) == 2
    assert resolve_qemu("kept", cache) == kept


def test_a_device_list_of_the_series_is_used(tree, cache, tmp_path):
    place = tmp_path / "with-device"
    place.mkdir()
    (place / "series.toml").write_text('title = "t"\ndevices = ["CONFIG_SLOW=y"]\n')
    patch(place, "other")
    build("dev", source=str(tree), series=[place], cache=cache)
    (listing,) = (cache / "qemu/slots").glob("*/source/configs/devices/x86_64-softmmu/switchover-*.mak")
    lines = [line for line in listing.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["CONFIG_Q35=y", "CONFIG_VIRTIO_NET=y", "CONFIG_SLOW=y"]  # those that this source knows


def test_a_configuration_of_the_users_own_is_theirs_alone(tree, cache):
    build("own", source=str(tree), options=["--enable-mine"], minimal=False, cache=cache)
    (listing,) = (cache / "qemu/slots").glob("*/build-*/arguments")
    given = listing.read_text().split()
    assert given[:2] == ["--target-list=x86_64-softmmu", "--enable-mine"]
    assert not any("devices" in option for option in given)


def test_a_tarball_and_a_git_branch_are_sources_too(tree, cache, tmp_path):
    archive = tmp_path / "qemu-10.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path, "qemu"], check=True)
    assert build("tar", source=str(archive), cache=cache).version == "10.0.99"
    shutil.rmtree(cache / "qemu/repo.git")  # the folders of the cache may be removed one by one
    assert build("tar", source=str(archive), options=["--enable-x"], cache=cache).version == "10.0.99"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tree)]
    for command in (["init", "-q", "-b", "topic"], ["add", "."], ["commit", "-q", "-m", "base"]):
        subprocess.run([*git, *command], check=True)
    install = build("git", source=f"{tree}#topic", cache=cache)
    assert install.build_id != ""
    assert "topic" in install.origin
    with pytest.raises(EnvironmentLackError, match="nobranch"):
        build("git", source=f"{tree}#nobranch", cache=cache)
    assert_clean(cache)


def test_a_tarball_at_an_address_is_downloaded_once(tree, cache, tmp_path):
    subprocess.run(["tar", "-czf", tmp_path / "qemu-10.tar.gz", "-C", tmp_path, "qemu"], check=True)
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            first = build("a", source=f"{address}/qemu-10.tar.gz", cache=cache)
            with pytest.raises(EnvironmentLackError, match=r"can't be downloaded: .*404"):
                build("b", source=f"{address}/absent.tar.gz", cache=cache)
        finally:
            server.shutdown()
            thread.join()
    assert build("again", source=f"{address}/qemu-10.tar.gz", cache=cache).build_id == first.build_id
    assert_clean(cache)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_git_checkout_is_taken_as_it_is_and_not_changed(tree, cache):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tree)]
    (tree / ".gitignore").write_text("/junk\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "base"]):
        subprocess.run([*git, *command], check=True)
    (tree / "junk").write_text("x" * 100)
    (tree / "net/net.c").write_text((tree / "net/net.c").read_text().replace("stock", "dirty"))
    before = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True).stdout
    index = (tree / ".git/index").read_bytes()
    assert not words(build("dirty", source=str(tree), cache=cache))
    assert (tree / ".git/index").read_bytes() == index
    assert subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True).stdout == before
    assert not list((cache / "qemu/slots").glob("*/source/junk"))


def test_a_developers_build_tree_is_used_as_it_is(tree, cache):
    made = build("made", source=str(tree), cache=cache)
    (tree / "build").mkdir()
    (tree / "build/config-host.mak").write_text("")
    with pytest.raises(UsageError, match="configured, but has no") as caught:
        build("dev", source=str(tree), cache=cache)
    assert "ninja -C" in str(caught.value)
    binary = tree / "build/qemu-system-x86_64"
    shutil.copy2(made.path, binary)
    try:
        dev = build("dev", source=str(tree), cache=cache)
    except EnvironmentLackError as error:  # the miniature has no firmware of its own beside its binary
        pytest.skip(str(error))
    assert dev.path == str(binary)
    binary.write_bytes(binary.read_bytes() + b"rebuilt")
    assert resolve_qemu("dev", cache).build_id != dev.build_id
    with pytest.raises(UsageError, match="used as it is"):
        build("dev", source=str(tree), options=["--enable-x"], cache=cache)
    binary.unlink()
    assert "dev" not in [each.name for each in list_qemus(cache)]
    with pytest.raises(UsageError, match="No such file"):
        resolve_qemu("dev", cache)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "system"}, "host's own"),
        ({"name": "7.2"}, "to fetch"),
        ({"name": "a/b"}, "not a name"),
        ({"name": "reference", "options": ["--x"]}, "images/qemu"),
        ({"name": "a", "source": "nowhere"}, "no such QEMU source"),
        ({"name": "a", "source": __file__}, "neither a folder nor a tarball"),
        ({"name": "a", "source": str(Path(__file__).parent)}, "no QEMU source"),
        ({"name": "a", "jobs": 0}, "jobs"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(cache, arguments, words):
    with pytest.raises(UsageError, match=words):
        build(**arguments, cache=cache)
    assert not list((cache / "qemu").glob("store/*"))


def test_a_tarball_that_is_broken_is_refused(cache, tmp_path):
    broken = tmp_path / "qemu.tar.xz"
    broken.write_bytes(b"not xz")
    with pytest.raises(UsageError, match="can't be unpacked"):
        build("a", source=str(broken), cache=cache)
    assert_clean(cache)


def test_a_series_that_does_not_apply_changes_nothing(tree, cache, tmp_path):
    good = build("mine", source=str(tree), cache=cache)
    with pytest.raises(UsageError, match=r"wrong\.patch .*net/net\.c, hunk #1"):
        build("mine", source=str(tree), series=[patch(tmp_path, "wrong", old="never")], cache=cache)
    assert resolve_qemu("mine", cache) == good
    assert_clean(cache)


def test_a_missing_dependency_is_named_with_its_package(tree, cache):
    with pytest.raises(EnvironmentLackError, match="slirp not found") as caught:
        build("a", source=str(tree), options=["--enable-slirp"], cache=cache)
    assert "libslirp-dev" in str(caught.value)
    with pytest.raises(UsageError, match="unknown option --nonsense"):
        build("a", source=str(tree), options=["--nonsense"], cache=cache)
    assert list_names(cache) == []
    assert_clean(cache)


def test_source_that_does_not_compile_shows_the_errors_and_keeps_the_old_build(tree, cache, tmp_path):
    good = build("mine", source=str(tree), cache=cache)
    broken = patch(tmp_path, 'x" + nonsense + "')
    with pytest.raises(TestbedError, match=r"net/net\.c:4:\d+: error: ") as caught:
        build("mine", source=str(tree), series=[broken], cache=cache)
    assert str(cache / "qemu/slots") not in caught.value.message
    assert resolve_qemu("mine", cache) == good
    assert_clean(cache)
    assert not words(build("mine", source=str(tree), series=[patch(tmp_path, "mended")], cache=cache))


def test_a_build_that_does_not_start_is_not_kept(tree, cache):
    main = tree / "main.c"
    main.write_text(main.read_text().replace("prelaunch", "broken"))
    with pytest.raises(EnvironmentLackError, match="can't start a machine"):
        build("a", source=str(tree), cache=cache)
    assert list_names(cache) == []
    assert_clean(cache)


@pytest.mark.parametrize("place", ["compiler", "copy"])
def test_a_full_disk_leaves_no_half_build(tree, cache, monkeypatch, place):
    if place == "compiler":
        (tree / "main.c").write_text(f"#error {os.strerror(errno.ENOSPC)}\n")
    else:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(_build.shutil, "copy2", full)
    with pytest.raises(EnvironmentLackError, match=r"disk of .* is full") as caught:
        build("a", source=str(tree), cache=cache)
    assert "SWITCHOVER_CACHE" in str(caught.value)
    assert list_names(cache) == []
    assert list((cache / "qemu/slots").glob("*")) == []
    assert_clean(cache)


def test_too_small_a_disk_is_said_before_anything_is_done(tree, cache, monkeypatch):
    monkeypatch.setattr(_build, "_NEED_BYTES", 1 << 60)
    with pytest.raises(EnvironmentLackError, match="MiB free"):
        build("a", source=str(tree), cache=cache)
    assert not (cache / "qemu/repo.git").exists()


@pytest.fixture
def interruptible():
    """A job of a shell without job control inherits SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_midst_of_a_childs_start_ends_the_child(interruptible, monkeypatch):
    started: list[int] = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "600"])
    assert not Path(f"/proc/{started[0]}").exists()


def test_an_interrupt_ends_the_children_and_a_repeat_succeeds(tree, cache, interruptible):
    configure = tree / "configure"
    stock = configure.read_text()
    configure.write_text(stock.replace("#!/bin/sh", "#!/bin/sh\necho $$ > pid; exec sleep 600"))

    def interrupt() -> None:
        pid = awaited_pid(cache)
        os.kill(os.getpid(), signal.SIGINT)
        children.append(pid)

    children: list[int] = []
    timer = threading.Thread(target=interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        build("a", source=str(tree), cache=cache)
    timer.join()
    assert not Path(f"/proc/{children[0]}").exists() or "State:\tZ" in Path(f"/proc/{children[0]}/status").read_text()
    assert_clean(cache)
    configure.write_text(stock)
    assert build("a", source=str(tree), cache=cache).version == "10.0.99"


def test_a_builder_that_was_killed_outright_leaves_a_cache_that_works(tree, cache):
    configure = tree / "configure"
    stock = configure.read_text()
    configure.write_text(stock.replace("#!/bin/sh", "#!/bin/sh\necho $$ > pid; exec sleep 600"))
    program = (
        "import sys; from pathlib import Path; from harness.builds import _build, _toolchain\n"
        "_toolchain.require = lambda **_: None; _build._NEED_BYTES = 0\n"
        "tools = _toolchain.Toolchain(sys.executable, '0', '/bin/true', 'gcc')\n"
        "_toolchain.prepare = lambda *_, **__: tools\n"
        f"_build.build('a', source={str(tree)!r}, cache=Path({str(cache)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as builder:
        pid = awaited_pid(cache)
        builder.kill()
        builder.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the configure run outlives its builder"
        time.sleep(0.05)
    assert list_names(cache) == []
    configure.write_text(stock)
    assert build("a", source=str(tree), cache=cache).version == "10.0.99"
    assert_clean(cache)


def test_two_builds_at_once_wait_for_each_other(tree, cache):
    said: list[str] = []
    results: list[QemuInstall | SwitchoverError] = []

    def one() -> None:
        try:
            results.append(build("same", source=str(tree), cache=cache, progress=said.append))
        except SwitchoverError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    with exclusive(Layout(cache), progress=silent):
        for thread in threads:
            thread.start()
        while sum("waiting for another build" in line for line in said) < 2:
            time.sleep(0.01)
        assert results == []
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == resolve_qemu("same", cache)
    assert compiled(cache) == {"main.c": 1, "net.c": 1}
    assert_clean(cache)


def test_a_stale_build_folder_is_started_afresh(tree, cache, tmp_path):
    build("a", source=str(tree), cache=cache)
    (folder,) = (path for path in (cache / "qemu/slots").glob("*/build-*") if path.is_dir())
    (folder / "build.ninja").write_text("build qemu-system-x86_64: nosuchrule gone.o\n")
    said: list[str] = []
    build("b", source=str(tree), series=[patch(tmp_path, "other")], cache=cache, progress=said.append)
    assert any("afresh" in line for line in said)


def test_a_failed_child_reports_command_status_and_tail(tmp_path):
    with pytest.raises(CommandError, match=r"(?s)`sh -c .*` ended with status 3\n.*last words") as caught:
        run(["sh", "-c", "echo last words; exit 3"])
    assert caught.value.status == 3
    with pytest.raises(CommandError, match="killed by SIGKILL"):
        run(["sh", "-c", "kill -KILL $$"])
    with pytest.raises(EnvironmentLackError, match="program not found"):
        run([tmp_path / "nothing"])


def awaited_pid(cache: Path) -> int:
    """The process id that the slow configure script writes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for file in (cache / "qemu/slots").glob("*/build-*/pid"):
            if text := file.read_text().strip():
                return int(text)
        time.sleep(0.02)
    raise AssertionError("configure did not start")


def list_names(cache: Path) -> list[str]:
    return [each.name for each in list_qemus(cache) if each.name != "system"]
