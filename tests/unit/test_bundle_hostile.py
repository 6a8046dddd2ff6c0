"""Hostile bundles: each is refused with one line, leaves no file, and runs nothing.

`HAND_MADE` lists them by name: more than 230 made by hand in groups (the file, its headers, its members, the manifest, the scenario, recipes and
patches, the records of the run). Hypothesis adds flipped bits, cut ends and whatever else it finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from bundle_factory import RUN_ID, Archive, bundle_bytes, manifest_bytes, pack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.analysis.records import _HEADER
from harness.bundle import open_bundle, open_run
from harness.bundle.archive import encode_manifest, read_archive, sealed
from harness.bundle.format import Manifest
from harness.cli import main
from harness.errors import BundleError, SwitchoverError
from harness.store.analyze import analyze_run

PATCH = b"""From: Some Body <some@example.org>
Subject: [PATCH] net: say more

---
diff --git a/net/net.c b/net/net.c
index 1234567..89abcde 100644
--- a/net/net.c
+++ b/net/net.c
@@ -1,3 +1,3 @@
 /* one */
-/* two */
+/* three */
--
2.39.5
"""

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

# -- the manifest


def _manifest(archive: Archive, change: Callable[[dict[str, Any]], Any]) -> bytes:
    archive.list_members()
    entries = archive.entries()
    change(archive.manifest)
    return _with_manifest(entries, manifest_bytes(archive.manifest))


def _member(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["members"][0].update(values)


@case("manifest: a key twice")
def _(archive: Archive) -> bytes:
    archive.list_members()
    raw = manifest_bytes(archive.manifest)
    return _with_manifest(archive.entries(), raw.replace(b'"kind":', b'"run_id": "other",\n "kind":', 1))


@case("manifest: laid out in another way")
def _(archive: Archive) -> bytes:
    archive.list_members()
    return _with_manifest(archive.entries(), msgspec.json.encode(archive.manifest))


cases("manifest", {
    "a newer schema": lambda m: m.update(schema_version=2),
    "a schema from the far future": lambda m: m.update(schema_version=10**30),
    "no schema": lambda m: m.pop("schema_version"),
    "a schema of another type": lambda m: m.update(schema_version="1"),
    "another kind": lambda m: m.update(kind="tarball"),
    "no kind": lambda m: m.pop("kind"),
    "an unknown field": lambda m: m.update(command="rm -rf ~"),
    "no members": lambda m: m.pop("members"),
    "another run": lambda m: m.update(run_id="other"),
    "a run that is a path": lambda m: m.update(run_id="../x"),
    "a run with an escape": lambda m: m.update(run_id="\x1b[2J"),
    "a negative size": _member(size=-1),
    "an exabyte": _member(size=1 << 60),
    "a size with a hundred digits": _member(size=10**100),
    "a size that is a fraction": _member(size=1.5),
    "a digest that is none": _member(sha256="0"),
    "a wrong digest": _member(sha256="0" * 64),
    "a member upwards": _member(name="../x.txt"),
    "an absolute member": _member(name="/etc/x.txt"),
    "a member of an unknown kind": _member(name="x.exe"),
    "an unknown field in a member": _member(mode="0755"),
    "more than a gigabyte in all": lambda m: [each.update(size=400 << 20) for each in m["members"]],
    "ten thousand members": lambda m: m.update(members=m["members"] * 1000),
    "more sightings than runs": lambda m: m.update(seen_runs=1, seen_times=2),
    "a huge count of runs": lambda m: m.update(seen_runs=10**18),
    "an escape in the finding": lambda m: m.update(finding=["\x1b]0;owned\x07"]),
    "a finding of a megabyte": lambda m: m.update(finding=["x" * 600]),
    "an escape in what was left out": lambda m: m.update(left_out=[{"name": "x", "size": 1, "reason": "\x1b[31m"}]),
    "no QEMU": lambda m: m.pop("qemu"),
}, _manifest)  # fmt: skip


@case("manifest: no JSON")
def _(archive: Archive) -> bytes:
    return _manifest_bytes(archive, b"{")


@case("manifest: a list")
def _(archive: Archive) -> bytes:
    return _manifest_bytes(archive, b"[]")


@case("manifest: nested beyond all measure")
def _(archive: Archive) -> bytes:
    return _manifest_bytes(archive, b'{"kind":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@case("manifest: no UTF-8")
def _(archive: Archive) -> bytes:
    return _manifest_bytes(archive, b'{"kind":"\xff\xfe"}')


@case("manifest: two megabytes")
def _(archive: Archive) -> bytes:
    return _manifest_bytes(archive, b" " * (2 << 20) + b"{}")


def _manifest_bytes(archive: Archive, raw: bytes) -> bytes:
    archive.list_members()
    return _with_manifest(archive.entries(), raw)


def _with_manifest(entries: list[tuple[tarfile.TarInfo, bytes]], raw: bytes) -> bytes:
    entries[0][0].size = len(raw)
    return pack([(entries[0][0], raw), *entries[1:]])


# -- the scenario


def _scenario(archive: Archive, text: str) -> None:
    """The text takes the place of the keys that it gives."""
    archive.files["scenario.toml"] = f'name = "demo"\n{text}\n[[traffic]]\nkind = "udp"\n'.encode()


cases("scenario", {
    "a QEMU by its path": '[qemu]\nsource = "/tmp/evil"',
    "a QEMU by a relative path": '[qemu]\ndestination = "./evil"',
    "a QEMU that is an option": '[qemu]\nsource = "-version"',
    "a kernel": '[guest]\nkernel = "/boot/vmlinuz"',
    "a kernel and modules": '[guest]\nkernel = "k"\nmodules = "m"',
    "an image": '[guest]\nimage = "/etc"',
    "an image by a name": '[guest]\nimage = "x"',
    "a CPU with a file": '[guest]\ncpu = "host,file=/etc/passwd"',
    "a CPU that is an option": '[guest]\ncpu = "-monitor stdio"',
    "a CPU with a shell": '[guest]\ncpu = "$(id)"',
    "extra arguments": '[qemu]\nextra = ["-monitor", "stdio"]',
    "extra arguments of the guest": '[guest]\nargs = "-chardev file"',
    "a machine with options": '[guest]\nmachine = "q35,firmware=/etc/passwd"',
    "a memory with options": '[guest]\nmemory = "256M,maxmem=1T"',
    "a command": 'command = "rm -rf ~"',
    "an environment": '[environment]\nLD_PRELOAD = "/tmp/x.so"',
    "a program to execute in the migration": '[migration.parameters]\ncpr-exec-command = ["/bin/sh", "-c", "id"]\nmode = "cpr-exec"',
    "a program as one word": '[migration.parameters]\ncpr-exec-command = "sh"',
    "a program of a later QEMU": '[migration.parameters]\nx-run-command = 1',
    "credentials": '[migration.parameters]\ntls-creds = "tls0"',
    "a TLS host": '[migration.parameters]\ntls-hostname = "example"',
    "a parameter with a path": '[migration.parameters]\nnew-thing = "/etc/passwd"',
    "a parameter with an address": '[migration.parameters]\nnew-thing = "tcp:192.0.2.1:4444"',
    "a parameter that is a list": '[migration.parameters]\nnew-thing = ["a"]',
    "a parameter that is a table": '[migration.parameters]\nnew-thing = { a = 1 }',
    "a parameter beyond all measure": "[migration.parameters]\nmax-bandwidth = 99999999999999999999999999",
    "a parameter that is not finite": "[migration.parameters]\nmax-bandwidth = inf",
    "a transport by its address": '[migration]\ntransport = "exec:id"',
    "a capability that is a command": '[migration]\ncapabilities = ["$(id)"]',
    "an unknown mechanism": 'mechanism = "../../evil"',
    "a mechanism that is a module": 'mechanism = "os.system"',
    "a name that is a path": 'name = "../x"',
    "a description with an escape": 'description = "\\u001b[2J"',
    "an expectation with an escape": '[expect]\n"lost\\u001b[2J" = 0',
    "a number with ten thousand digits": f"[timing]\ntimeout_s = {'9' * 10_000}",
    "a time limit of centuries": "[timing]\ntimeout_s = 1e300",
    "a rate beyond all measure": "[[traffic]]\nrate_pps = 1e12",
    "a thousand queues": "[network]\nqueues = 1000",
    "a topology of other hosts": '[network]\ntopology = "ssh://root@example.com"',
    "an accelerator that is a path": 'accelerator = "/dev/kvm"',
    "a traffic that is unknown": '[[traffic]]\nkind = "exec"',
    "no TOML": "= = =",
}, _scenario)  # fmt: skip
cases("scenario file", {
    "empty": b"", "no UTF-8": b'name = "\xff"', "a NUL": b'name = "a\0b"', "two megabytes": b"#" * (2 << 20),
    "nested beyond all measure": b'name = "a"\nx = ' + b"[" * 5000 + b"]" * 5000, "JSON": b'{"name": "x"}',
}, lambda a, raw: a.files.update({"scenario.toml": raw}))  # fmt: skip

# -- recipes and patches


def _recipe(archive: Archive, change: dict[str, Any]) -> bytes:
    archive.list_members()
    archive.manifest["qemu"]["source"] |= {"kind": "build", **change}
    return pack(archive.entries())


cases("recipe", {
    "a compiler": {"options": ["--cc=/tmp/evil"]},
    "a Python": {"options": ["--python=/tmp/evil"]},
    "compiler flags": {"options": ["--extra-cflags=-fplugin=/tmp/evil.so"]},
    "a prefix": {"options": ["--prefix=/"]},
    "downloads": {"options": ["--enable-download"]},
    "another target": {"options": ["--target-list=arm-softmmu"]},
    "a command": {"options": ["--enable-kvm; id"]},
    "an option with a line break": {"options": ["--enable-kvm\nid"]},
    "a device line that is none": {"devices": ["include /etc/passwd"]},
    "a device line with a command": {"devices": ["CONFIG_X=$(shell id)"]},
    "ten thousand options": {"options": ["--enable-kvm"] * 10_000},
    "a build that is a path": {"build": "../../../../etc"},
    "a tree that is none": {"source_tree": "--upload-pack=id"},
    "an unknown kind": {"kind": "script"},
    "a patch that is not there": {"patches": [{"label": "x/1.patch", "sha256": "0" * 64}], "complete": True},
    "an escape in its name": {"name": "\x1b[2J"},
    "an escape in its origin": {"origin": "\x1b]0;x\x07"},
    "a command in place of a recipe": {"command": "make install"},
}, _recipe)  # fmt: skip


def _patched(archive: Archive, content: bytes, *, name: str | None = None) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    archive.files[name or f"patches/{digest}.patch"] = content
    archive.list_members()
    archive.manifest["qemu"]["source"] |= {"kind": "build", "complete": True, "patches": [{"label": "evil/0001.patch", "sha256": digest}]}
    return pack(archive.entries())


def _at(path: bytes) -> bytes:
    return PATCH.replace(b"a/net/net.c", b"a/" + path).replace(b"b/net/net.c", b"b/" + path)


cases("patch", {
    "upwards": _at(b"../../../etc/passwd"),
    "upwards in the middle": _at(b"net/../../../x"),
    "absolute": PATCH.replace(b"a/net/net.c", b"/etc/passwd").replace(b"b/net/net.c", b"/etc/passwd"),
    "absolute behind the prefix": _at(b"/etc/passwd"),
    "absolute in the second header only": PATCH.replace(b"+++ b/net/net.c", b"+++ /etc/passwd"),
    "upwards in the first header only": PATCH.replace(b"--- a/net/net.c", b"--- a/../net.c"),
    "into .git": _at(b".git/hooks/post-checkout"),
    "into .GIT": _at(b"net/.GIT/config"),
    "into git~1": _at(b"git~1/config"),
    "a symbolic link": PATCH.replace(b"index 1234567..89abcde 100644", b"new file mode 120000\nindex 0000000..89abcde"),
    "a submodule": PATCH.replace(b"index 1234567..89abcde 100644", b"new file mode 160000\nindex 0000000..89abcde"),
    "a file that becomes a link": PATCH.replace(b"index 1234567..89abcde 100644", b"old mode 100644\nnew mode 120000\nindex 1..2"),
    "a link by its index line": PATCH.replace(b"89abcde 100644", b"89abcde 120000"),
    "a rename upwards": PATCH.replace(b"index 1234567", b"rename from net/net.c\nrename to ../../x\nindex 1234567"),
    "a copy from outside": PATCH.replace(b"index 1234567", b"copy from ../../.ssh/id_ed25519\ncopy to x\nindex 1234567"),
    "a quoted name": PATCH.replace(b"a/net/net.c b/net/net.c", b'"a/\\056\\056/x" "b/\\056\\056/x"'),
    "a name with a blank": PATCH.replace(b"a/net/net.c b/net/net.c", b"a/net x b/net x"),
    "base64": PATCH.replace(b"\n\n---", b"\nContent-Transfer-Encoding: base64\n\n---", 1),
    "quoted-printable": PATCH.replace(b"\n\n---", b"\nContent-Transfer-Encoding: quoted-printable\n\n---", 1),
    "a mail of several parts": PATCH.replace(b"\n\n---", b'\nContent-Type: multipart/mixed; boundary="x"\n\n---', 1),
    "UTF-7": PATCH.replace(b"\n\n---", b'\nContent-Type: text/plain; charset="utf-7"\n\n---', 1),
    "binary": PATCH.replace(b"--- a/net/net.c", b"GIT binary patch\nliteral 10\n--- a/net/net.c"),
    "a NUL": PATCH + b"\0",
    "no diff": b"From: x\nSubject: y\n\nnothing\n",
    "a diff without git's header": PATCH.replace(b"diff --git a/net/net.c b/net/net.c\n", b""),
    "five megabytes": PATCH + b" \n" * (3 << 20),
    "an Index line upwards": PATCH.replace(b"diff --git", b"Index: ../../x\ndiff --git"),
}, _patched)  # fmt: skip


@case("patch: of another digest than its name")
def _(archive: Archive) -> bytes:
    return _patched(archive, PATCH, name=f"patches/{'0' * 64}.patch")


@case("patch: of no recipe")
def _(archive: Archive) -> None:
    archive.files[f"patches/{hashlib.sha256(PATCH).hexdigest()}.patch"] = PATCH


# -- what the run says of itself


def _facts(archive: Archive, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = archive.json("run.json")
    change(facts)
    archive.put_json("run.json", facts)


cases("run.json", {
    "a capture upwards": lambda f: f["captures"]["peer"].update(file="../../../../etc/passwd"),
    "an absolute capture": lambda f: f["captures"]["peer"].update(file="/dev/zero"),
    "a capture that is not there": lambda f: f["captures"]["peer"].update(file="capture/x.pcapng"),
    "frames of the host": lambda f: f["migrations"][0].update(stranded_file="/etc/shadow"),
    "passed frames of the host": lambda f: f["migrations"][0].update(passed_file="../x"),
    "a machine that is a path": lambda f: f["migrations"][0].update(source="../../x"),
    "a capture called by a path": lambda f: f["captures"].update({"../x": f["captures"]["peer"]}),
    "a stream that is a path": lambda f: f["streams"][0].update(name="../x"),
    "a stream without end": lambda f: f["streams"][0].update(rate_pps=1e300),
    "a stream of rate 0": lambda f: f["streams"][0].update(rate_pps=0),
    "a stream with a huge number": lambda f: f["streams"][0].update(id=1 << 62),
    "a negative stream": lambda f: f["streams"][0].update(id=-1),
    "a time beyond all measure": lambda f: f.update(traffic_end_ns=10**40),
    "a count beyond all measure": lambda f: f.update(figures={"x": 1e300}),
    "a newer schema": lambda f: f.update(schema_version=2),
    "an unknown field": lambda f: f.update(exec="id"),
    "another run": lambda f: f.update(run_id="other"),
    "an escape in a note": lambda f: f.update(notes=["\x1b]0;owned\x07"]),
    "an escape in the failure": lambda f: f.update(failure="\x1b[2J"),
    "text in place of numbers": lambda f: f.update(nonce="x"),
}, _facts)  # fmt: skip


def _result(archive: Archive, change: Callable[[dict[str, Any]], Any]) -> None:
    result = archive.json("result.json")
    change(result)
    archive.put_json("result.json", result)


cases("result.json", {
    "a newer schema": lambda r: r.update(schema_version=9),
    "an unknown verdict": lambda r: r.update(verdict="owned"),
    "an escape in an expectation": lambda r: r.update(expectations=["\x1b[2J"]),
    "a count beyond all measure": lambda r: r["streams"][0].update(lost=10**30),
    "an expectation that can't be meant": lambda r: r["scenario"].update(expect={"no.such.key": "?"}),
    "another run": lambda r: r.update(run_id="other"),
    "no streams field": lambda r: r.pop("streams"),
}, _result)  # fmt: skip
cases("result.json file", {"no JSON": b"{", "a list": b"[]", "empty": b"", "null": b"null", "a number": b"1e999"},
      lambda a, raw: a.files.update({"result.json": raw}))  # fmt: skip


cases("texts", {
    "an escape in the timeline": ("events.jsonl", b'{"t_ns":1,"source":"m0","name":"trace:qemu","data":{"text":"\\u001b[2J"}}\n'),
    "a timeline that is none": ("events.jsonl", b"{\n"),
    "an escape in a trace": ("trace-m0.jsonl", b'{"t_ns":1,"source":"m0","name":"trace:x\\u0007"}\n'),
    "a trace nested beyond all measure": ("trace-m0.jsonl", b"[" * 100_000 + b"]" * 100_000),
    "an escape in a transcript": ("qmp-m0.jsonl", b'{"\\u001b]0;x": 1}\n'),
    "an escape in a console": ("console-m0.log", b"ok\n\x1b[31mred\n"),
    "an escape in the log": ("log.txt", b"\x9b2J"),
    "host facts that are none": ("host.json", b"{'kernel': 1}"),
    "an escape in the command line": ("argv-m0.json", b'["qemu", "\\u009b"]'),
}, lambda a, given: a.files.update({given[0]: given[1]}))  # fmt: skip
cases("scenario of", {"run.json": "run.json", "result.json": "result.json"},
      lambda a, name: a.put_json(name, a.json(name) | {"scenario": a.json(name)["scenario"] | {"mechanism": "netpass"}}))  # fmt: skip


class Sound(bytes):
    """A sound bundle, which a failing test doesn't print."""

    def __repr__(self) -> str:
        return "<a sound bundle>"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    return Sound(bundle_bytes(tmp_path_factory.mktemp("sound")))


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, request):
    """No process may be started in this file."""

    def refuse(*words: Any, **_: Any) -> None:
        pytest.fail(f"a process was started: {words}")

    if "runs_processes" not in request.keywords:
        for owner, name in ((subprocess, "Popen"), (os, "system"), (os, "fork"), (os, "posix_spawn"), (os, "execve")):
            monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def empty_place(tmp_path, monkeypatch):
    """Folders for the working directory, temporary files, cache and results, all empty."""
    for name in ("work", "tmp", "cache", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("SWITCHOVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SWITCHOVER_RESULTS", str(tmp_path / "results"))
    return tmp_path


def refused(raw: bytes, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """Give the bundle to a command; the one line that it says."""
    path = place / "evil.tar.zst"
    path.write_bytes(raw)
    monkeypatch.setattr(sys, "argv", ["switchover", *(str(path) if word == "BUNDLE" else word for word in command)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 4, err
    assert out == ""
    assert err.startswith("switchover: evil.tar.zst: ")
    assert err.count("\n") == 1, err
    assert err[:-1].isprintable()
    assert len(err) < 500
    left = [file for name in ("work", "tmp", "cache", "results") for file in (place / name).rglob("*")]
    assert left == []
    return err


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_hostile_bundle_is_refused_in_one_line(name, sound, empty_place, monkeypatch, capsys):
    archive = Archive(sound)
    raw = HAND_MADE[name](archive)
    if raw is None:
        archive.list_members()
        raw = pack(archive.entries())
    said = refused(sealed(raw), empty_place, monkeypatch, capsys, ["why", "BUNDLE", "udp", "3"])
    assert "seal" not in said


SOME = ("file: a bomb of 100 MB of zeros", "header: a symbolic link upwards", "scenario: a QEMU by its path", "patch: upwards", "texts: an escape in the log")


@pytest.mark.parametrize("command", [["replay", "BUNDLE", "--yes", "--build"], ["report", "BUNDLE"], ["analyze", "BUNDLE"], ["analyze", "BUNDLE", "--json"]])
@pytest.mark.parametrize("name", SOME)
def test_every_command_that_takes_a_bundle_refuses_it_alike(name, command, sound, empty_place, monkeypatch, capsys):
    archive = Archive(sound)
    raw = HAND_MADE[name](archive)
    if raw is None:
        archive.list_members()
        raw = pack(archive.entries())
    refused(sealed(raw), empty_place, monkeypatch, capsys, command)


def test_there_are_two_hundred_of_them():
    assert len(HAND_MADE) >= 200


def test_what_the_hand_made_ones_are_made_of_is_accepted_unchanged(sound, tmp_path):
    archive = Archive(sound)
    archive.list_members()
    for number, raw in enumerate((sound, sealed(pack(archive.entries())), sealed(_patched(Archive(sound), PATCH)))):
        path = tmp_path / f"{number}.tar.zst"
        path.write_bytes(raw)
        with open_bundle(path) as bundle:
            assert bundle.manifest.run_id == RUN_ID


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "device"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "x.tar.zst"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(BundleError), open_bundle(path):
        pass


def _flipped(raw: bytes, bits: Iterable[int]) -> bytes:
    changed = bytearray(raw)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _refusal(raw: bytes) -> str | None:
    """What is said about a bundle; None when it is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar.zst"
        path.write_bytes(raw)
        try:
            with open_bundle(path):
                return None
        except BundleError as refusal:
            return str(refusal)


def test_every_flipped_bit_of_a_file_is_refused_be_it_one_that_unpacks_to_the_same(sound):
    """All bits of the frame's head, its end and the seal; of the rest one bit in every seventh byte."""
    head, end = range(32 * 8), range((len(sound) - 64) * 8, len(sound) * 8)
    for bit in (*head, *range(32 * 8, end.start, 57), *end):
        with pytest.raises(BundleError):
            read_archive(io.BytesIO(_flipped(sound, [bit])), label="x")


def test_a_seal_over_a_frame_with_an_odd_head_is_refused_or_unpacks_to_the_same(sound):
    """What the seal alone would find: bits of the compressed form that mean nothing."""
    frame = sound[: -len(sealed(b""))]
    manifest = read_archive(io.BytesIO(sound), label="x")
    same = 0
    for bit in (*range(18 * 8), *range((len(frame) - 8) * 8, len(frame) * 8)):
        with contextlib.suppress(BundleError):
            assert read_archive(io.BytesIO(sealed(_flipped(frame, [bit]))), label="x") == manifest
            same += 1
    assert same < 18 * 8


@pytest.mark.parametrize("cut", [1, 20, 39, 40, 41, 44, 60, 5000])
def test_a_cut_end_is_refused(sound, cut):
    assert "seal" in str(_refusal(sound[:-cut]))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_flipped_bits_that_were_packed_and_sealed_again_are_refused_or_are_words_of_the_manifest(sound, data):
    """The manifest has the digests of all the rest, and nothing but the seal has its own."""
    plain = zstandard.ZstdDecompressor().decompress(sound, max_output_size=64 << 20)
    manifest, members = _read(sound)
    bits = data.draw(st.sets(st.integers(0, len(plain) * 8 - 1) | st.integers(0, (1024 + len(encode_manifest(manifest))) * 8), min_size=1, max_size=3))
    raw = sealed(zstandard.ZstdCompressor(level=1).compress(_flipped(plain, bits)))
    said = _refusal(raw)
    if said is None:
        found, content = _read(raw)
        assert content == members
        assert found.members == manifest.members
        assert found != manifest
        assert all(512 * 8 <= bit < (512 + len(encode_manifest(manifest))) * 8 for bit in bits)
    else:
        assert said.isprintable()


def _read(raw: bytes) -> tuple[Manifest, dict[str, bytes]]:
    members: dict[str, bytes] = {}
    return read_archive(io.BytesIO(raw), label="x", sink=members.__setitem__), members


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_records_with_anything_in_them_are_analysed_or_refused(sound, data):
    """Values of run.json and bytes of the raw files are replaced, digests fit: a clear error or an analysis, nothing else."""
    archive = Archive(sound)
    if data.draw(st.booleans()):
        facts = archive.json("run.json")
        holder, key = data.draw(st.sampled_from(sorted(_places(facts), key=lambda place: str(place[1]))))
        holder[key] = data.draw(_JSON | st.integers(-(1 << 64), 1 << 64))
        archive.put_json("run.json", facts)
    else:
        name = data.draw(st.sampled_from([name for name in sorted(archive.files) if name.endswith((".rec", ".pcapng"))]))
        raw = bytearray(archive.files[name])
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        archive.files[name] = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, _HEADER.size, 5, 0]))])
    archive.list_members()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar.zst"
        path.write_bytes(sealed(pack(archive.entries())))
        said = ""
        try:
            with open_run(path) as run:
                analyze_run(run)
        except SwitchoverError as refusal:
            said = str(refusal)
        assert folder not in said
        assert said == "" or said.isprintable()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in children:
            found.append((item, key))
            pending.append(child)
    return found


