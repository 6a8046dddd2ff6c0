# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, modules, archives and the whole image build, on files made here: no root, no network, no QEMU."""

from __future__ import annotations

import asyncio
import base64
import bz2
import ctypes
import gzip
import lzma
import shutil
import stat
import struct
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import EnvironmentLackError, SwitchoverError, TestbedError, UsageError
from harness.resources import image_resources
from harness.vm import elf
from harness.vm.image import GuestImage, build_image, load_image
from harness.vm.initramfs import Tree, add_libraries
from harness.vm.kernel import ModuleWish, extract_vmlinux, has_pvh_entry, kernel_release, resolve_modules

RELEASE = "6.9.1-test"

# ---- files made for the tests ----


def make_elf(*, notes: list[tuple[bytes, int, bytes]] | None = None, modinfo: list[str] | None = None) -> bytes:
    """An ELF file with the given notes in a segment and the given .modinfo in a section."""
    blob = b""
    for owner, kind, description in notes or []:
        name = owner + b"\0"
        blob += struct.pack("<III", len(name), len(description), kind)
        blob += name + bytes(-len(name) % 4) + description + bytes(-len(description) % 4)
    info = b"".join(entry.encode() + b"\0" for entry in modinfo or [])
    names = b"\0.modinfo\0.shstrtab\0"
    note_at, info_at = 120, 120 + len(blob)
    names_at = info_at + len(info)
    sections_at = names_at + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, sections_at, 0, 64, 56, 1, 64, 3, 2)
    segment = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(blob), len(blob), 4)
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, length, 0, 0, 1, 0)
        for name, kind, offset, length in [(0, 0, 0, 0), (1, 1, info_at, len(info)), (10, 3, names_at, len(names))]
    )
    return header + segment + blob + info + names + sections


VMLINUX = make_elf(notes=[(b"GNU", 3, b"id"), (b"Xen", 18, struct.pack("<Q", 0x1000000))]) + bytes(range(256)) * 40
VMLINUX_WITHOUT_PVH = make_elf(notes=[(b"Xen", 6, b"linux")])


def lz4_legacy(data: bytes) -> bytes:
    """One block of literals only, and the uncompressed length that the kernel's build appends."""
    length = len(data) - 15
    block = b"\xf0" + b"\xff" * (length // 255) + bytes([length % 255]) + data
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + struct.pack("<I", len(data))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4_legacy,
}


def make_bzimage(vmlinux: bytes = VMLINUX, *, release: str = RELEASE, compression: str = "gzip") -> bytes:
    payload = COMPRESSIONS[compression](vmlinux)
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    text = f"{release} (someone@example.org) #1 SMP\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload + b"what follows the payload"


def make_modules(
    folder: Path, dependencies: dict[str, list[str]], *, suffix: str = ".ko", release: str = RELEASE
) -> Path:
    """A lib/modules/RELEASE folder as a package has it: without modules.dep."""
    drivers = folder / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (folder / "modules.order").touch()
    (folder / "modules.builtin").write_text("kernel/net/core/built-in-one.ko\n")
    for name, needs in dependencies.items():
        module = make_elf(modinfo=[f"depends={','.join(needs)}", f"vermagic={release} SMP mod_unload ", f"name={name}"])
        packed = COMPRESSIONS[{".ko": "none", ".ko.xz": "xz", ".ko.gz": "gzip"}[suffix]](module)
        (drivers / f"{name}{suffix}").write_bytes(packed)
    return folder


VIRTIO = {
    "virtio": [],
    "virtio_ring": ["virtio"],
    "virtio-pci": ["virtio_ring", "virtio", "built_in_one"],
    "failover": [],
    "virtio_net": ["virtio_ring", "failover", "virtio"],
    "virtio_console": ["virtio", "virtio_ring"],
}


def never() -> bytes:
    raise AssertionError("the kernel was unpacked without need")


