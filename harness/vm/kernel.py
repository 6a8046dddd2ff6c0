# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux kernels as files: what a bzImage says of itself, the vmlinux inside, the modules that go with it.

An uncompressed vmlinux with the PVH entry note boots without real mode, boot loader and decompression,
which is most of a second under TCG. Everything here is pure but for reading the files it is given.
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import zstandard

from harness.errors import EnvironmentLackError, UsageError
from harness.vm import elf

__all__ = ["Module", "ModuleWish", "extract_vmlinux", "has_pvh_entry", "kernel_release", "resolve_modules"]

_XEN_ELFNOTE_PHYS32_ENTRY = 18


class ModuleWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A driver the guest wants.

    ``marker`` is a string that a kernel with the driver built in contains; it decides where there is no
    ``modules.builtin`` to ask.
    """

    name: str
    required: bool = False
    marker: str | None = None


class Module(msgspec.Struct, frozen=True):
    """One loadable module, uncompressed.

    ``needs`` are all modules to be loaded before it, in order; ``wished_by`` are the wishes that led to it.
    """

    name: str
    needs: tuple[str, ...]
    content: bytes
    vermagic: str
    wished_by: frozenset[str]


# ---- bzImage ----


def _header(bzimage: bytes, *, what: str) -> None:
    if len(bzimage) < 0x268 or bzimage[0x202:0x206] != b"HdrS":
        raise UsageError(f"{what} is not an x86 Linux kernel (bzImage)", hint="give arch/x86/boot/bzImage or vmlinuz-*")
    version = struct.unpack_from("<H", bzimage, 0x206)[0]
    if version < 0x208:
        raise UsageError(f"{what}: boot protocol {version >> 8}.{version & 255} is too old (2.08 is needed)")


def kernel_release(bzimage: bytes, *, what: str = "the kernel") -> str:
    """What ``uname -r`` will say, e.g. ``6.1.0-56-cloud-amd64``. UsageError if this is no bzImage."""
    _header(bzimage, what=what)
    start = struct.unpack_from("<H", bzimage, 0x20E)[0] + 0x200
    text = bzimage[start : bzimage.index(b"\0", start)].decode("ascii", "replace")
    return text.split(" ", 1)[0]


class _DamagedError(Exception):
    """A compressed block cannot be unpacked."""


def _lz4_legacy(data: bytes) -> bytes:
    """The kernel's LZ4: the legacy frame, blocks of at most 8 MiB, and whatever follows the last one."""
    try:
        # Wherever there is apt or systemd there is this library: not worth a Python package.
        library = ctypes.CDLL("liblz4.so.1")
    except OSError as error:
        raise EnvironmentLackError(
            "the kernel is compressed with LZ4, and liblz4.so.1 is missing", hint="apt-get install liblz4-1"
        ) from error
    blocks: list[bytes] = []
    room = ctypes.create_string_buffer(8 << 20)
    at = 4
    while at + 4 <= len(data):
        length = struct.unpack_from("<I", data, at)[0]
        # The build appends the uncompressed length, which then looks like one more block's length.
        if at + 4 + length > len(data):
            break
        block = data[at + 4 : at + 4 + length]
        unpacked = library.LZ4_decompress_safe(block, room, len(block), len(room))
        if unpacked < 0:
            raise _DamagedError(f"LZ4 block at {at}")
        blocks.append(room.raw[:unpacked])
        at += 4 + length
    return b"".join(blocks)


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data)


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


_DECOMPRESSORS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"\x1f\x8b\x08", _gzip),
    (b"\xfd7zXZ\0", _xz),
    (b"BZh", _bzip2),
    (b"\x5d\0\0", _lzma),
    (b"\x02\x21\x4c\x18", _lz4_legacy),
    (b"\x28\xb5\x2f\xfd", _zstd),
]


def extract_vmlinux(bzimage: bytes, *, what: str = "the kernel") -> bytes:
    """The uncompressed ELF kernel inside a bzImage.

    The payload's place and length come from the setup header, so nothing is guessed. UsageError if this is no
    bzImage or its payload is damaged; EnvironmentLackError for a compression that is not known here.
    """
    _header(bzimage, what=what)
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if payload[:4] == b"\x7fELF":
        return payload
    for magic, decompress in _DECOMPRESSORS:
        if payload.startswith(magic):
            try:
                return decompress(payload)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, _DamagedError, OSError) as error:
                raise UsageError(f"{what}: its compressed payload is damaged ({error})") from error
    raise EnvironmentLackError(
        f"{what} is compressed in a way that is not known here (payload begins with {payload[:6].hex()})",
        hint="build it with CONFIG_KERNEL_GZIP, _XZ, _LZ4 or _ZSTD",
    )


