"""Hostile bundles made by hand: the file as such, its headers, its members. `hostile_content` has the rest.

`HAND_MADE` has them all by name: each changes a sound archive in place, or gives the bytes of the whole file.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from typing import Any

import zstandard
from bundle_factory import RUN_ID, Archive, manifest_bytes, pack

Change = Callable[[Archive], bytes | None]
"""Changes an archive in place (it is packed with digests that fit), or gives the bytes of the whole file."""

HAND_MADE: dict[str, Change] = {}


def case(name: str) -> Callable[[Change], Change]:
    def keep(change: Change) -> Change:
        assert name not in HAND_MADE
        HAND_MADE[name] = change
        return change

    return keep


def cases(group: str, values: dict[str, Any], apply: Callable[[Archive, Any], bytes | None]) -> None:
    for name, value in values.items():
        case(f"{group}: {name}")(lambda archive, value=value: apply(archive, value))


# -- the file as such


def _plain(archive: Archive) -> bytes:
    archive.list_members()
    return zstandard.ZstdDecompressor().decompress(pack(archive.entries()), max_output_size=64 << 20)


def _bomb(archive: Archive, declared: int | None, real: int) -> bytes:
    chunks = zstandard.ZstdCompressor(level=1, write_content_size=declared is not None).compressobj(size=declared if declared is not None else -1)
    out = chunks.compress(b"\0" * real)
    return out + chunks.flush()


cases("file", {
    "empty": lambda a: b"",
    "four bytes": lambda a: b"\x28\xb5\x2f\xfd",
    "text": lambda a: b"#!/bin/sh\nrm -rf ~\n",
    "a plain tar": _plain,
    "gzip": lambda a: b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(40),
    "cut in the middle": lambda a: _whole(a)[: len(_whole(a)) // 2],
    "cut by one byte": lambda a: _whole(a)[:-1],
    "garbage behind it": lambda a: _whole(a) + b"garbage",
    "a second frame behind it": lambda a: _whole(a) + zstandard.ZstdCompressor().compress(b"hidden" * 100),
    "an archive behind it": lambda a: _whole(a) + _whole(a),
    "a wrong checksum": lambda a: _whole(a, checksum=True)[:-1] + b"\0",
    "no declared size": lambda a: zstandard.ZstdCompressor(write_content_size=False).compress(_plain(a)),
    "no declared size and 64 MB of zeros": lambda a: _bomb(a, None, 64 << 20),
    "a bomb of 100 MB of zeros": lambda a: _bomb(a, 100 << 20, 100 << 20),
    "a declared exabyte": lambda a: b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + bytes(40),
    "a window of gigabytes": lambda a: b"\x28\xb5\x2f\xfd\x80\xa8" + (5000).to_bytes(4, "little") + bytes(40),
    "a dictionary that nobody has": lambda a: b"\x28\xb5\x2f\xfd\x63\x01\x02\x03\x04" + bytes(40),
    "an empty frame": lambda a: zstandard.ZstdCompressor().compress(b""),
    "zeros only": lambda a: zstandard.ZstdCompressor().compress(bytes(20480)),
    "noise": lambda a: zstandard.ZstdCompressor().compress(hashlib.shake_256(b"x").digest(20480)),
}, lambda a, make: make(a))  # fmt: skip


def _whole(archive: Archive, *, checksum: bool = False) -> bytes:
    archive.list_members()
    raw = pack(archive.entries())
    if not checksum:
        return raw
    plain = zstandard.ZstdDecompressor().decompress(raw, max_output_size=64 << 20)
    return zstandard.ZstdCompressor(write_checksum=True).compress(plain)


# -- headers


def _header(archive: Archive, change: Callable[[tarfile.TarInfo], None], *, at: int = 1, form: int = tarfile.USTAR_FORMAT) -> bytes:
    archive.list_members()
    entries = archive.entries()
    change(entries[at][0])
    return pack(entries, form=form)


def _set(**values: Any) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return change


cases("header", {
    "a symbolic link": _set(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
    "a symbolic link upwards": _set(type=tarfile.SYMTYPE, linkname="../../x", size=0),
    "a hard link": _set(type=tarfile.LNKTYPE, linkname="/etc/shadow", size=0),
    "a character device": _set(type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": _set(type=tarfile.BLKTYPE, devmajor=8),
    "a pipe": _set(type=tarfile.FIFOTYPE),
    "a folder": _set(type=tarfile.DIRTYPE),
    "a contiguous file": _set(type=tarfile.CONTTYPE),
    "a file of the old kind": _set(type=tarfile.AREGTYPE),
    "a sparse file": _set(type=tarfile.GNUTYPE_SPARSE),
    "an unknown kind": _set(type=b"Z"),
    "setuid": _set(mode=0o4755),
    "executable": _set(mode=0o755),
    "another owner": _set(uid=1000),
    "a named owner": _set(uname="root"),
    "a time": _set(mtime=1_700_000_000),
    "a link name in a file": _set(linkname="/etc/passwd"),
    "an absolute name": _set(name="/etc/cron.d/x.txt"),
    "a name upwards": _set(name=f"{RUN_ID}/../../x.txt"),
    "a name that only goes up": _set(name="../x.txt"),
    "a name in another folder": _set(name="other/x.txt"),
    "no folder": _set(name="x.txt"),
    "a hidden name": _set(name=f"{RUN_ID}/.bashrc.txt"),
    "a name with a dot folder": _set(name=f"{RUN_ID}/./x.txt"),
    "a name with an empty folder": _set(name=f"{RUN_ID}//x.txt"),
    "a deep name": _set(name=f"{RUN_ID}/a/b/c/d/x.txt"),
    "a name that ends in a slash": _set(name=f"{RUN_ID}/x.txt/"),
    "a name with a backslash": _set(name=f"{RUN_ID}/..\\x.txt"),
    "a name with a line break": _set(name=f"{RUN_ID}/x\n.txt"),
    "a name with an escape": _set(name=f"{RUN_ID}/\x1b[2J.txt"),
    "a script": _set(name=f"{RUN_ID}/run.sh"),
    "a library": _set(name=f"{RUN_ID}/lib.so"),
    "a Python file": _set(name=f"{RUN_ID}/conftest.py"),
    "no suffix": _set(name=f"{RUN_ID}/id_ed25519"),
    "a second manifest": _set(name=f"{RUN_ID}/manifest.json"),
    "a size too large": lambda info: setattr(info, "size", info.size + 5000),
    "a size too small": lambda info: setattr(info, "size", max(0, info.size - 600)),
    "a size of eight gigabytes": _set(size=8 * 1024**3 - 1),
}, _header)  # fmt: skip
cases("first header", {
    "a symbolic link": _set(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
    "a size of half a gigabyte": _set(size=512 << 20),
    "another folder": _set(name="other/manifest.json"),
    "not the manifest": _set(name=f"{RUN_ID}/scenario.toml"),
}, lambda a, change: _header(a, change, at=0))  # fmt: skip
cases("header form", {
    "extended (PAX) for a long name": (tarfile.PAX_FORMAT, _set(name=f"{RUN_ID}/{'x' * 120}.txt")),
    "extended (PAX) for a huge size": (tarfile.PAX_FORMAT, _set(size=1 << 40)),
    "extended (PAX) with a path": (tarfile.PAX_FORMAT, _set(pax_headers={"path": "../../etc/x"})),
    "extended (PAX) with a size": (tarfile.PAX_FORMAT, _set(pax_headers={"size": "99999999999999999999999"})),
    "GNU for a long name": (tarfile.GNU_FORMAT, _set(name=f"{RUN_ID}/{'x' * 120}.txt")),
    "GNU for a long link": (tarfile.GNU_FORMAT, _set(type=tarfile.SYMTYPE, linkname="x" * 120)),
    "GNU with a size in base 256": (tarfile.GNU_FORMAT, _set(size=1 << 60)),
    "GNU with a negative time": (tarfile.GNU_FORMAT, _set(mtime=-1)),
    "GNU throughout": (tarfile.GNU_FORMAT, _set()),
}, lambda a, given: _header(a, given[1], form=given[0]))  # fmt: skip


def _raw_header(archive: Archive, at: int, value: bytes, *, mend: bool = True) -> bytes:
    """Write into the bytes of the second header, with a checksum that fits unless it is not to be mended."""
    plain = bytearray(_plain(archive))
    first = 512 + -(-len(manifest_bytes(archive.manifest)) // 512) * 512
    header = plain[first : first + 512]
    header[at : at + len(value)] = value
    if mend:
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    plain[first : first + 512] = header
    return zstandard.ZstdCompressor().compress(bytes(plain))


cases("raw header", {
    "a wrong checksum": lambda a: _raw_header(a, 0, b"X", mend=False),
    "a size that is no number": lambda a: _raw_header(a, 124, b"zzzzzzzzzzz\0"),
    "a negative size": lambda a: _raw_header(a, 124, b"\xff" * 12),
    "a size in base 256": lambda a: _raw_header(a, 124, b"\x80" + b"\0" * 3 + b"\xff" * 8),
    "a size with blanks": lambda a: _raw_header(a, 124, b"        777\0"),
    "another magic": lambda a: _raw_header(a, 257, b"ustar  \0"),
    "no magic": lambda a: _raw_header(a, 257, bytes(8)),
    "a prefix upwards": lambda a: _raw_header(a, 345, b"../.."),
    "a name that is no ASCII": lambda a: _raw_header(a, len(RUN_ID) + 1, b"\xff\xfe"),
    "something in the padding": lambda a: _raw_header(a, 500, b"hidden"),
    "zeros in place of it": lambda a: _raw_header(a, 0, bytes(512), mend=False),
    "something behind a NUL in the name": lambda a: _raw_header(a, 90, b"hidden"),
}, lambda a, make: make(a))  # fmt: skip

# -- members


@case("members: one more than announced")
def _(archive: Archive) -> bytes:
    archive.list_members()
    info = tarfile.TarInfo(f"{RUN_ID}/more.txt")
    info.size, info.mode = 3, 0o644
    return pack([*archive.entries(), (info, b"abc")])


@case("members: one less than announced")
def _(archive: Archive) -> bytes:
    archive.list_members()
    return pack(archive.entries()[:-1])


@case("members: one twice")
def _(archive: Archive) -> bytes:
    archive.list_members()
    entries = archive.entries()
    return pack([*entries, entries[-1]])


@case("members: announced twice")
def _(archive: Archive) -> bytes:
    archive.list_members()
    archive.manifest["members"].append(archive.manifest["members"][-1])
    return pack(archive.entries())


@case("members: twice but for case")
def _(archive: Archive) -> bytes:
    archive.files["Host.json"] = b"{}"
    archive.list_members()
    return pack(archive.entries())


@case("members: in another order")
def _(archive: Archive) -> bytes:
    archive.list_members()
    entries = archive.entries()
    return pack([entries[0], *reversed(entries[1:])])


@case("members: before the manifest")
def _(archive: Archive) -> bytes:
    archive.list_members()
    entries = archive.entries()
    return pack([entries[1], entries[0], *entries[2:]])


@case("members: another content than its digest")
def _(archive: Archive) -> bytes:
    archive.list_members()
    entries = archive.entries()
    info, data = entries[3]
    entries[3] = (info, bytes([data[0] ^ 1]) + data[1:])
    return pack(entries)


@case("members: something hidden behind the end of one")
def _(archive: Archive) -> bytes:
    archive.files["log.txt"] = b"x"
    archive.list_members()
    entries = archive.entries()
    return pack([(info, data + b"hidden" if info.name.endswith("log.txt") else data) for info, data in entries])


@case("members: something hidden behind the end of all")
def _(archive: Archive) -> bytes:
    archive.list_members()
    return pack(archive.entries(), behind=b"hidden")


@case("members: zeros without end behind it")
def _(archive: Archive) -> bytes:
    archive.list_members()
    return pack(archive.entries(), behind=bytes(64 << 20))


@case("members: no end")
def _(archive: Archive) -> bytes:
    archive.list_members()
    plain = b"".join(info.tobuf(format=tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) for info, data in archive.entries())
    return zstandard.ZstdCompressor().compress(plain)


cases("members: without", {name: name for name in ("scenario.toml", "result.json", "run.json")}, lambda a, name: a.files.pop(name) and None)