# ---- kernels ----


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_kernel_comes_out_of_its_bzimage_unchanged(compression: str) -> None:
    if compression == "lz4":
        try:
            ctypes.CDLL("liblz4.so.1")
        except OSError:
            pytest.skip("liblz4.so.1 is missing")
    bzimage = make_bzimage(compression=compression)
    assert extract_vmlinux(bzimage) == VMLINUX
    assert kernel_release(bzimage) == RELEASE


def test_the_pvh_note_decides() -> None:
    assert has_pvh_entry(VMLINUX)
    assert not has_pvh_entry(VMLINUX_WITHOUT_PVH)


@pytest.mark.parametrize("content", [b"", b"MZ" * 400, bytes(4096), VMLINUX], ids=["empty", "pe", "zeros", "vmlinux"])
def test_what_is_no_bzimage_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(UsageError, match=r"/boot/mine is not an x86 Linux kernel"):
        kernel_release(content, what="/boot/mine")
    with pytest.raises(UsageError, match=r"/boot/mine is not an x86 Linux kernel"):
        extract_vmlinux(content, what="/boot/mine")


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "lzma", "zstd", "lz4"])
def test_a_damaged_payload_is_an_error_and_no_kernel(compression: str) -> None:
    bzimage = bytearray(make_bzimage(compression=compression))
    at = 5 * 512 + 64 + 8
    bzimage[at : at + 200] = b"\xaa" * 200
    with pytest.raises(UsageError, match="damaged"):
        extract_vmlinux(bytes(bzimage))


def test_an_unknown_compression_names_its_first_bytes() -> None:
    bzimage = bytearray(make_bzimage())
    bzimage[5 * 512 + 64 : 5 * 512 + 67] = b"???"
    with pytest.raises(EnvironmentLackError, match="3f3f3f"):
        extract_vmlinux(bytes(bzimage))


# ---- modules ----


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz"])
@pytest.mark.parametrize("with_modules_dep", [False, True])
def test_modules_come_after_what_they_need(tmp_path: Path, suffix: str, with_modules_dep: bool) -> None:
    folder = make_modules(tmp_path / RELEASE, VIRTIO, suffix=suffix)
    if with_modules_dep:
        prefix = "kernel/drivers/"
        lines = [
            f"{prefix}{name}{suffix}:{''.join(f' {prefix}{need}{suffix}' for need in needs if need != 'built_in_one')}\n"
            for name, needs in VIRTIO.items()
        ]
        (folder / "modules.dep").write_text("".join(lines))
    wishes = [ModuleWish(name="virtio_pci", required=True), ModuleWish(name="virtio_net", required=True)]
    modules = resolve_modules(wishes, folder=folder, vmlinux=never, release=RELEASE)

    names = [module.name for module in modules]
    assert sorted(names) == ["failover", "virtio", "virtio_net", "virtio_pci", "virtio_ring"]
    for module in modules:
        assert module.content[:4] == b"\x7fELF", "unpacked"
        assert all(names.index(need) < names.index(module.name) for need in module.needs)
        assert module.vermagic.startswith(f"{RELEASE} ")
    assert {module.name: module.wished_by for module in modules}["failover"] == {"virtio_net"}
    assert {module.name: module.wished_by for module in modules}["virtio"] == {"virtio_pci", "virtio_net"}


def test_required_modules_that_are_missing_are_all_named(tmp_path: Path) -> None:
    folder = make_modules(tmp_path / RELEASE, {"virtio": [], "virtio_pci": ["lost_one"]})
    wishes = [ModuleWish(name="virtio_pci", required=True), ModuleWish(name="virtio_net", required=True)]
    with pytest.raises(UsageError, match=r"has no virtio_pci, virtio_net: neither built in nor in .*6\.9\.1-test"):
        resolve_modules(wishes, folder=folder, vmlinux=never, release=RELEASE)


def test_wishes_that_are_built_in_or_not_required_need_no_module(tmp_path: Path) -> None:
    folder = make_modules(tmp_path / RELEASE, {"virtio": []})
    wishes = [ModuleWish(name="built-in-one", required=True), ModuleWish(name="sch_netem")]
    assert resolve_modules(wishes, folder=folder, vmlinux=never, release=RELEASE) == []


