# SPDX-License-Identifier: GPL-2.0-or-later
"""The little of ELF that building an image needs: notes of a kernel, module information, needed libraries.

Pure functions over bytes; 64-bit little endian only. Anything else raises ElfError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from harness.errors import TestbedError

__all__ = ["ElfError", "interpreter", "modinfo", "needed_libraries", "notes"]

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB = 1, 5


class ElfError(TestbedError):
    """These bytes are not the ELF file that was expected."""


def _check(image: bytes) -> None:
    if len(image) < 64 or image[:6] != b"\x7fELF\x02\x01":
        raise ElfError("not a 64-bit little-endian ELF file")


def _segments(image: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, file offset, virtual address, bytes in the file) of each program header."""
    _check(image)
    table, size, count = (
        struct.unpack_from("<Q", image, 32)[0],
        *struct.unpack_from("<HH", image, 54),
    )
    for index in range(count):
        kind, _flags, offset, address, _physical, length = struct.unpack_from("<IIQQQQ", image, table + index * size)
        yield kind, offset, address, length


def _sections(image: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, file offset, bytes) of each section."""
    _check(image)
    table = struct.unpack_from("<Q", image, 40)[0]
    size, count, names_index = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + index * size) for index in range(count)]
    if not headers:
        return
    names_at = headers[names_index][4]
    for name_at, _kind, _flags, _address, offset, length in headers:
        start = names_at + name_at
        yield image[start : image.index(b"\0", start)].decode("ascii", "replace"), offset, length


def notes(image: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(owner, type, description) of every note in the program headers."""
    for kind, start, _address, length in _segments(image):
        if kind != _PT_NOTE:
            continue
        at, end = start, start + length
        while at + 12 <= end:
            name_bytes, data_bytes, note_type = struct.unpack_from("<III", image, at)
            name_at = at + 12
            data_at = name_at + (name_bytes + 3 & ~3)
            yield (
                image[name_at : name_at + name_bytes].rstrip(b"\0").decode("ascii", "replace"),
                note_type,
                image[data_at : data_at + data_bytes],
            )
            at = data_at + (data_bytes + 3 & ~3)


def modinfo(module: bytes) -> dict[str, list[str]]:
    """The ``.modinfo`` entries of a kernel module, by key, in file order."""
    entries: dict[str, list[str]] = {}
    for name, offset, length in _sections(module):
        if name != ".modinfo":
            continue
        for entry in module[offset : offset + length].split(b"\0"):
            key, separator, value = entry.decode("utf-8", "replace").partition("=")
            if separator:
                entries.setdefault(key, []).append(value)
    return entries


def interpreter(image: bytes) -> str | None:
    """The dynamic loader a program asks for; None for a static one."""
    for kind, offset, _address, length in _segments(image):
        if kind == _PT_INTERP:
            return image[offset : offset + length].rstrip(b"\0").decode()
    return None


def needed_libraries(image: bytes) -> list[str]:
    """The sonames in DT_NEEDED, in file order; empty for a static program."""
    segments = list(_segments(image))
    dynamic = next(((offset, length) for kind, offset, _, length in segments if kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return []
    name_offsets: list[int] = []
    strings_address = 0
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<qQ", image, at)
        if tag == _DT_NEEDED:
            name_offsets.append(value)
        elif tag == _DT_STRTAB:
            strings_address = value
    for kind, offset, address, length in segments:
        if kind == _PT_LOAD and address <= strings_address < address + length:
            strings = offset + strings_address - address
            return [image[strings + name : image.index(b"\0", strings + name)].decode() for name in name_offsets]
    raise ElfError("the dynamic string table lies in no segment")
