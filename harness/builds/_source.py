"""QEMU source trees: whatever the user names becomes one git tree object in the cache.

A tree object is the source's identity, needs no second copy on disk, and lets git bring a working tree from one
state to another without touching the files that stay the same - which is what makes builds incremental.
"""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.builds._apply import IDENTITY
from harness.builds._apt import PrivateApt, Suite, belongs
from harness.builds._install import digest
from harness.builds._layout import Layout
from harness.builds._process import CommandError, Progress, run
from harness.builds._recipe import Recipe
from harness.errors import EnvironmentLackError, UsageError

__all__ = ["Source", "Tree", "built_binary", "import_source", "parse"]

_DSC = ".dsc"
_TARBALL = re.compile(r"\.(?:tar(?:\.(?:gz|bz2|xz|zst|lzma))?|tgz|txz|tbz2)$|\.dsc$")
_GIT = re.compile(r"^(?:https?|git|ssh|file)://|^[\w.-]+@[\w.-]+:")
_LANDMARKS = ("configure", "VERSION", "meson.build", "hw", "qapi")


@dataclass(frozen=True)
class Source:
    """What ``--source`` means: `kind`, `place` (a path or an address), and `ref` (git's, or Debian's version)."""

    kind: str  # debian, git, tarball, folder
    place: str = ""
    ref: str = ""

    @property
    def slot(self) -> str:
        """Name of the origin: sources of one origin share a working tree, and thereby most of a build."""
        if self.kind == "debian":
            return "debian"
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", Path(self.place.rstrip("/")).name).strip("-") or "root"
        return f"{self.kind}-{stem[:40]}-{digest(self.place)[:8]}"

    @property
    def offline(self) -> bool:
        """Whether the source has all its subprojects, so that nothing needs to be downloaded while building."""
        return self.kind in ("debian", "tarball")


@dataclass(frozen=True)
class Tree:
    """A source in the object store: the `tree` (git object id) and what it is called, exactly.

    `unpacked` and `index`, where there are any, lie in the caller's scratch folder: the tree's files and git's index
    of them, for whoever wants a working tree without writing all files once more.
    """

    tree: str
    origin: str
    unpacked: Path | None = None
    index: Path | None = None


def parse(source: str) -> Source:
    """What `source` means: ``debian[:VERSION]``, an address maybe with ``#REF``, a tarball or .dsc, or a folder."""
    if source == "debian" or source.startswith("debian:"):
        return Source("debian", ref=source.partition(":")[2])
    place, _, ref = source.partition("#")
    local = Path(source).expanduser()
    if local.is_dir():
        return Source("folder", str(local.resolve()))
    if local.is_file():
        if _TARBALL.search(local.name):
            return Source("tarball", str(local.resolve()))
        raise UsageError(f"{source} is neither a folder nor a tarball",
                         hint="a binary needs no build: give its path where a QEMU is named")
    if ref and Path(place).expanduser().is_dir():
        return Source("git", str(Path(place).expanduser().resolve()), ref)
    if _GIT.match(place):
        return Source("tarball", source) if _TARBALL.search(source) else Source("git", place, ref)
    raise UsageError(f"no such QEMU source: {source}", hint="debian, a git address, a tarball or a folder")


def built_binary(folder: Path) -> Path | None:
    """The binary of a developer's build tree at `folder` (the tree, or its build folder); None for a mere source.

    Raises `UsageError` for a tree that is configured but has no binary: it is theirs to build.
    """
    for build in (folder, folder / "build"):
        binary = build / "qemu-system-x86_64"
        if binary.is_file():
            return binary
        if (build / "config-host.mak").is_file():
            raise UsageError(f"{build} is configured, but has no qemu-system-x86_64",
                             hint=f"ninja -C {build} qemu-system-x86_64")
    return None


