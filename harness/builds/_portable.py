"""A build's recipe in a form that another host can follow: source, patches, options, devices.

What a recipe says may come from a stranger. `checked` takes only what can't name a file, a program or a command of this
host; `patch_problem` says why a patch is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from harness.builds._install import QemuInstall, Record, load
from harness.builds._layout import Layout
from harness.builds._recipe import images_dir
from harness.cache import cache_dir
from harness.errors import SwitchoverError, TestbedError

__all__ = ["PATCHES", "PatchFile", "QemuRecipe", "find_build", "patch_problem", "patches_of_build", "recipe_of", "recipe_problem", "source_of"]

PATCHES = "patches"
"""Folder of a store entry that holds copies of what was applied, so that a recipe outlives the folder of a series."""

_OPTION = re.compile(
    r"--(?:enable|disable)-(?!download$)[a-z0-9-]+|--disable-download|--target-list=x86_64-softmmu|--without-default-(?:features|devices)"
    r"|--enable-trace-backends=[a-z,]+"
)
_DEVICE = re.compile(r"CONFIG_[A-Z0-9_]+=[yn]|#.*|")
_GIT = re.compile(r"git (https://\S+) (\S+) ([0-9a-f]{12})")
_REF = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]{0,120}")
_DEBIAN = re.compile(r"Debian source qemu_([0-9][A-Za-z0-9.+~-]{0,60})")
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(?::\d+)?(?:/[A-Za-z0-9._~+-]+)+/?")

_Text = Annotated[str, Meta(max_length=400)]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_Tree = Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{40})?$")]


class PatchFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file for ``git am``; `label` is "series/file"."""

    label: _Text
    sha256: _Digest


class QemuRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a QEMU came about. Only a `build` whose `source` others can have, with all its `patches`, is `portable`."""

    kind: Literal["system", "fetched", "build", "tree", "path", "gone"]
    name: _Text
    version: _Text
    build: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    package: _Text = ""
    origin: _Text = ""
    source: _Text = ""
    source_tree: _Tree = ""
    patched_tree: _Tree = ""
    options: Annotated[tuple[_Text, ...], Meta(max_length=200)] = ()
    devices: Annotated[tuple[_Text, ...], Meta(max_length=500)] = ()
    compiler: _Text = ""
    patches: Annotated[tuple[PatchFile, ...], Meta(max_length=400)] = ()
    complete: bool = False

    @property
    def portable(self) -> bool:
        """Whether another host can build it from this alone."""
        return self.kind == "build" and self.complete and source_of(self) is not None


def recipe_of(*, name: str, version: str, build: str, package: str = "", cache: Path | None = None) -> QemuRecipe:
    """The recipe of the QEMU with identity `build`, as far as the cache still has it (`gone` otherwise)."""
    if name == "system":
        return QemuRecipe(kind="system", name=name, version=version, build=build, package=package, origin="the distribution's package")
    entry = (Layout(cache or cache_dir())).store / build
    if "/" in name:
        return QemuRecipe(kind="path", name=Path(name).name, version=version, build=build, package=package, origin="a binary of the user's own")
    try:
        record = load(entry)
    except TestbedError:
        return QemuRecipe(kind="gone", name=name, version=version, build=build, package=package)
    if record.kind != "build":
        return QemuRecipe(kind=record.kind, name=name, version=version, build=build, package=package, origin=record.origin)
    files = patches_of(entry, record)
    wanted = _words(record, "series")
    return QemuRecipe(
        kind="build", name=name, version=version, build=build, package=package, origin=record.origin,
        source=_word(record, "source"), source_tree=_word(record, "source_tree"), patched_tree=_word(record, "patched_tree"),
        options=_words(record, "options"), devices=_words(record, "devices"), compiler=_word(record, "compiler"),
        patches=tuple(PatchFile(label=label, sha256=_sha256(path)) for label, path in files), complete=len(files) == len(wanted),
    )  # fmt: skip


def patches_of_build(build: str, *, cache: Path | None = None) -> dict[str, Path]:
    """The patches of the build with that identity, by the digest of their content."""
    entry = Layout(cache or cache_dir()).store / build
    return {_sha256(path): path for _, path in patches_of(entry, load(entry))}


def patches_of(entry: Path, record: Record) -> list[tuple[str, Path]]:
    """The patches that went into a build, in order, with their labels; fewer than its record names where one is lost.

    The store's own copies come first; a build from before there were any is looked up among the shipped series, by content.
    """
    shipped = {_sha256(path)[:16]: path for path in sorted((images_dir() / "series").glob("*/*.patch"))}
    found: list[tuple[str, Path]] = []
    for number, line in enumerate(_words(record, "series")):
        label, _, digest = line.rpartition(" ")
        copy = next(iter((entry / PATCHES).glob(f"{number:04d}-*")), None)
        path = copy if copy is not None and _sha256(copy).startswith(digest) else shipped.get(digest)
        if path is not None:
            found.append((label, path))
    return found


def find_build(recipe: QemuRecipe, *, cache: Path | None = None) -> QemuInstall | None:
    """A build in the cache of the same patched source, options and devices; the compiler may be another."""
    layout = Layout(cache or cache_dir())
    entries = [layout.store / recipe.build, *(sorted(layout.store.iterdir()) if layout.store.is_dir() else [])]
    for entry in entries:
        try:
            record = load(entry)
        except SwitchoverError:
            continue
        same = record.kind == "build" and (
            _word(record, "patched_tree"), set(_words(record, "options")), _words(record, "devices"),
        ) == (recipe.patched_tree, set(recipe.options), recipe.devices)  # fmt: skip
        if same and recipe.patched_tree and (entry / record.binary).is_file():
            names = sorted(link.name for link in layout.names.glob("[!.]*") if link.resolve() == entry.resolve())
            if not names:
                layout.name(bundle_name(recipe), entry)
            return record.installed(entry, name=names[0] if names else bundle_name(recipe))
    return None


def bundle_name(recipe: QemuRecipe) -> str:
    """The name under which a build from a bundle is kept."""
    return f"bundle-{recipe.build}"


def source_of(recipe: QemuRecipe) -> str | None:
    """What `switchover qemu build --source` would take for the recipe's source; None for one that only its owner has."""
    if match := _DEBIAN.fullmatch(recipe.source):
        return f"debian:1:{match[1]}"
    if (match := _GIT.fullmatch(recipe.source)) and _ADDRESS.fullmatch(match[1]) and _REF.fullmatch(match[2]):
        return f"{match[1]}#{match[2]}"
    return None


