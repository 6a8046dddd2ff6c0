"""Build a QEMU again from a recipe of unknown origin: the code is a stranger's, and is compiled in a sandbox."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.builds import _toolchain
from harness.builds._apply import IDENTITY, apply
from harness.builds._build import Plan, Work, need_bytes
from harness.builds._install import QemuInstall, load
from harness.builds._layout import Layout, exclusive, saying_disk_full
from harness.builds._portable import QemuRecipe, bundle_name, find_build, patch_problem, recipe_problem, source_of
from harness.builds._process import Progress, run, silent
from harness.builds._recipe import Recipe
from harness.builds._series import Patch, Series
from harness.builds._source import import_source, parse
from harness.cache import cache_dir
from harness.errors import UsageError

__all__ = ["rebuild"]

_PLAIN_MODES = frozenset(("100644", "100755", "000000"))


def rebuild(
    recipe: QemuRecipe, *, patches: Path, cache: Path | None = None, progress: Progress = silent, jobs: int | None = None
) -> QemuInstall:
    """Build what `recipe` says, with the files ``<sha256>.patch`` in `patches`; what is in the cache already is returned.

    Fetching the source and applying patches is done by us; configure, compiler and the first start of the new binary run in a sandbox
    without network, in a build folder of their own. Ask before you call this. Raises `UsageError` for a recipe that can't or
    may not be followed, otherwise as `build`.
    """
    if problem := recipe_problem(recipe):
        raise UsageError(f"the recipe is refused: {problem}")
    source = source_of(recipe)
    if not recipe.portable or source is None:
        raise UsageError(f"QEMU {recipe.name!r} can't be built from the bundle: its source or its patches are not in it", hint="give one with --qemu")
    if found := find_build(recipe, cache=cache):
        return found
    layout = Layout(cache or cache_dir())
    defaults = Recipe.read()
    if source == f"debian:{defaults.debian.version}":
        source = "debian"  # a neighbour will do where the mirror has dropped it; what differs is said below
    series = _series(recipe, patches)
    with saying_disk_full(layout.cache), exclusive(layout, progress=progress) as lock, layout.scratch() as scratch:
        layout.require_free(need_bytes())
        _toolchain.require(debian_source=source.startswith("debian"))
        origin = parse(source)
        tree = import_source(origin, layout=layout, recipe=defaults, scratch=scratch, progress=progress, keep_fds=(lock,))
        if tree.tree != recipe.source_tree:
            progress(f"the source differs from the sender's: {tree.origin} here, {recipe.source} there")
        absent = {each.option for each in defaults.configure.when_present if not _toolchain.has_module(each.module)}
        for option in sorted(absent & set(recipe.options)):
            progress(f"built without {option}: this host has no library for it")
        options = tuple(option for option in recipe.options if option not in absent)
        devices = "".join(f"{line}\n" for line in recipe.devices)
        plan = Plan(origin, tree, series, options, devices, _toolchain.compiler_version())
        entry = layout.store / plan.build_id
        if not (entry / "record.json").is_file():
            patched = apply(series, repository=layout.repository, tree=tree.tree, scratch=scratch)
            _check_modes(layout.repository, tree.tree, patched)
            entry = Work(layout, plan, patched, lock, progress, jobs, untrusted=True).install(bundle_name(recipe), scratch)
        else:
            layout.name(bundle_name(recipe), entry)
    return load(entry).installed(entry, name=bundle_name(recipe))


def _series(recipe: QemuRecipe, folder: Path) -> tuple[Series, ...]:
    """The patches in order, grouped as they were; each is looked at once more before any program gets it."""
    grouped: dict[str, list[Patch]] = {}
    for wanted in recipe.patches:
        path = folder / f"{wanted.sha256}.patch"
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != wanted.sha256:
            raise UsageError(f"the patch {wanted.label} is not what the recipe names")
        if problem := patch_problem(content):
            raise UsageError(f"the patch {wanted.label} is refused: it {problem}")
        grouped.setdefault(wanted.label.partition("/")[0], []).append(Patch(wanted.label, path))
    return tuple(Series(name, tuple(patches)) for name, patches in grouped.items())


def _check_modes(repository: Path, before: str, after: str) -> None:
    """Whatever git made of the patches: plain files only, since we write beside them."""
    for line in run(["git", "diff-tree", "-r", before, after], cwd=repository, env=IDENTITY).splitlines():
        mode = line.split()[1]
        if mode not in _PLAIN_MODES:
            raise UsageError(f"the patches are refused: they make something else than a plain file ({line.split()[-1]!r})")
