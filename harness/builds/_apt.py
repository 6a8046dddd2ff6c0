"""A private apt: packages of other Debian releases, without touching the host's apt or dpkg.

Its lists, state and archives lie in the cache; its mirrors are those of the host's own sources, and so are its
download settings (proxies and the like) - but none of the host's hooks, preferences or sources.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.builds._process import CommandError, Progress, run
from harness.errors import EnvironmentLackError

__all__ = ["PrivateApt", "Suite", "belongs", "mirrors", "upstream"]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES = r"(?:old)*stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke"
_ARCHIVE = re.compile(rf"(?:{_RELEASES})(?:-updates|-backports|-proposed-updates)?")
_SECURITY = re.compile(rf"(?:{_RELEASES})-security")


@dataclass(frozen=True)
class Suite:
    """A Debian release, with its point-release updates and security fixes; `backports` on top when asked for."""

    codename: str
    backports: bool = False

    @property
    def name(self) -> str:
        """What apt calls the release to prefer."""
        return f"{self.codename}-backports" if self.backports else self.codename


def upstream(debian_version: str) -> str:
    """A Debian version without epoch and Debian's own part: "1:10.0.13+ds-0+deb13u1" -> "10.0.13+ds"."""
    return debian_version.partition(":")[2].rpartition("-")[0] or debian_version


def belongs(debian_version: str, series: str) -> bool:
    """Whether a Debian version is of QEMU's `series`: "1:7.2+dfsg-7" and "1:7.2.3-1" are of "7.2", "1:7.20-1" isn't."""
    rest = upstream(debian_version).removeprefix(series)
    return rest != upstream(debian_version) and not rest[:1].isdigit()


def mirrors() -> tuple[str, str]:
    """The URIs of Debian's archive and of its security archive, as the host's own apt sources have them.

    A mirror that names no security archive is taken to have it beside the archive, as Debian's own do. Raises
    `EnvironmentLackError` where the sources name no Debian archive (an Ubuntu host, for one).
    """
    archive = security = ""
    with contextlib.suppress(CommandError):
        listing = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        for line in listing.splitlines():
            uri, _, release = line.partition(" ")
            if not archive and _ARCHIVE.fullmatch(release):
                archive = uri
            elif not security and _SECURITY.fullmatch(release):
                security = uri
    if not archive:
        raise EnvironmentLackError(
            "apt's sources name no Debian archive", hint="add a Debian release to apt's sources, then apt-get update"
        )
    return archive, security or f"{archive.rstrip('/')}-security/"


