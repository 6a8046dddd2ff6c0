"""What is taken for a QEMU and what isn't, and how each refusal reads."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from harness.builds import QemuInstall, list_qemus, resolve_qemu
from harness.builds._install import Record, load, save, version_of
from harness.builds._layout import Layout, checked_name
from harness.builds._probe import check_binary
from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, TestbedError, UsageError


def elf(path: Path, *, machine: int = 62, width: int = 2, kind: int = 3, big: bool = False, mode: int = 0o755) -> Path:
    """A file with an ELF header and nothing else."""
    order = ">" if big else "<"
    path.write_bytes(struct.pack(f"{order}4sBB10xHH", b"\x7fELF", width, 2 if big else 1, kind, machine) + b"\0" * 64)
    path.chmod(mode)
    return path


def compiled(path: Path, program: str) -> Path:
    subprocess.run(["gcc", "-x", "c", "-", "-o", str(path)], input=program, text=True, check=True)
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"machine": 183}, "built for aarch64, not for x86_64"),
        ({"machine": 3, "width": 1}, "built for i386"),
        ({"machine": 22, "big": True}, "built for s390"),
        ({"machine": 999}, "built for ELF machine 999"),
        ({"kind": 1}, "not a program"),
        ({"mode": 0o644}, "not executable"),
    ],
)
def test_an_elf_file_that_is_no_program_for_this_host_is_refused(tmp_path, header, words):
    with pytest.raises(UsageError, match=words) as caught:
        check_binary(elf(tmp_path / "qemu", **header))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"#!/bin/sh\nexec qemu-system-x86_64\n", "is a script"), (b"", "not an ELF"), (b"\x7fELF", "not an ELF"),
     (b"MZ\x90\0", "not an ELF")],
)
def test_a_file_that_is_no_binary_is_refused(tmp_path, content, words):
    path = tmp_path / "qemu"
    path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(UsageError, match=words):
        resolve_qemu(path, tmp_path / "cache")


def test_a_path_that_is_missing_or_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        resolve_qemu(tmp_path / "absent", tmp_path)
    with pytest.raises(UsageError, match="is a folder"):
        resolve_qemu(tmp_path, tmp_path)


def test_another_program_is_not_taken_for_qemu(tmp_path):
    other = compiled(tmp_path / "other", '#include <stdio.h>\nint main(void) { puts("hello 1.0"); return 0; }')
    with pytest.raises(UsageError, match="not QEMU's system emulator"):
        resolve_qemu(other)
    target = compiled(tmp_path / "arm", '#include <stdio.h>\nint main(int c, char **v)'
                      '{ puts(c == 2 ? "QEMU emulator version 9.0.0" : "virt"); return 0; }')
    with pytest.raises(UsageError, match="no x86 PC machine"):
        resolve_qemu(target)


def test_a_binary_that_cannot_run_says_why(tmp_path):
    broken = compiled(tmp_path / "broken", '#include <stdio.h>\nint main(void)'
                      '{ fputs("error while loading shared libraries: libslirp.so.0\\n", stderr); return 127; }')
    with pytest.raises(EnvironmentLackError, match=r"libslirp\.so\.0"):
        resolve_qemu(broken)
    with pytest.raises(EnvironmentLackError, match="can't be started"):
        resolve_qemu(elf(tmp_path / "empty"))  # a header and no program


def test_unknown_names_get_the_nearest_known_one(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'reference'"):
        resolve_qemu("referense", tmp_path)
    with pytest.raises(EnvironmentLackError, match="not built yet") as caught:
        resolve_qemu("reference", tmp_path)
    assert "switchover qemu build reference" in str(caught.value)
    with pytest.raises(EnvironmentLackError, match="not fetched yet"):
        resolve_qemu("7.2", tmp_path)


def test_what_cannot_be_read_is_left_out_of_the_list_and_explained_when_asked_for(tmp_path):
    layout = Layout(tmp_path)
    entry = layout.store / "0123"
    entry.mkdir(parents=True)
    layout.name("mine", entry)
    (entry / "record.json").write_text("{}")
    assert [each.name for each in list_qemus(tmp_path) if each.name != "system"] == []
    with pytest.raises(TestbedError, match=r"record\.json"):
        resolve_qemu("mine", tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "a b", "system"])
def test_names_that_could_not_be_told_from_paths_or_options_are_refused(name):
    with pytest.raises(UsageError):
        checked_name(name)


def test_a_record_reads_back_and_its_paths_follow_the_folder(tmp_path):
    record = Record(
        kind="fetched", build_id="ab", version="7.2.22", origin="Debian", binary="usr/bin/qemu",
        loader="usr/bin/ld.so", library_dirs=("lib", "usr/lib"), data_dirs=("usr/share/seabios", "/elsewhere"),
        details={"packages": ["a", "b"]},
    )
    save(record, tmp_path)
    assert load(tmp_path) == record
    install = record.installed(Path("/x"), name="7.2")
    assert install == QemuInstall(
        name="7.2", argv_prefix=("/x/usr/bin/ld.so", "--library-path", "/x/lib:/x/usr/lib", "/x/usr/bin/qemu"),
        data_dirs=("/x/usr/share/seabios", "/elsewhere"), version="7.2.22", build_id="ab", origin="Debian",
        path="/x/usr/bin/qemu",
    )
    assert install.start[-4:] == ["-L", "/x/usr/share/seabios", "-L", "/elsewhere"]


def test_versions_are_read_from_what_qemu_prints():
    assert version_of("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == "7.2.22"
    assert version_of("qemu-img version 7.2.22") == ""


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SWITCHOVER_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("SWITCHOVER_CACHE", "")
    assert cache_dir() == Path("/xdg/switchover")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/me/.cache/switchover")