def recipe_problem(recipe: QemuRecipe) -> str | None:
    """Why a recipe of unknown origin is not to be followed; None when there is nothing to object to."""
    for text in (recipe.name, recipe.version, recipe.package, recipe.origin, recipe.source, recipe.compiler):
        if not text.isprintable():
            return "a text with control characters"
    if bad := next((option for option in recipe.options if not _OPTION.fullmatch(option)), None):
        return f"configure option {bad!r} is not one that a bundle may give"
    if bad := next((line for line in recipe.devices if not (_DEVICE.fullmatch(line) and line.isprintable())), None):
        return f"device line {bad!r} is none"
    return None


# -- patches

_MOST_PATCH_BYTES = 4 << 20
_ENCODED = re.compile(rb"^content-transfer-encoding:\s*(?!7bit|8bit)|^content-type:\s*multipart/|^content-type:.*charset=\"?utf-?(?:7|16|32)", re.I | re.M)
_PATHS = re.compile(
    rb"^(?:diff --git (?P<both>.+)|(?:---|\+\+\+) (?P<side>[^\t\r\n]+)|(?:rename|copy) (?:from|to) (?P<moved>.+)"
    rb"|Index: (?P<index>.+))\r?$", re.M
)  # fmt: skip
_MODES = re.compile(rb"^(?:new file mode|deleted file mode|new mode|old mode|index [0-9a-f]+\.\.[0-9a-f]+) (?P<mode>\d+)\r?$", re.M)
_PLAIN_MODES = (b"100644", b"100755")


def patch_problem(content: bytes) -> str | None:
    """Why a patch of unknown origin is refused; None for one that only changes plain files inside the source tree.

    `git am` has guards of its own against paths outside the tree; this one stands before any program sees the patch.
    """
    if len(content) > _MOST_PATCH_BYTES:
        return f"is larger than {_MOST_PATCH_BYTES >> 20} MiB"
    if b"\0" in content:
        return "holds a NUL character"
    if _ENCODED.search(content):
        return "is encoded, so that its text can't be read as it stands"
    if b"\nGIT binary patch" in content:
        return "holds binary content"
    if not re.search(rb"^diff --git ", content, re.M):
        return "holds no diff in git's form"
    for match in _MODES.finditer(content):
        if match["mode"] not in _PLAIN_MODES:
            return f"makes something else than a plain file (mode {match['mode'].decode()[:12]})"
    for match in _PATHS.finditer(content):
        if match["side"] and not _is_header(content, match.start()):
            continue
        if problem := _path_problem(match):
            return problem
    return None


def _is_header(content: bytes, at: int) -> bool:
    """Whether a line that begins with --- or +++ names a file: two such follow each other, and a hunk or a diff is near."""
    line_end = content.find(b"\n", at)
    following = content[line_end + 1 : line_end + 5]
    before = content.rfind(b"\n", 0, max(0, at - 1)) + 1
    return following.startswith(b"+++ ") or (content[at : at + 4] == b"+++ " and content[before : before + 4] == b"--- ")


def _path_problem(match: re.Match[bytes]) -> str | None:
    if match["both"] is not None:
        names = match["both"].split(b" ")
        if len(names) != 2:
            return "names a file in a way that can be read in two ways"
        prefixed = True
    else:
        names = [match["side"] or match["moved"] or match["index"]]
        prefixed = match["side"] is not None
    for raw in names:
        name = raw.decode("utf-8", "replace")
        if name == "/dev/null" and prefixed:
            continue
        shown = repr(name if len(name) <= 60 else f"{name[:57]}...")
        if prefixed and name[:2] not in ("a/", "b/"):
            return f"touches {shown}, which lies outside the tree"
        parts = (name[2:] if prefixed else name).split("/")
        if any(part in ("", ".", "..") for part in parts) or name.startswith(('"', "~")):
            return f"touches {shown}, which lies outside the tree"
        if any(part.lower().rstrip(" .").startswith((".git\u200c", "git~")) or part.lower() == ".git" for part in parts):
            return f"touches {shown}, which belongs to git"
        if "\\" in name or not name.isprintable() or "\ufffd" in name:
            return f"touches {shown}, which is no plain name"
    return None


# -- small things


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _word(record: Record, key: str) -> str:
    value = record.details.get(key, "")
    return value if isinstance(value, str) else ""


def _words(record: Record, key: str) -> tuple[str, ...]:
    value: str | Iterable[str] = record.details.get(key, ())
    return () if isinstance(value, str) else tuple(value)
