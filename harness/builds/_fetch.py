"""Debian's own QEMU packages of several releases, each in a prefix with all its libraries."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.builds import _probe
from harness.builds._apt import PrivateApt, Suite, belongs
from harness.builds._install import QemuInstall, Record, digest, load, save
from harness.builds._layout import Layout, exclusive, saying_disk_full
from harness.builds._process import Progress, run, silent
from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, UsageError

__all__ = ["FETCHABLE", "fetch", "firmware"]

#: QEMU series by the Debian release that has it.
FETCHABLE = {"7.2": Suite("bookworm"), "10.0": Suite("trixie"), "11.1": Suite("trixie", backports=True)}
_PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios", "ipxe-qemu")
_FIRMWARE_PACKAGES = ("seabios", "qemu-system-data")
_FIRMWARE_SUITE = Suite("trixie")
_DATA_DIRS = ("usr/share/seabios", "usr/share/qemu", "usr/lib/ipxe/qemu")
_BINARY = "usr/bin/qemu-system-x86_64"
# QEMU finds its modules by the folder of /proc/self/exe, which is the loader's when a loader starts it:
# so the prefix' own loader gets a second name beside the binary
_LOADER = "usr/bin/qemu-ld.so"
_LOADER_NAMES = ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2",
                 "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
_USELESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "usr/share/lintian",
            "usr/share/info", "etc", "var")
_NEED_BYTES = 1 << 30


def fetch(version: str, *, cache: Path | None = None, progress: Progress = silent) -> QemuInstall:
    """Fetch Debian's QEMU `version` (a key of `FETCHABLE`) into the cache; afterwards it is known by that name.

    A repeat takes what the mirror has now; with no network the one in the cache stays as it is, and the error says
    that it couldn't be renewed. Nothing of the host changes. It was started once before this returns.
    """
    if version not in FETCHABLE:
        raise UsageError(f"no such QEMU to fetch: {version!r}", hint=f"one of {', '.join(FETCHABLE)}")
    layout = Layout(cache or cache_dir())
    with saying_disk_full(layout.cache), exclusive(layout, progress=progress) as lock:
        layout.require_free(_NEED_BYTES)
        apt = PrivateApt(layout.apt, FETCHABLE[version], progress=progress, keep_fds=(lock,))
        apt.update()
        offered = apt.versions("qemu-system-x86")
        chosen = next((each for each in offered if belongs(each, version)), None)
        if chosen is None:
            raise EnvironmentLackError(
                f"the mirror has no QEMU {version} in {apt.suite.name}; it has {', '.join(offered) or 'none'}",
                hint=f"switchover qemu build {version}-build --source GIT#v{version}.0",
            )
        packages = apt.download([f"qemu-system-x86={chosen}", *_PACKAGES[1:]])
        try:
            entry = _install(layout, version, chosen, packages, suite=apt.suite, progress=progress)
        finally:
            for package in packages:
                package.unlink(missing_ok=True)
    return load(entry).installed(entry, name=version)


def _install(
    layout: Layout, name: str, version: str, packages: Sequence[Path], *, suite: Suite, progress: Progress
) -> Path:
    exact = [package.name.removesuffix(".deb").replace("%3a", ":") for package in packages]
    build_id = digest("fetched", exact, _LOADER)
    entry = layout.store / build_id
    if entry.is_dir():
        progress(f"QEMU {name} is up to date ({version})")
        layout.name(name, entry)
        return entry
    with layout.scratch() as scratch:
        prefix = scratch / "prefix"
        prefix.mkdir()
        progress(f"unpacking {len(packages)} packages")
        for package in packages:
            run(["dpkg-deb", "--extract", package, prefix])
        for folder in _USELESS:
            shutil.rmtree(prefix / folder, ignore_errors=True)
        loader = next(prefix / path for path in _LOADER_NAMES if (prefix / path).is_file())
        shutil.copy2(loader, prefix / _LOADER)
        record = Record(
            kind="fetched", build_id=build_id, version="", binary=_BINARY, loader=_LOADER,
            origin=f"Debian {suite.name}, qemu-system-x86 {version}",
            library_dirs=_library_dirs(prefix), data_dirs=tuple(d for d in _DATA_DIRS if (prefix / d).is_dir()),
            details={"packages": exact},
        )
        record = _started(record, prefix, name=name)
        save(record, prefix)
        return layout.publish(prefix, build_id=build_id, name=name)


def _started(record: Record, prefix: Path, *, name: str) -> Record:
    """`record` with the version that this QEMU itself gives, after starting a machine with it."""
    install = record.installed(prefix, name=name)
    version = _probe.checked_version(install.argv_prefix)
    if missing := _probe.missing_firmware(install.argv_prefix, install.data_dirs):
        raise EnvironmentLackError(f"QEMU {name} came without {', '.join(missing)}")
    _probe.smoke(install.start)
    return Record(**{**{field: getattr(record, field) for field in record.__struct_fields__}, "version": version})


def _library_dirs(prefix: Path) -> tuple[str, ...]:
    """Every folder of the prefix that holds shared libraries, the main ones first (some lie in private folders,
    which the packages name by absolute run paths that mean nothing here)."""
    found = {
        library.parent.relative_to(prefix)
        for top in ("lib", "usr/lib") for library in (prefix / top).rglob("lib*.so.*")
    }
    return tuple(str(folder) for folder in sorted(found, key=lambda folder: (len(folder.parts), str(folder))))


def firmware(layout: Layout, *, progress: Progress, keep_fds: Sequence[int] = ()) -> tuple[Path, ...]:
    """Folders with firmware for a QEMU that has none of its own: the host's, else Debian's packages in the cache.

    Call it under the cache's lock. `EnvironmentLackError` when neither is to be had.
    """
    if all(any((folder / file).is_file() for folder in _probe.HOST_FIRMWARE) for file in _probe.NEEDED_FIRMWARE):
        return tuple(folder for folder in _probe.HOST_FIRMWARE if folder.is_dir())
    place = layout.root / "firmware"
    if not place.is_dir():
        with layout.scratch() as scratch:
            apt = PrivateApt(layout.apt, _FIRMWARE_SUITE, progress=progress, keep_fds=keep_fds)
            apt.update()
            unpacked = scratch / "firmware"
            for package in _FIRMWARE_PACKAGES:
                progress(f"fetching {package}: this host has no firmware for QEMU")
                run(["dpkg-deb", "--extract", apt.download_one(package, into=scratch), unpacked])
            unpacked.rename(place)
    return tuple(place / folder for folder in _DATA_DIRS if (place / folder).is_dir())