def test_a_bundle_whose_file_changes_while_it_is_read_is_refused(sound, tmp_path, monkeypatch):
    from harness.bundle import opening

    path = tmp_path / "x.tar.zst"
    path.write_bytes(sound)
    archive = Archive(sound)
    _scenario(archive, '[qemu]\nsource = "/tmp/evil"')
    archive.list_members()
    other, real, calls = sealed(pack(archive.entries())), opening.read_archive, []

    def swap(file: io.BufferedReader, **words: Any) -> Any:
        calls.append(1)
        return real(io.BytesIO(other) if len(calls) == 2 else file, **words)

    monkeypatch.setattr(opening, "read_archive", swap)
    with pytest.raises(BundleError, match="may not give that"), open_bundle(path):
        pass
    assert len(calls) == 2


def test_words_of_a_bundle_stay_words_in_the_page(sound, empty_place, monkeypatch, capsys):
    """Everything printable is allowed in a note; in HTML it must not become markup."""
    script = "</svg></style><script>alert(1)</script><img src=x onerror=alert(2)>"
    archive = Archive(sound)
    for name in ("run.json", "result.json"):
        document = archive.json(name)
        document["notes"] = [script]
        document["scenario"]["description"] = script
        document["host"] = {"kernel": script, "distribution": script}
        document["guest"] = {"kernel": script, "image": script}
        archive.put_json(name, document)
    archive.files["scenario.toml"] = archive.files["scenario.toml"].replace(b'description = ""', b"description = " + msgspec.json.encode(script), 1)
    event = {"t_ns": archive.json("run.json")["traffic_start_ns"] + 5_000_000, "source": script, "name": script, "data": {"status": script}}
    archive.files["events.jsonl"] = b"".join(msgspec.json.encode(event | {"name": name}) + b"\n" for name in (script, "MIGRATION", "STOP", "FDB"))
    archive.list_members()
    path = empty_place / "x.tar.zst"
    path.write_bytes(sealed(pack(archive.entries())))
    monkeypatch.setattr(sys, "argv", ["switchover", "report", str(path), "--output", str(empty_place / "x.html")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None), capsys.readouterr().err
    page = (empty_place / "x.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
