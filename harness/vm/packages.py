# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages as a source of programs: looked up, downloaded and unpacked, never installed.

Works for any user: ``apt-cache`` and ``apt-get download`` need no root, only package lists that somebody once
fetched with ``apt-get update``. apt checks signatures and hashes.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from harness.errors import EnvironmentLackError, ProcessError

__all__ = ["Package", "download", "real_kernel_package", "resolve", "run", "unpack"]


class Package(msgspec.Struct, frozen=True):
    """The version of a package that apt would install now."""

    name: str
    version: str
    architecture: str
    section: str
    sha256: str
    depends: tuple[tuple[str, ...], ...]

    @property
    def is_library(self) -> bool:
        return self.section.rpartition("/")[2] in {"libs", "oldlibs"}


async def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Runs a program to its end and returns its standard output.

    EnvironmentLackError if it is not installed, ProcessError with the command and the tail of its output if it
    fails. It is killed when the caller is cancelled.
    """
    command = [str(part) for part in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            f"{command[0]} is not installed", hint="apt-get install apt dpkg gcc libc6-dev"
        ) from error
    try:
        output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        tail = errors.decode(errors="replace").strip()[-2000:]
        raise ProcessError(f"{' '.join(command)} ended with status {process.returncode}:\n{tail}")
    return output.decode(errors="replace")


def _parse_depends(text: str) -> tuple[tuple[str, ...], ...]:
    """Each dependency as its alternatives' names, without versions and architectures."""
    return tuple(
        tuple(re.split(r"[ (:]", alternative.strip(), maxsplit=1)[0] for alternative in group.split("|"))
        for group in text.split(",")
        if group.strip()
    )


async def _show(names: Iterable[str]) -> dict[str, Package]:
    """The candidates of those of `names` that apt knows."""
    wanted = sorted(names)
    try:
        # apt-cache ends with an error if *none* is known, and says nothing of the others.
        text = await run("apt-cache", "show", "--no-all-versions", *wanted)
    except ProcessError:
        return {}
    packages: dict[str, Package] = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if re.match(r"[A-Za-z0-9-]+: ", line))
        if "SHA256" not in fields:
            continue
        depends = ",".join(filter(None, (fields.get("Pre-Depends"), fields.get("Depends"))))
        packages[fields["Package"]] = Package(
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
            section=fields.get("Section", ""),
            sha256=fields["SHA256"],
            depends=_parse_depends(depends),
        )
    return packages


def _unknown(names: Iterable[str]) -> EnvironmentLackError:
    return EnvironmentLackError(
        f"apt knows no package {', '.join(sorted(names))}",
        hint="as root: apt-get update (or, where this is not Debian, give --kernel and --image)",
    )


async def real_kernel_package(metapackage: str) -> str:
    """The package that a kernel metapackage stands for, e.g. ``linux-image-6.1.0-56-cloud-amd64``."""
    packages = await _show([metapackage])
    if metapackage not in packages:
        raise _unknown([metapackage])
    names = [name for group in packages[metapackage].depends for name in group if name.startswith("linux-image-")]
    if not names:
        raise _unknown([f"that {metapackage} stands for"])
    return names[0]


async def resolve(names: Iterable[str]) -> list[Package]:
    """The named packages and every library package they need, transitively, sorted by name.

    Other dependencies (scripts' interpreters, configuration tools) are left out: nothing is configured here.
    """
    roots = set(names)
    found = await _show(roots)
    if missing := roots - found.keys():
        raise _unknown(missing)
    known = dict(found)
    while wanted := {name for package in found.values() for group in package.depends for name in group} - known.keys():
        shown = await _show(wanted)
        found = {name: package for name, package in shown.items() if package.is_library}
        known |= found
    return sorted(known.values(), key=lambda package: package.name)


async def download(packages: Iterable[Package], *, folder: Path) -> list[Path]:
    """The packages' files in `folder`, in order; those that are there already are not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {package: folder / f"{package.name}_{package.sha256[:16]}.deb" for package in packages}
    missing = [package for package, path in paths.items() if not path.exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
            partial = Path(name)
            wanted = [f"{package.name}={package.version}" for package in missing]
            try:
                # As root, apt would like to download as its own user, who cannot write here.
                await run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *wanted, cwd=partial)
            except ProcessError as error:
                raise EnvironmentLackError(
                    f"the packages of the guest image cannot be downloaded: {error}",
                    hint="as root: apt-get update, and check that the package mirror can be reached",
                ) from error
            for package in missing:
                (source,) = partial.glob(f"{package.name}_*.deb")
                source.rename(paths[package])
    return list(paths.values())


async def unpack(archive: Path, *, folder: Path) -> Path:
    """Unpacks a package below `folder`, into a folder of its own; a half-unpacked one never stays."""
    target = folder / archive.stem
    if target.exists():
        return target
    partial = folder / f".{archive.stem}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    await run("dpkg-deb", "-x", archive, partial)
    partial.rename(target)
    return target