def import_source(
    source: Source, *, layout: Layout, recipe: Recipe, scratch: Path, progress: Progress, keep_fds: Sequence[int] = ()
) -> Tree:
    """Bring `source` into the object store. Call it under the cache's lock.

    Tarballs and Debian's source stay in the cache and are imported once; folders and git are looked at again each
    time. Raises `UsageError` for what isn't QEMU's source, `EnvironmentLackError` for what can't be had.
    """
    if not (layout.repository / "HEAD").is_file():
        run(["git", "init", "--quiet", "--bare", layout.repository], env=IDENTITY)
        # objects of trees that no build uses now are wanted again for the next switch
        run(["git", "config", "gc.auto", "0"], cwd=layout.repository)
        run(["git", "config", "core.looseCompression", "1"], cwd=layout.repository)
    if source.kind == "debian":
        archive = _debian(source.ref, layout=layout, recipe=recipe, progress=progress, keep_fds=keep_fds)
        origin = f"Debian source {archive.name.removesuffix(_DSC)}"
    elif source.kind == "tarball":
        archive = _tarball(source.place, layout=layout, progress=progress)
        origin = f"tarball {archive.name}"
    elif source.kind == "git":
        return _git(source, layout=layout, progress=progress, keep_fds=keep_fds)
    else:
        folder = Path(source.place)
        _check_landmarks(folder, source.place)
        progress(f"reading the source in {folder}")
        return Tree(_snapshot(folder, layout.repository, scratch, ignored=False), f"folder {folder}")
    return _unpacked(archive, origin, layout=layout, scratch=scratch, progress=progress)


def _debian(
    version: str, *, layout: Layout, recipe: Recipe, progress: Progress, keep_fds: Sequence[int]
) -> Path:
    """The .dsc in the cache: of the exact version, else of the newest neighbour, else fetched in that order."""
    folder = layout.sources / "debian"
    wanted = version or recipe.debian.version
    exact = folder / f"qemu_{_file_version(wanted)}{_DSC}"
    if exact.is_file():
        return exact
    kept = sorted(folder.glob(f"qemu_{recipe.debian.series}.*{_DSC}"), key=lambda path: path.stat().st_mtime)
    if kept and not version:
        progress(f"using the cache's {kept[-1].name} ({wanted} isn't there)")
        return kept[-1]
    apt = PrivateApt(layout.apt, Suite(recipe.debian.codename), progress=progress, keep_fds=keep_fds)
    apt.update()
    offered = apt.versions("qemu", source=True)
    chosen = wanted if wanted in offered else next(
        (each for each in offered if belongs(each, recipe.debian.series)), None
    )
    if chosen is None or (version and chosen != version):
        raise EnvironmentLackError(
            f"the mirror has no QEMU source {wanted}; it has {', '.join(offered) or 'none'}",
            hint="--source debian:VERSION for one of those, or --source with a tarball or git",
        )
    if chosen != wanted:
        progress(f"{wanted} is gone from the mirror; taking its neighbour {chosen}")
    with layout.scratch() as scratch:
        apt.download_source("qemu", chosen, into=scratch)
        folder.mkdir(parents=True, exist_ok=True)
        # the .dsc last: it is what says that the rest is there
        for file in sorted(scratch.iterdir(), key=lambda path: path.suffix == _DSC):
            file.rename(folder / file.name)
    return folder / f"qemu_{_file_version(chosen)}{_DSC}"


def _file_version(version: str) -> str:
    """A Debian version as file names have it: without the epoch."""
    return version.rpartition(":")[2]


def _tarball(place: str, *, layout: Layout, progress: Progress) -> Path:
    """The tarball's path; a remote one is downloaded once."""
    if "://" not in place:
        return Path(place)
    path = layout.sources / "tarballs" / place.rpartition("/")[2]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    progress(f"downloading {place}")
    with layout.scratch() as scratch:
        part = scratch / path.name
        try:
            with urllib.request.urlopen(place, timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, TimeoutError) as error:
            raise EnvironmentLackError(f"{place} can't be downloaded: {error}") from error
        part.rename(path)
    return path


