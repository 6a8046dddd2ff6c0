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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.errors import TestbedError, UsageError
from harness.resources import image_resources
from harness.vm import initramfs, packages
from harness.vm.kernel import Module, ModuleWish, extract_vmlinux, has_pvh_entry, kernel_release, resolve_modules

__all__ = ["GuestImage", "build_image", "load_image"]

#: Of image.json and the files it stands for; to be raised when older images can no longer be used.
_LAYOUT_VERSION = 1
_LIBRARY_FOLDER = "usr/lib/x86_64-linux-gnu"


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


class _ModuleEntry(ModuleWish, frozen=True, forbid_unknown_fields=True):
    boot: bool = True


class _Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kernel: str
    packages: dict[str, list[str]]
    data: dict[str, list[str]]
    programs: dict[str, list[str]]
    files: dict[str, str]
    modules: list[_ModuleEntry]


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
    return GuestImage(
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


def _recipe_files(folder: Path) -> Iterator[Path]:
    """What the image is made of: not the documentation beside it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            yield path


def _input_key(recipe_folder: Path, *, bzimage: bytes | None, modules: list[Module]) -> str:
    state = hashlib.sha256()

    def add(name: str, content: bytes) -> None:
        state.update(b"%s %d\n" % (name.encode(), len(content)))
        state.update(content)

    for source in (__file__, initramfs.__file__):  # what puts it together is an input too
        add("source", Path(source).read_bytes())
    for path in _recipe_files(recipe_folder):
        add(path.relative_to(recipe_folder).as_posix(), path.read_bytes())
    if bzimage is not None:
        add("bzImage", bzimage)
        for module in modules:
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


class _Kernel(msgspec.Struct, frozen=True):
    release: str
    bzimage: bytes
    modules: list[Module]


def _read_kernel(bzimage_path: Path, modules: Path | None, wishes: list[_ModuleEntry]) -> _Kernel:
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
    return _Kernel(release=release, bzimage=bzimage, modules=resolved)


def _ssh_string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _dropbear_key(key: Ed25519PrivateKey) -> bytes:
    """The key in dropbear's own file format: type, then private and public half as one string."""
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return _ssh_string(b"ssh-ed25519") + _ssh_string(private + public)


def _public_line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _find_file(root: Path, name: str) -> Path:
    """A file of an unpacked package, on either side of the "usr" merge."""
    for candidate in (root / name, root / "usr" / name):
        if candidate.is_file():
            return candidate
    raise TestbedError(f"package {root.name} has no file {name}; the recipe does not fit this distribution")


def _make_tree(
    recipe: _Recipe,
    *,
    recipe_folder: Path,
    roots: dict[str, Path],
    release: str,
    modules: list[Module],
    compiled: Path,
    applets: list[str],
    login_key: str,
    host_key: bytes,
) -> initramfs.Tree:
    tree = initramfs.Tree()
    for link in ("bin", "sbin", "usr/sbin"):
        tree.link(link, "/usr/bin")
    tree.link("lib", "/usr/lib")
    for folder in ("proc", "sys", "dev", "run", "tmp"):
        tree.folder(folder)
    # For the time before init has mounted /dev.
    tree.character_device("dev/console", major=5, minor=1)
    tree.character_device("dev/null", major=1, minor=3, mode=0o666)

    programs: list[bytes] = []
    for package, names in recipe.packages.items():
        for name in names:
            content = _find_file(roots[package], name).read_bytes()
            tree.file(f"usr/bin/{Path(name).name}", content, mode=0o755)
            programs.append(content)
    for name, (path, *links) in recipe.programs.items():
        tree.file(path, (compiled / name).read_bytes(), mode=0o755)
        for link in links:
            tree.link(link, f"/{path}")
    initramfs.add_libraries(tree, programs, roots=list(roots.values()), folder=_LIBRARY_FOLDER)
    tree.link("usr/bin/sh", "dash")
    for applet in applets:
        if f"usr/bin/{applet}" not in tree:  # the full program wins over busybox's
            tree.link(f"usr/bin/{applet}", "busybox")
    for package, names in recipe.data.items():
        for name in names:
            tree.file(name, _find_file(roots[package], name).read_bytes())
    for name, path in recipe.files.items():
        tree.file(path, (recipe_folder / name).read_bytes())

    for module in modules:
        tree.file(f"usr/lib/modules/{release}/{module.name}.ko", module.content)
    listing = "".join(f"{module.name}.ko:{''.join(f' {need}.ko' for need in module.needs)}\n" for module in modules)
    tree.file(f"usr/lib/modules/{release}/modules.dep", listing.encode())
    at_boot = {wish.name for wish in recipe.modules if wish.boot}
    order = [f"{release}/{module.name}.ko\n" for module in modules if module.wished_by & at_boot]
    tree.file("etc/switchover/modules", "".join(order).encode())

    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/group", b"root:x:0:\n")
    tree.file("etc/shells", b"/bin/sh\n")
    tree.folder("root", mode=0o700)
    tree.folder("root/.ssh", mode=0o700)
    tree.file("root/.ssh/authorized_keys", f"{login_key}\n".encode(), mode=0o600)
    tree.folder("etc/dropbear", mode=0o700)
    tree.file("etc/dropbear/host_key", host_key, mode=0o600)
    return tree


async def _unpacked(found: list[packages.Package], *, cache: Path, work: Path) -> dict[str, Path]:
    archives = await packages.download(found, folder=cache / "packages")
    roots = {}
    for package, archive in zip(found, archives, strict=True):
        roots[package.name] = await packages.unpack(archive, folder=work)
    return roots


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
    modules will not do), ProcessError and TestbedError.
    """
    if modules is not None and kernel is None:
        raise UsageError("a modules folder was given without its kernel", hint="give --kernel too")
    recipe_folder = image_resources() / "guest"
    recipe = msgspec.convert(tomllib.loads((recipe_folder / "recipe.toml").read_text()), _Recipe)
    own = _read_kernel(kernel, modules, recipe.modules) if kernel is not None else None
    key = _input_key(recipe_folder, bzimage=own.bzimage if own else None, modules=own.modules if own else [])
    images = cache / "images"
    known = images / "by-input" / key
    if known.exists() and not refresh:
        return load_image(known)

    images.mkdir(parents=True, exist_ok=True)
    async with _locked(images / ".lock", progress=progress):
        if known.exists() and not refresh:
            return load_image(known)
        progress("looking up packages")
        names = list(recipe.packages)
        if own is None:
            kernel_package = await packages.real_kernel_package(recipe.kernel)
            names.append(kernel_package)
        found = await packages.resolve(names)
        versions = {package.name: f"{package.version} {package.sha256}" for package in found}
        digest = hashlib.sha256(key.encode() + msgspec.json.encode(versions, order="sorted")).hexdigest()[:32]
        target = images / digest
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=images, prefix=".build-") as name:
                work = Path(name)
                progress(f"fetching {len(found)} packages")
                roots = await _unpacked(found, cache=cache, work=work / "packages")
                if own is None:
                    root = roots.pop(kernel_package)
                    (bzimage_path,) = (root / "boot").glob("vmlinuz-*")
                    own = await asyncio.to_thread(_read_kernel, bzimage_path, root, recipe.modules)
                progress("compiling the guest's own programs")
                compiled = work / "compiled"
                compiled.mkdir()
                for program in recipe.programs:
                    out = compiled / program
                    await packages.run("make", "-s", "-C", recipe_folder / program, f"OUT={out}", out)
                applets = await packages.run(_find_file(roots["busybox-static"], "bin/busybox"), "--list")
                progress(f"putting the image together, kernel {own.release}")
                result = work / "image"
                result.mkdir()
                await asyncio.to_thread(
                    _write_image,
                    result,
                    recipe=recipe,
                    recipe_folder=recipe_folder,
                    roots=roots,
                    compiled=compiled,
                    applets=applets.split(),
                    kernel=own,
                    digest=digest,
                    versions=versions,
                )
                result.rename(target)
        _link(target, known)
    return load_image(target)


def _write_image(
    result: Path,
    *,
    recipe: _Recipe,
    recipe_folder: Path,
    roots: dict[str, Path],
    compiled: Path,
    applets: list[str],
    kernel: _Kernel,
    digest: str,
    versions: dict[str, str],
) -> None:
    login_key, host_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    tree = _make_tree(
        recipe,
        recipe_folder=recipe_folder,
        roots=roots,
        release=kernel.release,
        modules=kernel.modules,
        compiled=compiled,
        applets=applets,
        login_key=_public_line(login_key),
        host_key=_dropbear_key(host_key),
    )
    shutil.copy(compiled / "swgen", result / "swgen")
    (result / "initrd.cpio").write_bytes(tree.to_cpio())
    (result / "bzImage").write_bytes(kernel.bzimage)
    vmlinux = extract_vmlinux(kernel.bzimage)
    pvh = has_pvh_entry(vmlinux)
    if pvh:
        (result / "vmlinux").write_bytes(vmlinux)
    ssh_key = result / "id_ed25519"
    ssh_key.touch(mode=0o600)
    ssh_key.write_bytes(login_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    manifest = _Manifest(
        layout_version=_LAYOUT_VERSION,
        digest=digest,
        kernel="vmlinux" if pvh else "bzImage",
        kernel_release=kernel.release,
        host_key=_public_line(host_key),
        packages=versions,
        modules=[module.name for module in kernel.modules],
    )
    (result / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