def test_without_a_folder_the_kernel_itself_is_asked() -> None:
    wishes = [
        ModuleWish(name="virtio_pci", required=True, marker="virtio-pci"),
        ModuleWish(name="virtio_net", required=True),
    ]
    both = b"...\0virtio-pci\0...virtio_net\0"
    assert resolve_modules(wishes, folder=None, vmlinux=lambda: both, release=RELEASE) == []
    with pytest.raises(UsageError, match=r"has no virtio_net: .*no modules folder was given"):
        resolve_modules(wishes, folder=None, vmlinux=lambda: b"\0virtio-pci\0", release=RELEASE)


# ---- archives ----


class Entry(NamedTuple):
    mode: int
    content: bytes
    device: tuple[int, int]


def read_cpio(archive: bytes) -> Iterator[tuple[str, Entry]]:
    """A reader of the newc format by its description, in archive order."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + fields[11] - 1].decode()
        assert archive[name_at + fields[11] - 1] == 0
        data_at = name_at + fields[11] + -(name_at + fields[11]) % 4
        if name == "TRAILER!!!":
            return
        yield name, Entry(fields[1], archive[data_at : data_at + fields[6]], (fields[9], fields[10]))
        at = data_at + fields[6] + -fields[6] % 4


path_names = st.text("abcdefgh.-_", min_size=1, max_size=9).filter(lambda name: name.strip("."))


@given(st.dictionaries(path_names, st.binary(max_size=70), max_size=12))
def test_every_file_comes_out_of_the_archive_as_it_went_in(files: dict[str, bytes]) -> None:
    tree = Tree()
    for name, content in files.items():
        tree.file(f"folder/{name}", content, mode=0o640)
    entries = dict(read_cpio(tree.to_cpio()))
    assert {name: entry.content for name, entry in entries.items() if stat.S_ISREG(entry.mode)} == {
        f"folder/{name}": content for name, content in files.items()
    }
    assert all(stat.S_IMODE(entry.mode) == 0o640 for entry in entries.values() if stat.S_ISREG(entry.mode))


def test_parents_come_before_their_children_and_the_same_tree_gives_the_same_bytes() -> None:
    def make(paths: list[str]) -> Tree:
        tree = Tree()
        for path in paths:
            tree.file(path, path.encode())
        tree.link("bin", "/usr/bin")
        tree.character_device("dev/null", major=1, minor=3, mode=0o666)
        return tree

    paths = ["usr/bin/sh", "usr/lib/a/b.so", "etc/passwd", "usr/bin-other"]
    archive = make(paths).to_cpio()
    assert archive == make(paths[::-1]).to_cpio()
    names = [name for name, _ in read_cpio(archive)]
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    entries = dict(read_cpio(archive))
    assert (entries["bin"].mode, entries["bin"].content) == (stat.S_IFLNK | 0o777, b"/usr/bin")
    assert (entries["dev/null"].mode, entries["dev/null"].device) == (stat.S_IFCHR | 0o666, (1, 3))
    assert stat.S_ISDIR(entries["usr/lib/a"].mode)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is missing")
def test_cpio_itself_reads_the_archive(tmp_path: Path) -> None:
    tree = Tree()
    tree.file("etc/odd", b"odd")
    tree.link("etc/link", "odd")
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=tmp_path, input=tree.to_cpio(), check=True)
    assert (tmp_path / "etc/link").read_bytes() == b"odd"


def test_a_library_that_is_in_no_package_is_named(tmp_path: Path) -> None:
    program = shutil.which("sh")
    assert program is not None
    content = Path(program).resolve().read_bytes()
    if not elf.needed_libraries(content):
        pytest.skip("this host's shell is static")
    with pytest.raises(TestbedError, match=r"shared library \S+\.so\S* is in none of the packages"):
        add_libraries(Tree(), [content], roots=[tmp_path], folder="usr/lib")


@given(st.binary(max_size=200))
def test_no_bytes_make_the_elf_reader_fail_otherwise_than_it_says(data: bytes) -> None:
    with pytest.raises(elf.ElfError):
        elf.needed_libraries(data)


# ---- the whole build, from a distribution of five files ----

SHELL_PROGRAM = '#include <stdio.h>\nint main(void) { puts("ls\\ncat\\nsh"); return 0; }\n'


class Distribution:
    """Stand-ins for apt-cache, apt-get, dpkg-deb and make over folders of unpacked packages and compiled programs."""

    def __init__(self, folder: Path, tools: Path, compiled: Path) -> None:
        self.folder = folder
        self.tools = tools
        self.calls = folder / "calls"
        self.calls.touch()
        (folder / "packages").mkdir()
        tools.mkdir()
        self._tool(
            "apt-cache",
            f"shift 2; status=100; for name; do [ -e {folder}/$name.show ] || continue; "
            f"cat {folder}/$name.show; status=0; done; exit $status",
        )
        self._tool(
            "apt-get",
            "while [ $1 != download ]; do shift; done; shift; "
            'for name; do echo "${name%%=*}" >"${name%%=*}_1_amd64.deb"; done',
        )
        self._tool("make", f'for out; do :; done; cp {compiled}/"${{out##*/}}" "$out"')
        self._tool("dpkg-deb", f'cp -a {folder}/packages/"$(cat "$2")"/. "$3"')

    def _tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\necho $0 >>{self.calls}\n{script}\n")
        (self.tools / name).chmod(0o755)

    def package(
        self, name: str, files: dict[str, bytes], *, version: str = "1", depends: str = "", section: str = "misc"
    ) -> None:
        lines = [f"Package: {name}", f"Version: {version}", "Architecture: amd64", f"Section: {section}"]
        lines += [f"Depends: {depends}"] if depends else []
        lines += ["Description: a package", " with a long description", f"SHA256: {name}-{version}-{'0' * 40}", "", ""]
        (self.folder / f"{name}.show").write_text("\n".join(lines))
        for path, content in files.items():
            target = self.folder / "packages" / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o755)

    def programs_called(self) -> list[str]:
        """The names of the stand-ins called since the last time."""
        names = [Path(line).name for line in self.calls.read_text().splitlines()]
        self.calls.write_text("")
        return names


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own programs, compiled for real but once, and one more that stands for all others."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("cc or make is missing")
    folder = tmp_path_factory.mktemp("compiled")
    for name in ("swgen", "swinit"):
        subprocess.run(["make", "-s", "-C", image_resources() / "guest" / name, f"OUT={folder / name}"], check=True)
    subprocess.run(["cc", "-static", "-x", "c", "-o", folder / "any", "-"], input=SHELL_PROGRAM.encode(), check=True)
    return folder


@pytest.fixture
def static_program(compiled: Path) -> bytes:
    return (compiled / "any").read_bytes()


@pytest.fixture
def distribution(
    tmp_path: Path, compiled: Path, static_program: bytes, monkeypatch: pytest.MonkeyPatch
) -> Distribution:
    (tmp_path / "distribution").mkdir()
    made = Distribution(tmp_path / "distribution", tmp_path / "tools", compiled)
    recipe = tomllib.loads((image_resources() / "guest" / "recipe.toml").read_text())
    for name, files in recipe["packages"].items():
        made.package(name, dict.fromkeys(files, static_program), depends="libone (>= 2) | libother, perl:any")
    for name, files in recipe["data"].items():
        made.package(
            name, {**dict.fromkeys(recipe["packages"].get(name, []), static_program), **dict.fromkeys(files, b"data")}
        )
    made.package("libone", {"usr/lib/libone.so.1": b"unused"}, section="libs")
    made.package("perl", {"usr/bin/perl": b""}, section="perl")
    make_modules(made.folder / "packages" / "linux-image-test" / "lib/modules" / RELEASE, VIRTIO)
    made.package("linux-image-test", {f"boot/vmlinuz-{RELEASE}": make_bzimage()}, section="kernel")
    made.package(recipe["kernel"], {}, depends="linux-image-test (= 1)", section="kernel")
    monkeypatch.setenv("PATH", f"{made.tools}:/usr/bin:/bin")
    return made


def build(cache: Path, *, kernel: Path | None = None, modules: Path | None = None, refresh: bool = False) -> GuestImage:
    return asyncio.run(
        build_image(cache=cache, kernel=kernel, modules=modules, refresh=refresh, progress=lambda _line: None)
    )


def test_an_image_is_built_whole(distribution: Distribution, tmp_path: Path, static_program: bytes) -> None:
    image = build(tmp_path / "cache")

    assert image == load_image(image.directory)
    assert image.kernel.read_bytes() == VMLINUX
    assert image.bzimage.read_bytes() == make_bzimage()
    assert image.kernel_release == RELEASE
    assert stat.S_IMODE(image.ssh_key.stat().st_mode) == 0o600
    usage = subprocess.run([image.generator], capture_output=True, text=True, check=False)
    assert "swgen run" in usage.stderr

    entries = dict(read_cpio(image.initrd.read_bytes()))
    for program in ("ip", "ss", "nstat", "tc", "ping", "iperf3", "irtt", "qemu-ga", "dropbear", "busybox"):
        assert entries[f"usr/bin/{program}"].content == static_program
    assert entries["usr/bin/swgen"].content == image.generator.read_bytes()
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert entries["usr/bin/cat"].content == b"busybox"
    assert entries["usr/bin/sh"].content == b"dash", "not busybox, whose shell prefers its own small ip and tc"
    assert "usr/bin/perl" not in entries

    order = entries["etc/switchover/modules"].content.decode().split()
    assert [Path(name).stem for name in order] == [
        "virtio", "virtio_ring", "virtio_pci", "failover", "virtio_net", "virtio_console",
    ]  # fmt: skip
    assert all(f"usr/lib/modules/{name}" in entries for name in order)

    login = load_ssh_private_key(image.ssh_key.read_bytes(), password=None).public_key()
    allowed = entries["root/.ssh/authorized_keys"].content
    assert allowed == login.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    assert entries["etc/dropbear/host_key"].content[-32:] == host_key_bytes(image.host_key)
    assert entries["etc/dropbear/host_key"].mode == stat.S_IFREG | 0o600


def host_key_bytes(line: str) -> bytes:
    kind, encoded = line.split()
    assert kind == "ssh-ed25519"
    return base64.b64decode(encoded)[-32:]


def test_a_known_image_is_found_without_any_program(
    distribution: Distribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build(tmp_path / "cache")
    assert {"apt-cache", "apt-get", "dpkg-deb"} <= set(distribution.programs_called())
    monkeypatch.setenv("PATH", "/nonexistent")
    start = time.perf_counter()
    assert build(tmp_path / "cache") == image
    assert time.perf_counter() - start < 0.5
    assert distribution.programs_called() == []


def test_newer_packages_make_another_image_only_when_asked(distribution: Distribution, tmp_path: Path) -> None:
    first = build(tmp_path / "cache")
    distribution.package("libone", {"usr/lib/libone.so.1": b"newer"}, version="2", section="libs")
    assert build(tmp_path / "cache") == first
    second = build(tmp_path / "cache", refresh=True)
    assert second.digest != first.digest
    assert second.ssh_key.read_bytes() != first.ssh_key.read_bytes(), "each image has keys of its own"
    assert build(tmp_path / "cache") == second
    assert build(tmp_path / "cache", refresh=True) == second


def test_two_builds_at_once_give_one_image(distribution: Distribution, tmp_path: Path) -> None:
    async def both() -> list[GuestImage]:
        said: list[str] = []
        one = build_image(cache=tmp_path / "cache", progress=said.append)
        other = build_image(cache=tmp_path / "cache", progress=said.append)
        images = list(await asyncio.gather(one, other))
        assert said.count("waiting for another build of the guest image") == 1
        return images

    first, second = asyncio.run(both())
    assert first == second
    assert distribution.programs_called().count("apt-get") == 1


def test_a_failed_build_leaves_nothing_behind(distribution: Distribution, tmp_path: Path) -> None:
    (distribution.folder / "packages" / "iproute2" / "sbin" / "tc").unlink()
    with pytest.raises(TestbedError, match=r"iproute2.* has no file sbin/tc"):
        build(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "images").iterdir()] == [".lock"]


def test_a_user_s_own_kernel_goes_with_its_modules(distribution: Distribution, tmp_path: Path) -> None:
    release = "7.0.0-mine"
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(make_bzimage(VMLINUX_WITHOUT_PVH, release=release, compression="xz"))
    modules = make_modules(tmp_path / "lib/modules" / release, VIRTIO, suffix=".ko.xz", release=release)
    image = build(tmp_path / "cache", kernel=kernel, modules=modules)
    assert image.kernel_release == release
    assert image.kernel == image.bzimage, "this kernel has no PVH entry"
    content = dict(read_cpio(image.initrd.read_bytes()))
    assert f"usr/lib/modules/{release}/virtio_net.ko" in content
    assert build(tmp_path / "cache").kernel_release == RELEASE
    assert build(tmp_path / "cache", kernel=kernel, modules=modules.parent) == image


def test_modules_dep_names_what_modprobe_loads_first_last(distribution: Distribution, tmp_path: Path) -> None:
    listing = dict(read_cpio(build(tmp_path / "cache").initrd.read_bytes()))[f"usr/lib/modules/{RELEASE}/modules.dep"].content.decode()
    needs = dict(line.split(":") for line in listing.splitlines())
    chain = [name.removesuffix(".ko") for name in needs["virtio_pci.ko"].split()]
    assert chain == ["virtio_ring", "virtio"], "virtio_ring itself needs virtio"


def test_modules_of_another_kernel_are_refused(tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(make_bzimage(release="7.0.0-mine"))
    modules = make_modules(tmp_path / "modules", VIRTIO, release="6.0.0-other")
    with pytest.raises(UsageError, match=r"was built for kernel 6\.0\.0-other, not for 7\.0\.0-mine"):
        build(tmp_path / "cache", kernel=kernel, modules=modules)


def test_bad_kernels_are_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a kernel")
    for kernel, modules, message in [
        (text, None, "is not an x86 Linux kernel"),
        (tmp_path / "missing", None, "cannot be read: No such file"),
        (tmp_path, None, "cannot be read: Is a directory"),
        (None, tmp_path, "without its kernel"),
    ]:
        with pytest.raises(UsageError, match=message):
            build(tmp_path / "cache", kernel=kernel, modules=modules)
    assert not (tmp_path / "cache").exists()


def test_what_the_host_lacks_is_named_with_the_mend(
    distribution: Distribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (distribution.folder / "irtt.show").unlink()
    with pytest.raises(EnvironmentLackError, match=r"apt knows no package irtt\n.*apt-get update"):
        build(tmp_path / "cache")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentLackError, match="apt-cache is not installed"):
        build(tmp_path / "other")


def test_what_a_killed_build_left_is_cleared_away(distribution: Distribution, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "images" / ".build-killed"
    leftover.mkdir(parents=True)
    image = build(tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache" / "images").iterdir()} == {".lock", "by-input", image.digest}


def test_a_cache_that_cannot_be_written_is_an_error_with_its_cause(distribution: Distribution, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(TestbedError, match=r"cannot be written to .*cache/images: .*(exists|Not a directory)"):
        build(tmp_path / "cache")


def test_an_image_with_a_file_missing_is_refused(distribution: Distribution, tmp_path: Path) -> None:
    image = build(tmp_path / "cache")
    image.initrd.unlink()
    with pytest.raises(UsageError, match=r"is not whole: initrd\.cpio is missing"):
        load_image(image.directory)


def test_a_folder_that_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no guest image \(it has no image\.json\)"):
        load_image(tmp_path)
    (tmp_path / "image.json").write_text('{"layout_version": 1}')
    with pytest.raises(SwitchoverError, match="cannot be read"):
        load_image(tmp_path)
