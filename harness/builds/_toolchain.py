"""What a build needs from the host, and which Debian package has what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.builds._layout import Layout
from harness.builds._process import CommandError, Progress, run
from harness.errors import EnvironmentLackError

__all__ = ["BUILD_PACKAGES", "Toolchain", "compiler_version", "has_module", "mend_for", "prepare", "require"]

#: Debian packages with all that `build` uses: for a set-up that installs everything at once.
BUILD_PACKAGES = (
    "gcc", "libc6-dev", "make", "git", "pkg-config", "patch", "xz-utils", "dpkg-dev", "ccache", "python3-venv",
    "debian-archive-keyring", "libglib2.0-dev", "zlib1g-dev", "libfdt-dev", "libzstd-dev", "libgnutls28-dev",
    "seabios", "qemu-system-data", "bubblewrap",
)
_PROGRAMS = {"gcc": "gcc", "git": "git", "pkg-config": "pkg-config", "tar": "tar", "ar": "binutils"}
_DEBIAN_PROGRAMS = {"dpkg-source": "dpkg-dev", "patch": "patch", "xz": "xz-utils"}
_MODULES = {"glib-2.0": "libglib2.0-dev", "zlib": "zlib1g-dev"}
# Debian 12's libfdt has no pkg-config file
_HEADERS = {"stdio.h": "libc6-dev", "linux/kvm.h": "linux-libc-dev", "libfdt.h": "libfdt-dev"}
# other libraries that a user's own configuration may ask for, by the names that meson and the compiler print
_PACKAGE_OF = {
    **_MODULES, **_HEADERS, **_PROGRAMS, **_DEBIAN_PROGRAMS, "fdt": "libfdt-dev", "libfdt": "libfdt-dev",
    "gio-2.0": "libglib2.0-dev", "gmodule-2.0": "libglib2.0-dev", "gmodule-no-export-2.0": "libglib2.0-dev",
    "libzstd": "libzstd-dev", "gnutls": "libgnutls28-dev", "nettle": "nettle-dev", "libgcrypt": "libgcrypt20-dev",
    "libtasn1": "libtasn1-6-dev", "pixman-1": "libpixman-1-dev", "slirp": "libslirp-dev", "liburing": "liburing-dev",
    "libaio": "libaio-dev", "libcap-ng": "libcap-ng-dev", "libattr": "libattr1-dev", "libseccomp": "libseccomp-dev",
    "numa": "libnuma-dev", "libudev": "libudev-dev", "libcurl": "libcurl4-gnutls-dev", "libssh": "libssh-dev",
    "libusb-1.0": "libusb-1.0-0-dev", "libusbredirparser-0.5": "libusbredirparser-dev", "gtk+-3.0": "libgtk-3-dev",
    "sdl2": "libsdl2-dev", "vte-2.91": "libvte-2.91-dev", "libpng": "libpng-dev", "libjpeg": "libjpeg-dev",
    "libsasl2": "libsasl2-dev", "spice-server": "libspice-server-dev", "spice-protocol": "libspice-protocol-dev",
    "epoxy": "libepoxy-dev", "virglrenderer": "libvirglrenderer-dev", "capstone": "libcapstone-dev",
    "libbpf": "libbpf-dev", "libxdp": "libxdp-dev", "libvdeplug": "libvdeplug-dev", "libpmem": "libpmem-dev",
    "librdmacm": "librdmacm-dev", "libibverbs": "libibverbs-dev", "snappy": "libsnappy-dev", "lzo2": "liblzo2-dev",
    "bzip2": "libbz2-dev", "bz2": "libbz2-dev", "ncursesw": "libncurses-dev", "fuse3": "libfuse3-dev",
    "libnfs": "libnfs-dev", "libiscsi": "libiscsi-dev", "alsa": "libasound2-dev", "libpulse": "libpulse-dev",
    "libkeyutils": "libkeyutils-dev", "libselinux": "libselinux1-dev", "pam": "libpam0g-dev",
    "sphinx-build": "python3-sphinx", "flex": "flex", "bison": "bison", "make": "make",
    "rustc": "rustc", "bindgen": "bindgen", "ensurepip": "python3-venv", "iasl": "acpica-tools",
}
_MISSING = (
    re.compile(r'Dependency "([^"]+)" not found'),
    re.compile(r"Program '([^']+)' not found"),
    re.compile(r"C (?:shared or static )?library '([^']+)' not found"),
    re.compile(r"\b(ensurepip)\b"),
)
_MESON, _NINJA = "meson>=1.5,<2", "ninja>=1.10"
_MESON_FLOOR = (1, 5)


@dataclass(frozen=True)
class Toolchain:
    """The interpreter whose meson QEMU's configure takes, ninja, and the compiler's words (with ccache where it is)."""

    python: str
    meson: str
    ninja: str
    compiler: str


def require(*, debian_source: bool) -> None:
    """`EnvironmentLackError` that names everything missing at once, and the packages to install."""
    programs = {**_PROGRAMS, **(_DEBIAN_PROGRAMS if debian_source else {})}
    missing = {name: package for name, package in programs.items() if shutil.which(name) is None}
    if "pkg-config" not in missing:
        missing |= {name: package for name, package in _MODULES.items() if not has_module(name)}
    if "gcc" not in missing:
        missing |= {header: package for header, package in _HEADERS.items() if not _has_header(header)}
    if missing:
        raise _lack(missing)


def _lack(missing: dict[str, str]) -> EnvironmentLackError:
    return EnvironmentLackError(f"QEMU can't be built here: {', '.join(missing)} not found",
                                hint=f"apt-get install {' '.join(dict.fromkeys(missing.values()))}")


def mend_for(output: str) -> EnvironmentLackError | None:
    """The error for a dependency that a configure run (`output`) says is missing, or None if it says no such thing."""
    # meson says of optional ones too that they weren't found: only what it calls an error counts
    errors = "\n".join(line for line in output.splitlines() if "ERROR" in line or "*** Ouch" in line)
    for pattern in _MISSING:
        if match := pattern.search(errors):
            name = match.group(1)
            package = _PACKAGE_OF.get(name)
            hint = f"apt-get install {package}" if package else f"install the development files of {name}"
            return EnvironmentLackError(f"QEMU can't be configured here: {name} not found", hint=hint)
    return None


def has_module(name: str) -> bool:
    """Whether pkg-config knows the library `name`."""
    return subprocess.run(["pkg-config", "--exists", name], check=False, capture_output=True).returncode == 0


def compiler_version() -> str:
    """The compiler's first line about itself: part of a build's identity."""
    return run(["gcc", "--version"]).partition("\n")[0]


def _has_header(name: str) -> bool:
    answer = subprocess.run(["gcc", "-fsyntax-only", "-x", "c", "-"], input=f"#include <{name}>\n", text=True,
                            check=False, capture_output=True)
    return answer.returncode == 0


def prepare(layout: Layout, *, progress: Progress) -> Toolchain:
    """Find meson and ninja: the running interpreter's, the host's, else PyPI's in a venv in the cache."""
    compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
    for python in dict.fromkeys(filter(None, (sys.executable, shutil.which("python3")))):
        if found := _usable(python):
            return Toolchain(python, *found, compiler)
    place = layout.tools / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = str(place / "bin" / "python")
    found = _usable(python)
    if not found:
        progress("installing meson and ninja into the cache")
        shutil.rmtree(place, ignore_errors=True)
        try:
            venv.create(place, with_pip=True, symlinks=True)
            run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", _MESON, _NINJA])
        except (CommandError, subprocess.CalledProcessError, OSError) as error:
            shutil.rmtree(place, ignore_errors=True)
            raise EnvironmentLackError(f"meson and ninja can't be installed: {error}",
                                       hint="apt-get install python3-venv; pip install meson ninja") from error
        found = _usable(python)
    if not found:
        raise EnvironmentLackError("the meson or ninja in the cache does not run", hint=f"remove {place}")
    return Toolchain(python, *found, compiler)


def _usable(python: str) -> tuple[str, str] | None:
    """`python`'s meson version and the ninja to go with it, if QEMU accepts that meson and `python` makes venvs."""
    ninja = _first_executable((Path(python).with_name("ninja"), shutil.which("ninja")))
    if not ninja or not Path(python).exists():
        return None
    probe = "import ensurepip, mesonbuild.coredata as c; print(c.version)"
    answer = subprocess.run([python, "-I", "-c", probe], check=False, capture_output=True, text=True)
    version = answer.stdout.strip()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return (version, ninja) if answer.returncode == 0 and numbers >= _MESON_FLOOR else None


def _first_executable(candidates: Iterable[Path | str | None]) -> str:
    return next((str(each) for each in candidates if each and os.access(each, os.X_OK)), "")
