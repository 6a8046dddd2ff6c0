# SPDX-License-Identifier: GPL-2.0-or-later
"""An initramfs as a tree in memory, written as an uncompressed "newc" cpio archive.

No root is needed: device nodes and owners exist only in the archive. The same tree gives the same bytes.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

import msgspec

from harness.errors import TestbedError
from harness.vm import elf

__all__ = ["Tree", "add_libraries"]


class _Node(msgspec.Struct, frozen=True):
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """Files, folders, links and device nodes by path, relative to the root (``usr/bin/sh``).

    Parents are made as needed. A path set twice keeps the last.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def _put(self, path: str, node: _Node) -> None:
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) != ".":
                self._nodes.setdefault(str(parent), _Node(stat.S_IFDIR | 0o755))
        self._nodes[path] = node

    def folder(self, path: str, *, mode: int = 0o755) -> None:
        self._put(path, _Node(stat.S_IFDIR | mode))

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self._put(path, _Node(stat.S_IFREG | mode, content))

    def link(self, path: str, target: str) -> None:
        self._put(path, _Node(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, *, major: int, minor: int, mode: int = 0o600) -> None:
        self._put(path, _Node(stat.S_IFCHR | mode, device=(major, minor)))

    def to_cpio(self) -> bytes:
        """The archive. Owner root, time 0, inode numbers in order."""
        archive = bytearray()
        for inode, (path, node) in enumerate(sorted(self._nodes.items()), start=1):
            _append(archive, path, node, inode=inode)
        _append(archive, "TRAILER!!!", _Node(0), inode=0)
        return bytes(archive) + bytes(-len(archive) % 512)


def _append(archive: bytearray, path: str, node: _Node, *, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = [inode, node.mode, 0, 0, links, 0, len(node.content), 0, 0, *node.device, len(name), 0]
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive += bytes(-len(archive) % 4)
    archive += node.content
    archive += bytes(-len(archive) % 4)


def add_libraries(tree: Tree, programs: list[bytes], *, roots: list[Path], folder: str) -> None:
    """Adds every shared library the `programs` need, transitively, and the dynamic loader.

    Libraries are looked up by soname below `roots` (unpacked packages) and put flat into `folder`; the loader
    also goes where the programs expect it. TestbedError names a library that is in no package.
    """
    index: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.rglob("*.so*")):
            index.setdefault(path.name, path)
    waiting = list(programs)
    while waiting:
        image = waiting.pop()
        wanted = elf.needed_libraries(image)
        if loader := elf.interpreter(image):
            wanted.append(PurePosixPath(loader).name)
            if loader.lstrip("/") not in tree:
                tree.link(loader.lstrip("/"), f"/{folder}/{PurePosixPath(loader).name}")
        for name in wanted:
            target = f"{folder}/{name}"
            if target in tree:
                continue
            if name not in index:
                raise TestbedError(f"the shared library {name} is in none of the packages of the guest image")
            content = index[name].read_bytes()
            tree.file(target, content, mode=0o755)
            waiting.append(content)
