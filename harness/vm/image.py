# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest image: built once from the distribution's packages, then found again in milliseconds.

::

    CACHE/packages/*.deb            what was downloaded
    CACHE/images/<digest>/          one image: image.json and the files it names
    CACHE/images/by-input/<key>     link to the image last built from these inputs

The key covers what is at hand without a network (recipe, scripts, generator source, a user's kernel); the digest
covers the packages' versions too. So an image stays as it is until an input changes or a refresh is asked for.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from harness.errors import TestbedError, UsageError
from harness.resources import image_resources
from harness.vm import guest_tree, initramfs, packages
from harness.vm.guest_tree import Kernel, Keys, ModuleEntry, Parts, Recipe, find_file, make_tree
from harness.vm.kernel import extract_vmlinux, has_pvh_entry, kernel_release, resolve_modules

__all__ = ["GuestImage", "build_image", "load_image"]

#: Of image.json and the files it stands for; to be raised when older images can no longer be used.
_LAYOUT_VERSION = 1


class GuestImage(msgspec.Struct, frozen=True):
    """A guest image on this host. All paths are absolute and exist.

    ``kernel`` is what to boot: the uncompressed kernel where QEMU can enter it directly (PVH), else ``bzimage``.
    ``ssh_key`` is the private key (ed25519, mode 0600) that logs in as root, ``host_key`` the guest's public one
    ("ssh-ed25519 ..."). ``generator`` is the static traffic generator for the host's side.
    """

    directory: Path
    kernel: Path
    bzimage: Path
    initrd: Path
    digest: str
    kernel_release: str
    ssh_key: Path
    host_key: str
    generator: Path


class _Manifest(msgspec.Struct, frozen=True):
    """image.json: names relative to the image's folder, and what the image was made of."""

    layout_version: int
    digest: str
    kernel: str
    kernel_release: str
    host_key: str
    packages: dict[str, str]
    modules: list[str]


# ---- finding ----


def load_image(directory: Path) -> GuestImage:
    """The image in `directory`. UsageError if there is none, or one of another layout."""
    manifest_path = directory / "image.json"
    try:
        manifest = msgspec.json.decode(manifest_path.read_bytes(), type=_Manifest)
    except FileNotFoundError as error:
        raise UsageError(
            f"{directory} is no guest image (it has no image.json)", hint="switchover image build"
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{manifest_path} cannot be read: {error}", hint="switchover image build") from error
    if manifest.layout_version != _LAYOUT_VERSION:
        raise UsageError(
            f"{directory} has layout {manifest.layout_version}, this version needs {_LAYOUT_VERSION}",
            hint="switchover image build",
        )
    directory = directory.resolve()
    image = GuestImage(
        directory=directory,
        kernel=directory / manifest.kernel,
        bzimage=directory / "bzImage",
        initrd=directory / "initrd.cpio",
        digest=manifest.digest,
        kernel_release=manifest.kernel_release,
        ssh_key=directory / "id_ed25519",
        host_key=manifest.host_key,
        generator=directory / "swgen",
    )
    for path in (image.kernel, image.bzimage, image.initrd, image.ssh_key, image.generator):
        if not path.is_file():
            raise UsageError(
                f"the guest image {directory} is not whole: {path.name} is missing", hint=f"rm -r {directory}"
            )
    return image


def _recipe_files(folder: Path) -> Iterator[Path]:
    """What the image is made of: not the documentation beside it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            yield path


def _input_key(recipe_folder: Path, *, kernel: Kernel | None) -> str:
    state = hashlib.sha256()

    def add(name: str, content: bytes) -> None:
        state.update(b"%s %d\n" % (name.encode(), len(content)))
        state.update(content)

    for source in (__file__, guest_tree.__file__, initramfs.__file__):  # what puts it together is an input too
        add("source", Path(source).read_bytes())
    for path in _recipe_files(recipe_folder):
        add(path.relative_to(recipe_folder).as_posix(), path.read_bytes())
    if kernel is not None:
        add("bzImage", kernel.bzimage)
        for module in kernel.modules:
            add(f"module {module.name}", module.content)
    return state.hexdigest()[:32]


# ---- building ----


@asynccontextmanager
async def _locked(path: Path, *, progress: Callable[[str], None]) -> AsyncIterator[None]:
    """Holds an exclusive lock on `path`; the kernel gives it back if we die."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress("waiting for another build of the guest image")
                    told = True
                await asyncio.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _find_modules_folder(kernel: Path, release: str, modules: Path | None) -> Path | None:
    """The folder of the kernel's modules: the given one, or where an installed kernel has them."""
    if modules is None:
        candidates = [kernel.parent.parent / "lib/modules" / release, Path("/lib/modules") / release]
        return next((folder for folder in candidates if folder.is_dir()), None)
    for folder in (modules / "lib/modules" / release, modules / release, modules):
        if folder.is_dir() and ((folder / "modules.order").exists() or (folder / "kernel").is_dir()):
            return folder
    raise UsageError(
        f"{modules} is no modules folder of kernel {release}",
        hint="give lib/modules/RELEASE as made by: make modules_install INSTALL_MOD_PATH=...",
    )


def _read_kernel(bzimage_path: Path, modules: Path | None, wishes: list[ModuleEntry]) -> Kernel:
    try:
        bzimage = bzimage_path.read_bytes()
    except OSError as error:
        raise UsageError(f"the kernel {bzimage_path} cannot be read: {error.strerror}") from error
    what = str(bzimage_path)
    release = kernel_release(bzimage, what=what)
    folder = _find_modules_folder(bzimage_path, release, modules)
    resolved = resolve_modules(
        wishes, folder=folder, vmlinux=lambda: extract_vmlinux(bzimage, what=what), release=release
    )
    for module in resolved:
        if not module.vermagic.startswith(f"{release} "):
            raise UsageError(
                f"module {module.name} was built for kernel {module.vermagic.split(' ')[0]}, not for {release}",
                hint="give the modules folder that belongs to this kernel",
            )
    return Kernel(release=release, bzimage=bzimage, modules=resolved)


def _link(target: Path, link: Path) -> None:
    """Makes `link` point to `target`, atomically."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)


async def build_image(
    *,
    cache: Path,
    progress: Callable[[str], None],
    kernel: Path | None = None,
    modules: Path | None = None,
    refresh: bool = False,
) -> GuestImage:
    """The guest image for these inputs, built if it is not in the cache.

    `kernel` is a user's own bzImage and `modules` its ``lib/modules/RELEASE`` folder (looked for beside the kernel
    and in /lib/modules if not given); without them it is the distribution's cloud kernel. `refresh` looks for newer
    packages even if an image is there. An image appears complete or not at all, and only one build runs per cache.

    Raises EnvironmentLackError (a program, package lists or the mirror is missing), UsageError (the kernel or its
    modules will not do), ProcessError and TestbedError (a full disk, for one).
    """
    if modules is not None and kernel is None:
        raise UsageError("a modules folder was given without its kernel", hint="give --kernel too")
    recipe_folder = image_resources() / "guest"
    recipe = msgspec.convert(tomllib.loads((recipe_folder / "recipe.toml").read_text()), Recipe)
    own = _read_kernel(kernel, modules, recipe.modules) if kernel is not None else None
    images = cache / "images"
    known = images / "by-input" / _input_key(recipe_folder, kernel=own)
    if known.exists() and not refresh:
        return load_image(known)
    try:
        images.mkdir(parents=True, exist_ok=True)
        async with _locked(images / ".lock", progress=progress):
            if not known.exists() or refresh:
                await _build(recipe, recipe_folder=recipe_folder, cache=cache, own=own, known=known, progress=progress)
    except OSError as error:
        raise TestbedError(f"the guest image cannot be written to {images}: {error}") from error
    return load_image(known)


async def _build(
    recipe: Recipe,
    *,
    recipe_folder: Path,
    cache: Path,
    own: Kernel | None,
    known: Path,
    progress: Callable[[str], None],
) -> None:
    """Makes `known` a link to an image of the packages as they are now. To be called under the lock."""
    images = known.parent.parent
    for leftover in images.glob(".build-*"):  # of a build that was killed: nobody else builds now
        shutil.rmtree(leftover, ignore_errors=True)
    progress("looking up packages")
    kernel_package = None if own else await packages.real_kernel_package(recipe.kernel)
    found = await packages.resolve([*recipe.packages, *filter(None, [kernel_package])])
    versions = {package.name: f"{package.version} {package.sha256}" for package in found}
    digest = hashlib.sha256(known.name.encode() + msgspec.json.encode(versions, order="sorted")).hexdigest()[:32]
    if not (images / digest).exists():
        with tempfile.TemporaryDirectory(dir=images, prefix=".build-") as name:
            work = Path(name)
            progress(f"fetching {len(found)} packages")
            archives = await packages.download(found, folder=cache / "packages")
            roots: dict[str, Path] = {}
            for package, archive in zip(found, archives, strict=True):
                roots[package.name] = await packages.unpack(archive, folder=work / "packages")
            if own is None:
                own = await asyncio.to_thread(_packaged_kernel, roots.pop(str(kernel_package)), recipe)
            progress("compiling the guest's own programs")
            for program in recipe.programs:
                out = work / "compiled" / program
                out.parent.mkdir(exist_ok=True)
                await packages.run("make", "-s", "-C", recipe_folder / program, f"OUT={out}", out)
            applets = await packages.run(find_file(roots["busybox-static"], "bin/busybox"), "--list")
            progress(f"putting the image together, kernel {own.release}")
            parts = Parts(
                recipe=recipe,
                recipe_folder=recipe_folder,
                packages=roots,
                compiled=work / "compiled",
                applets=applets.split(),
                kernel=own,
            )
            await asyncio.to_thread(_write_image, work / "image", parts=parts, digest=digest, versions=versions)
            (work / "image").rename(images / digest)
    _link(images / digest, known)


def _packaged_kernel(root: Path, recipe: Recipe) -> Kernel:
    """The kernel of an unpacked kernel package."""
    (bzimage_path,) = (root / "boot").glob("vmlinuz-*")
    return _read_kernel(bzimage_path, root, recipe.modules)


def _write_image(folder: Path, *, parts: Parts, digest: str, versions: dict[str, str]) -> None:
    folder.mkdir()
    keys = Keys()
    shutil.copy(parts.compiled / "swgen", folder / "swgen")
    (folder / "initrd.cpio").write_bytes(make_tree(parts, keys=keys).to_cpio())
    (folder / "bzImage").write_bytes(parts.kernel.bzimage)
    vmlinux = extract_vmlinux(parts.kernel.bzimage)
    pvh = has_pvh_entry(vmlinux)
    if pvh:
        (folder / "vmlinux").write_bytes(vmlinux)
    ssh_key = folder / "id_ed25519"
    ssh_key.touch(mode=0o600)
    ssh_key.write_bytes(keys.login_private)
    manifest = _Manifest(
        layout_version=_LAYOUT_VERSION,
        digest=digest,
        kernel="vmlinux" if pvh else "bzImage",
        kernel_release=parts.kernel.release,
        host_key=keys.host_line,
        packages=versions,
        modules=[module.name for module in parts.kernel.modules],
    )
    (folder / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
