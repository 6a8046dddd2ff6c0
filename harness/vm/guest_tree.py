# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies where in the guest: from recipe, unpacked packages, compiled programs and kernel to the tree of the initramfs."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.errors import TestbedError
from harness.vm.initramfs import Tree, add_libraries
from harness.vm.kernel import Module, ModuleWish

__all__ = ["Kernel", "Keys", "Parts", "Recipe", "find_file", "make_tree"]

_LIBRARY_FOLDER = "usr/lib/x86_64-linux-gnu"


class ModuleEntry(ModuleWish, frozen=True, forbid_unknown_fields=True):
    """A driver of the recipe; ``boot``: loaded by the first process."""

    boot: bool = True


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """recipe.toml; the file itself explains its parts."""

    kernel: str
    packages: dict[str, list[str]]
    data: dict[str, list[str]]
    programs: dict[str, list[str]]
    files: dict[str, str]
    modules: list[ModuleEntry]


class Kernel(msgspec.Struct, frozen=True):
    """A kernel and the modules chosen from those that belong to it."""

    release: str
    bzimage: bytes
    modules: list[Module]


class Parts(msgspec.Struct, frozen=True):
    """All that goes into one image. ``packages`` are unpacked packages by name, ``compiled`` the folder of our programs."""

    recipe: Recipe
    recipe_folder: Path
    packages: dict[str, Path]
    compiled: Path
    applets: list[str]
    kernel: Kernel


class Keys:
    """The keys of one image, fresh for each: who may log in, and how the guest proves itself."""

    def __init__(self) -> None:
        self._login = Ed25519PrivateKey.generate()
        self._host = Ed25519PrivateKey.generate()

    @property
    def login_private(self) -> bytes:
        """In OpenSSH's file format."""
        return self._login.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    @property
    def login_line(self) -> str:
        """As in authorized_keys."""
        return _public_line(self._login)

    @property
    def host_line(self) -> str:
        """As in known_hosts, without the name."""
        return _public_line(self._host)

    @property
    def host_private(self) -> bytes:
        """In dropbear's own file format: type, then private and public half as one string."""
        private = self._host.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        public = self._host.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _ssh_string(b"ssh-ed25519") + _ssh_string(private + public)


def _ssh_string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _public_line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def find_file(root: Path, name: str) -> Path:
    """A file of an unpacked package, on either side of the "usr" merge."""
    for candidate in (root / name, root / "usr" / name):
        if candidate.is_file():
            return candidate
    raise TestbedError(f"package {root.name} has no file {name}; the recipe does not fit this distribution")


def make_tree(parts: Parts, *, keys: Keys) -> Tree:
    """The guest's files. TestbedError names a file or library that is in none of the packages."""
    tree = Tree()
    _add_skeleton(tree)
    _add_programs(tree, parts)
    _add_modules(tree, parts)
    for name, path in parts.recipe.files.items():
        tree.file(path, (parts.recipe_folder / name).read_bytes())
    tree.file("root/.ssh/authorized_keys", f"{keys.login_line}\n".encode(), mode=0o600)
    tree.file("etc/dropbear/host_key", keys.host_private, mode=0o600)
    return tree


def _add_skeleton(tree: Tree) -> None:
    for link in ("bin", "sbin", "usr/sbin"):
        tree.link(link, "/usr/bin")
    tree.link("lib", "/usr/lib")
    for folder in ("proc", "sys", "dev", "run", "tmp"):
        tree.folder(folder)
    for private in ("root", "root/.ssh", "etc/dropbear"):
        tree.folder(private, mode=0o700)
    # For the time before init has mounted /dev.
    tree.character_device("dev/console", major=5, minor=1)
    tree.character_device("dev/null", major=1, minor=3, mode=0o666)
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/group", b"root:x:0:\n")
    tree.file("etc/shells", b"/bin/sh\n")


def _add_programs(tree: Tree, parts: Parts) -> None:
    taken: list[bytes] = []
    for package, names in parts.recipe.packages.items():
        for name in names:
            content = find_file(parts.packages[package], name).read_bytes()
            tree.file(f"usr/bin/{Path(name).name}", content, mode=0o755)
            taken.append(content)
    add_libraries(tree, taken, roots=list(parts.packages.values()), folder=_LIBRARY_FOLDER)
    for package, names in parts.recipe.data.items():
        for name in names:
            tree.file(name, find_file(parts.packages[package], name).read_bytes())
    for name, (path, *links) in parts.recipe.programs.items():
        tree.file(path, (parts.compiled / name).read_bytes(), mode=0o755)
        for link in links:
            tree.link(link, f"/{path}")
    tree.link("usr/bin/sh", "dash")
    for applet in parts.applets:
        if f"usr/bin/{applet}" not in tree:  # the full program wins over busybox's
            tree.link(f"usr/bin/{applet}", "busybox")


def _add_modules(tree: Tree, parts: Parts) -> None:
    modules, release = parts.kernel.modules, parts.kernel.release
    for module in modules:
        tree.file(f"usr/lib/modules/{release}/{module.name}.ko", module.content)
    # As depmod writes it: the one to load first stands last.
    listing = "".join(f"{module.name}.ko:{''.join(f' {need}.ko' for need in reversed(module.needs))}\n" for module in modules)
    tree.file(f"usr/lib/modules/{release}/modules.dep", listing.encode())
    at_boot = {wish.name for wish in parts.recipe.modules if wish.boot}
    order = [f"{release}/{module.name}.ko\n" for module in modules if module.wished_by & at_boot]
    tree.file("etc/switchover/modules", "".join(order).encode())
