"""A guest's root disk: what is read from an initramfs, what is copied, and when it is made."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from harness.errors import TestbedError
from harness.vm import root_disk
from harness.vm.argv import DiskSpec, MachineSpec, machine_argv
from harness.vm.image import GuestImage
from harness.vm.initramfs import Tree
from harness.vm.root_disk import unpack_newc


def archive() -> bytes:
    tree = Tree()
    tree.file("usr/bin/busybox", b"program" * 999, mode=0o755)
    tree.file("etc/empty", b"")
    tree.link("usr/bin/sh", "busybox")
    tree.folder("secret", mode=0o700)
    tree.character_device("dev/console", major=5, minor=1)
    return tree.to_cpio()


def test_an_initramfs_is_read_as_it_was_written():
    found = {name: (mode, data) for name, mode, data in unpack_newc(archive())}
    assert found["usr/bin/busybox"] == (stat.S_IFREG | 0o755, b"program" * 999)
    assert found["etc/empty"] == (stat.S_IFREG | 0o644, b"")
    assert found["usr/bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert found["secret"][0] == stat.S_IFDIR | 0o700
    assert stat.S_ISCHR(found["dev/console"][0])
    assert list(found) == sorted(found)


def test_an_initramfs_that_is_cut_off_is_refused():
    with pytest.raises(TestbedError, match="without its trailer"):
        list(unpack_newc(archive()[:-600]))


def test_what_is_laid_out_fits_the_size_and_has_folders_to_mount_on(tmp_path):
    size = root_disk._lay_out(archive(), tmp_path / "tree")
    assert size % (1 << 20) == 0
    assert size > 16 << 20
    assert (tmp_path / "tree/usr/bin/busybox").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "tree/usr/bin/sh").readlink() == Path("busybox")
    assert not (tmp_path / "tree/dev/console").exists()
    assert {"dev", "proc", "sys", "run", "tmp"} <= {path.name for path in (tmp_path / "tree").iterdir()}


def test_a_copy_is_the_same_and_keeps_its_holes(tmp_path):
    size = 8 << 20
    with (tmp_path / "from").open("w+b") as source, (tmp_path / "to").open("w+b") as target:
        for at in (0, 3 << 20, size - 5):
            source.seek(at)
            source.write(b"data!")
        source.flush()
        root_disk._copy_sparse(source.fileno(), target.fileno())
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()
    assert (tmp_path / "to").stat().st_blocks * 512 < size // 2


def test_it_is_made_once_for_each_image(tmp_path, monkeypatch):
    built: list[str] = []

    async def build(image, work, **_):
        built.append(image.digest)
        (work / "made").mkdir()
        for name in ("initrd.cpio", "root.ext4"):
            (work / "made" / name).write_text(image.digest)

    monkeypatch.setattr(root_disk, "_build", build)

    def made(digest: str) -> str:
        image = GuestImage(*(tmp_path,) * 4, digest, "6.1", tmp_path, "", tmp_path)
        return asyncio.run(root_disk.root_disk(image, cache=tmp_path, progress=lambda _: None)).disk.read_text()

    assert [made("one"), made("one"), made("two"), made("one")] == ["one", "one", "two", "one"]
    assert built == ["one", "two"]
    assert not list((tmp_path / "roots").glob(".build-*"))


def test_the_root_is_the_first_disk_of_the_machine():
    spec = MachineSpec(
        name="m", argv_prefix=("qemu",), accelerator="tcg", kernel="k", initrd="i", disk=DiskSpec(path="/d"), root=DiskSpec(path="/r")
    )
    argv = machine_argv(spec)
    disks = [word for word in argv if word.startswith("virtio-blk-pci")]
    assert disks == ["virtio-blk-pci,id=root0,drive=root-drive", "virtio-blk-pci,id=disk0,drive=drive0"]