def has_pvh_entry(vmlinux: bytes) -> bool:
    """Whether QEMU can boot this vmlinux directly (CONFIG_PVH)."""
    return any(owner == "Xen" and kind == _XEN_ELFNOTE_PHYS32_ENTRY for owner, kind, _ in elf.notes(vmlinux))


# ---- modules ----


def _canonical(name: str) -> str:
    return name.replace("-", "_")


_MODULE_FILE = re.compile(r"(?P<name>[^/]+)\.ko(?P<compression>\.gz|\.xz|\.zst)?$")


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    for magic, decompress in _DECOMPRESSORS:
        if data.startswith(magic):
            return decompress(data)
    return data


def _module_names(listing: Path) -> set[str]:
    """The names in ``modules.builtin``; empty if there is no such file."""
    if not listing.is_file():
        return set()
    matches = (_MODULE_FILE.search(line) for line in listing.read_text().splitlines())
    return {_canonical(match["name"]) for match in matches if match}


def _index(folder: Path) -> dict[str, Path]:
    """Module name -> file, for every module below `folder`."""
    index: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.ko*")):
        if match := _MODULE_FILE.search(path.name):
            index.setdefault(_canonical(match["name"]), path)
    return index


def _recorded_dependencies(folder: Path) -> dict[str, list[str]]:
    """``modules.dep``, where depmod was run: module name -> the modules it needs."""
    listing = folder / "modules.dep"
    if not listing.is_file():
        return {}
    table: dict[str, list[str]] = {}
    for line in listing.read_text().splitlines():
        module, _, needs = line.partition(":")
        names = [match["name"] for part in [module, *needs.split()] if (match := _MODULE_FILE.search(part))]
        if names:
            table[_canonical(names[0])] = [_canonical(name) for name in names[1:]]
    return table


def _own_dependencies(module: bytes) -> list[str]:
    """What a module itself says it depends on: the modules directly needed."""
    listings = elf.modinfo(module).get("depends", [])
    return [_canonical(name) for listing in listings for name in listing.split(",") if name]


def resolve_modules(
    wishes: Iterable[ModuleWish], *, folder: Path | None, vmlinux: Callable[[], bytes], release: str
) -> list[Module]:
    """The modules that fulfil `wishes`, each after all it depends on: the order to insmod in.

    `folder` is ``lib/modules/RELEASE`` (with or without ``modules.dep``: a package before its installation has
    none, then each module's own ``depends=`` is followed). Without a folder every driver has to be built in,
    which is looked up in the uncompressed kernel. Wishes that are built in need no module; wishes that are not
    required and not to be had are left out. UsageError names the required ones that are missing.
    """
    builtin = _module_names(folder / "modules.builtin") if folder else set()
    index = _index(folder) if folder else {}
    recorded = _recorded_dependencies(folder) if folder else {}
    contents: dict[str, bytes] = {}
    chains: dict[str, tuple[str, ...]] = {}
    wished_by: dict[str, set[str]] = {}

    def order(name: str) -> list[str] | None:
        """`name` after what it needs; None if something of that is not to be had."""
        if name in builtin:
            return []
        if name not in index:
            return None
        if name not in contents:
            contents[name] = _read_module(index[name])
        needs = recorded[name] if name in recorded else _own_dependencies(contents[name])
        names: list[str] = []
        for need in needs:
            chain = order(need)
            if chain is None:
                return None
            names += [link for link in chain if link not in names]
        chains[name] = tuple(names)
        return [*names, name]

    missing: list[str] = []
    for wish in wishes:
        chain = order(_canonical(wish.name))
        if chain is not None:
            for name in chain:
                wished_by.setdefault(name, set()).add(wish.name)
            continue
        marker = (wish.marker or wish.name).encode() + b"\0"
        if wish.required and (builtin or marker not in vmlinux()):
            missing.append(wish.name)
    if missing:
        where = f"in {folder}" if folder else "as modules (no modules folder was given)"
        raise UsageError(
            f"kernel {release} has no {', '.join(missing)}: neither built in nor {where}",
            hint="give the lib/modules/RELEASE folder that belongs to this kernel, or build these drivers in",
        )
    return [
        Module(
            name=name,
            needs=chains[name],
            content=contents[name],
            vermagic=next(iter(elf.modinfo(contents[name]).get("vermagic", [])), ""),
            wished_by=frozenset(wishers),
        )
        for name, wishers in wished_by.items()
    ]
