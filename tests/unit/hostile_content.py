"""Hostile bundles made by hand: what stands in the manifest, the scenario, recipes and patches, and the records of the run."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from typing import Any

import msgspec
from bundle_factory import Archive, manifest_bytes, pack
from hostile_archives import case, cases

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


def with_scenario(archive: Archive, text: str) -> None:
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
}, with_scenario)  # fmt: skip
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


def patched(archive: Archive, content: bytes, *, name: str | None = None) -> bytes:
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
}, patched)  # fmt: skip


@case("patch: of another digest than its name")
def _(archive: Archive) -> bytes:
    return patched(archive, PATCH, name=f"patches/{'0' * 64}.patch")


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