def _unpacked(archive: Path, origin: str, *, layout: Layout, scratch: Path, progress: Progress) -> Tree:
    """The tree of an archive: from the memo of one unpacked before, or by unpacking it."""
    stat = archive.stat()
    memo = layout.sources / "trees" / f"{archive.name}-{stat.st_size}-{stat.st_mtime_ns}"
    if memo.is_file() and _has_object(layout.repository, tree := memo.read_text().strip()):
        return Tree(tree, origin)
    progress(f"unpacking {archive.name}")
    folder = scratch / "unpacked"
    try:
        if archive.suffix == _DSC:
            # apt verified the files against the signed index; a .dsc of the user's own is the user's word
            run(["dpkg-source", "--no-check", "--extract", archive, folder])
        else:
            folder.mkdir()
            run(["tar", "--extract", "--no-same-owner", "--strip-components=1", "--file", archive, "-C", folder])
    except CommandError as error:
        if error.disk_full:
            raise
        raise UsageError(f"{archive} can't be unpacked: {error.message}") from error
    _check_landmarks(folder, str(archive))
    tree = _snapshot(folder, layout.repository, scratch, ignored=True)
    memo.parent.mkdir(parents=True, exist_ok=True)
    part = scratch / "memo"
    part.write_text(tree + "\n")
    part.rename(memo)
    return Tree(tree, origin, folder, scratch / "index")


def _has_object(repository: Path, name: str) -> bool:
    try:
        run(["git", "cat-file", "-e", name], cwd=repository)
    except CommandError:
        return False
    return True


def _git(source: Source, *, layout: Layout, progress: Progress, keep_fds: Sequence[int]) -> Tree:
    ref = source.ref or "HEAD"
    progress(f"fetching {source.place} {ref}")
    try:
        run(["git", "fetch", "--quiet", "--depth=1", "--no-tags", source.place, ref], cwd=layout.repository,
            keep_fds=keep_fds, env={"GIT_TERMINAL_PROMPT": "0"})
    except CommandError as error:
        if error.disk_full:
            raise
        raise EnvironmentLackError(f"{ref} of {source.place} can't be fetched: {error.message}",
                                   hint="check the address and the ref (a branch or a tag)") from error
    commit = run(["git", "rev-parse", "FETCH_HEAD"], cwd=layout.repository).strip()
    names = run(["git", "ls-tree", "--name-only", commit], cwd=layout.repository).split()
    if missing := [name for name in _LANDMARKS if name not in names]:
        raise UsageError(f"{source.place} {ref} is no QEMU source: {', '.join(missing)} missing")
    tree = run(["git", "rev-parse", f"{commit}^{{tree}}"], cwd=layout.repository).strip()
    return Tree(tree, f"git {source.place} {ref} {commit[:12]}")


def _snapshot(folder: Path, repository: Path, scratch: Path, *, ignored: bool) -> str:
    """The tree object of a folder's files as they are, uncommitted or not; with `ignored`, even what git would ignore.

    The folder isn't changed, not even when it is a git checkout: index and objects are the cache's.
    """
    env = {**IDENTITY, "GIT_DIR": str(repository), "GIT_INDEX_FILE": str(scratch / "index")}
    force = ["--force"] if ignored else []
    run(["git", "-c", "core.autocrlf=false", "-c", "advice.addEmbeddedRepo=false", "add", "--all", *force, "."],
        cwd=folder, env={**env, "GIT_WORK_TREE": str(folder)})
    if not ignored:
        # subprojects that meson downloaded are ignored by git, and would need the network again
        for wrap in sorted((folder / "subprojects").glob("*.wrap")):
            content = wrap.with_suffix("")
            inside = f"subprojects/{content.name}"
            if content.is_dir() and not run(["git", "ls-files", inside], env=env).strip():
                part = {**env, "GIT_INDEX_FILE": str(scratch / f"index-{content.name}"), "GIT_WORK_TREE": str(content)}
                run(["git", "add", "--all", "--force", "."], cwd=content, env=part)
                subtree = run(["git", "write-tree"], env=part).strip()
                run(["git", "read-tree", f"--prefix={inside}/", subtree], env=env)
    return run(["git", "write-tree"], env=env).strip()


def _check_landmarks(folder: Path, place: str) -> None:
    if missing := [name for name in _LANDMARKS if not (folder / name).exists()]:
        raise UsageError(f"{place} is no QEMU source: {', '.join(missing)} missing",
                         hint="give the top folder of QEMU's source, or a build folder with its binary")
