# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose root is a disk: the guest image's files in an ext4 file system, and a small initramfs that finds it.

::

    CACHE/roots/<key>/    initrd.cpio, root.ext4: of one guest image and one kernel

The file system is mounted read-only: a saved state of the guest fits every fresh copy of the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from harness.errors import TestbedError
from harness.host.warden import Warden
from harness.vm import packages
from harness.vm.image import GuestImage
from harness.vm.initramfs import Tree
from harness.vm.kernel import Module, ModuleWish, extract_vmlinux, kernel_release, resolve_modules

__all__ = ["RootDisk", "copy_root", "root_disk", "unpack_newc"]

_DRIVERS = (
    ModuleWish(name="virtio_pci", required=True, marker="virtio-pci"),
    ModuleWish(name="virtio_blk", required=True),
    ModuleWish(name="crc32c_generic"),  # which ext4 asks the kernel for by another name; newer kernels have it built in
    ModuleWish(name="ext4", required=True),
)
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root")
"""Where the guest's first process mounts something, or starts: it can't make them on a disk that is mounted read-only."""
_MARGIN_BYTES = 16 << 20
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r name; do /bin/busybox insmod "/modules/$name" || echo "init: no driver $name"; done </modules/order
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do /bin/busybox usleep 20000; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 -o ro /dev/vda /new || exec /bin/busybox sh
/bin/busybox umount /dev
exec /bin/busybox switch_root /new /init
"""
_NO_JOURNAL = "^has_journal,^metadata_csum,^resize_inode"
"""Nothing is ever written to it, so it needs none; and no checksums whose driver would be one more module."""


class RootDisk(msgspec.Struct, frozen=True):
    """What a machine boots from instead of the image's initramfs; `disk` is not to be written to: machines get copies."""

    initrd: Path
    disk: Path


async def root_disk(
    image: GuestImage, *, cache: Path, kernel: Path | None = None, modules: Path | None = None, progress: Callable[[str], None]
) -> RootDisk:
    """The root disk of `image`, built if it is not in the cache.

    `kernel` and `modules`: a user's own, as for the image; its drivers for virtio disks and ext4 have to be among them, or built in
    (`UsageError`). `EnvironmentLackError` where mke2fs is missing.
    """
    own = "" if kernel is None else hashlib.sha256(kernel.read_bytes()).hexdigest()
    key = hashlib.sha256("\n".join([image.digest, own, str(modules), Path(__file__).read_text()]).encode()).hexdigest()[:32]
    folder = cache / "roots" / key
    found = RootDisk(initrd=folder / "initrd.cpio", disk=folder / "root.ext4")
    if folder.exists():
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("a") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not folder.exists():
            progress("making a root disk of the guest image")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as name:
                await _build(image, Path(name), cache=cache, own=kernel is not None, modules=modules)
                (Path(name) / "made").rename(folder)
    return found


async def _build(image: GuestImage, work: Path, *, cache: Path, own: bool, modules: Path | None) -> None:
    made, tree = work / "made", work / "tree"
    made.mkdir()
    folder = modules if own else await _packaged_modules(image, work, cache=cache)
    drivers = await asyncio.to_thread(_drivers, image, folder)
    content = image.initrd.read_bytes()
    busybox = next((data for name, _, data in unpack_newc(content) if name == "usr/bin/busybox"), None)
    if busybox is None:
        raise TestbedError(f"the guest image {image.directory} has no busybox")
    (made / "initrd.cpio").write_bytes(_early(busybox, drivers))
    size = await asyncio.to_thread(_lay_out, content, tree)
    argv: list[str | Path] = ["mke2fs", "-q", "-t", "ext4", "-O", _NO_JOURNAL, "-m", "0", "-d", tree, made / "root.ext4", f"{size >> 10}k"]
    # For an ordinary user: all files are to be root's.
    if os.geteuid() != 0:
        argv = ["unshare", "--user", "--map-root-user", *argv]
    await packages.run(*argv)


async def _packaged_modules(image: GuestImage, work: Path, *, cache: Path) -> Path:
    """The modules of the kernel package that the image was made with."""
    versions = msgspec.json.decode((image.directory / "image.json").read_bytes())["packages"]
    (name,) = [name for name in versions if name.startswith("linux-image-")]
    archive = cache / "packages" / f"{name}_{versions[name].split()[-1][:16]}.deb"
    if not archive.exists():
        (archive,) = await packages.download([p for p in await packages.resolve([name]) if p.name == name], folder=cache / "packages")
    root = await packages.unpack(archive, folder=work / "packages")
    return next(root / path for path in ("lib/modules", "usr/lib/modules") if (root / path).is_dir()) / image.kernel_release


def _drivers(image: GuestImage, folder: Path | None) -> list[Module]:
    bzimage = image.bzimage.read_bytes()
    release = kernel_release(bzimage)
    if folder is not None:
        folder = next((each for each in (folder / "lib/modules" / release, folder / release) if each.is_dir()), folder)
    return resolve_modules(_DRIVERS, folder=folder, vmlinux=lambda: extract_vmlinux(bzimage), release=release)


def _early(busybox: bytes, drivers: list[Module]) -> bytes:
    tree = Tree()
    for name in ("dev", "new", "proc", "sys"):
        tree.folder(name)
    tree.character_device("dev/console", major=5, minor=1)
    tree.file("bin/busybox", busybox, mode=0o755)
    tree.link("bin/sh", "busybox")
    tree.file("init", _INIT.encode(), mode=0o755)
    for module in drivers:
        tree.file(f"modules/{module.name}.ko", module.content)
    tree.file("modules/order", "".join(f"{module.name}.ko\n" for module in drivers).encode())
    return tree.to_cpio()


def _lay_out(content: bytes, tree: Path) -> int:
    """Unpack an initramfs (but its device nodes: the kernel makes them) below `tree`; returns how large a disk it needs."""
    tree.mkdir()
    used = 0
    for name, mode, data in unpack_newc(content):
        path = tree / name
        if stat.S_ISDIR(mode):
            path.mkdir(exist_ok=True)
            path.chmod(stat.S_IMODE(mode))
        elif stat.S_ISLNK(mode):
            path.symlink_to(data.decode())
        elif stat.S_ISREG(mode):
            path.write_bytes(data)
            path.chmod(stat.S_IMODE(mode))
        used += 4096 + len(data)
    for name in _FOLDERS:
        (tree / name).mkdir(exist_ok=True)
    return -(-(used + used // 8 + _MARGIN_BYTES) // (1 << 20)) << 20


def unpack_newc(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(name, mode, content) of every entry of an uncompressed "newc" archive, in order."""
    at = 0
    while archive[at : at + 6] == b"070701" and len(archive) >= at + 110:
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        begin = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, mode, archive[begin : begin + size]
        at = (begin + size + 3) & ~3
    raise TestbedError("an initramfs ends without its trailer")


async def copy_root(warden: Warden, disk: Path, path: Path) -> None:
    """A machine's own copy of the disk, at `path` of the lab's scratch folder; holes stay holes."""
    with disk.open("rb") as source, await warden.open(path, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as target:
        await asyncio.to_thread(_copy_sparse, source.fileno(), target.fileno())


def _copy_sparse(source: int, target: int) -> None:
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(target, size)
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but holes from here on
            return
        at = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(target, begin, os.SEEK_SET)
        while begin < at:
            sent = os.sendfile(target, source, begin, at - begin)
            if not sent:
                raise TestbedError("a root disk became shorter as it was copied")
            begin += sent