class PrivateApt:
    """apt on one suite with its own state in `folder`. Use it under the cache's lock only."""

    def __init__(self, folder: Path, suite: Suite, *, progress: Progress, keep_fds: Sequence[int] = ()) -> None:
        """Write the configuration. `EnvironmentLackError` without apt or without Debian's keys."""
        for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
            if shutil.which(program) is None:
                raise EnvironmentLackError(
                    f"this host has no {program}: Debian's packages can't be fetched",
                    hint=f"install {package} and debian-archive-keyring, or use `switchover qemu build` with a tree",
                )
        if not KEYRING.is_file():
            raise EnvironmentLackError(f"{KEYRING} is missing, so Debian's packages can't be verified",
                                       hint="apt-get install debian-archive-keyring")
        self.folder = folder / suite.name
        self.suite = suite
        self._progress = progress
        self._keep_fds = keep_fds
        self._write()

    def _write(self) -> None:
        for part in ("etc", "state/lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        archive, security = mirrors()
        code = self.suite.codename
        places = [(archive, code), (archive, f"{code}-updates"), (security, f"{code}-security")]
        if self.suite.backports:
            places.append((archive, f"{code}-backports"))
        (self.folder / "etc/sources.list").write_text("".join(
            f"{kind} [signed-by={KEYRING}] {uri} {release} main\n"
            for uri, release in places for kind in ("deb", "deb-src")
        ))
        settings = {
            "Dir": f"{self.folder}/",
            "Dir::Etc": "etc/", "Dir::Etc::main": "none", "Dir::Etc::parts": "none",
            "Dir::Etc::sourcelist": "sources.list", "Dir::Etc::sourceparts": "none",
            "Dir::Etc::preferences": "none", "Dir::Etc::preferencesparts": "none",
            # a mirror's credentials are the host's
            "Dir::Etc::netrc": "/etc/apt/auth.conf", "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "Dir::State": "state/", "Dir::State::status": str(self.folder / "status"), "Dir::Cache": "cache/",
            "APT::Architecture": "amd64", "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false", "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",  # root's cache is often closed to the _apt user
        }
        host = run(["apt-config", "dump", "--format", '%F "%v";%n'])
        lines = [line for line in host.splitlines() if line.startswith("Acquire::") and not line.endswith('"";')]
        lines += [f'{key} "{value}";' for key, value in settings.items()]
        (self.folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def _run(self, *argv: str, cwd: Path | None = None) -> str:
        return run(argv, cwd=cwd, env={"APT_CONFIG": str(self.folder / "apt.conf")}, keep_fds=self._keep_fds)

    def update(self) -> None:
        """Read the mirror's lists; `EnvironmentLackError` when it can't be reached."""
        self._progress(f"reading the package lists of {self.suite.name}")
        try:
            # without this, apt ends with success although a list could not be read
            self._run("apt-get", "update", "-o", "APT::Update::Error-Mode=any")
        except CommandError as error:
            raise EnvironmentLackError(f"the package lists of {self.suite.name} can't be read: {error.message}",
                                       hint="check the network and the host's apt sources") from error

    def versions(self, package: str, *, source: bool = False) -> list[str]:
        """The versions on offer, newest first; of the source package with `source`."""
        command = ("apt-cache", "showsrc", "--only-source", package) if source else ("apt-cache", "show", package)
        try:
            text = self._run(*command)
        except CommandError:
            return []
        found = dict.fromkeys(re.findall(r"^Version: (\S+)$", text, re.MULTILINE))
        ordered: list[str] = []
        for version in found:  # a few at most: insertion by dpkg's own comparison
            place = next((n for n, other in enumerate(ordered) if self._newer(version, other)), len(ordered))
            ordered.insert(place, version)
        return ordered

    def _newer(self, one: str, other: str) -> bool:
        try:
            self._run("dpkg", "--compare-versions", one, "gt", other)
        except CommandError:
            return False
        return True

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Fetch `packages` (``name`` or ``name=version``) with all they depend on; verified by apt."""
        archives = self.folder / "cache/archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._progress(f"fetching {', '.join(packages)} and dependencies from {self.suite.name}")
        try:
            self._run("apt-get", "--yes", "--download-only", "--target-release", self.suite.name, "install", *packages)
        except CommandError as error:
            if error.disk_full:
                raise
            raise EnvironmentLackError(f"{', '.join(packages)} can't be fetched: {error.message}",
                                       hint="check the network and the host's apt sources") from error
        return sorted(archives.glob("*.deb"))

    def download_one(self, package: str, *, into: Path) -> Path:
        """Fetch one binary package without its dependencies."""
        try:
            self._run("apt-get", "--target-release", self.suite.name, "download", package, cwd=into)
        except CommandError as error:
            if error.disk_full:
                raise
            raise EnvironmentLackError(f"{package} can't be fetched: {error.message}") from error
        return next(into.glob(f"{package}_*.deb"))

    def download_source(self, package: str, version: str, *, into: Path) -> None:
        """Fetch a source package's files (``.dsc`` and tarballs) into `into`; verified by apt."""
        self._progress(f"fetching the source of {package} {version}")
        try:
            self._run("apt-get", "--download-only", "--only-source", "source", f"{package}={version}", cwd=into)
        except CommandError as error:
            if error.disk_full:
                raise
            raise EnvironmentLackError(f"the source of {package} {version} can't be fetched: {error.message}",
                                       hint="check the network and the host's apt sources") from error
