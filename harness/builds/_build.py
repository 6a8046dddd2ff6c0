"""Build a QEMU: source, series and options in, an install with a content-addressed identity out."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.builds import _probe, _toolchain
from harness.builds._apply import IDENTITY, apply
from harness.builds._fetch import FETCHABLE, firmware
from harness.builds._install import QemuInstall, Record, digest, load, save
from harness.builds._layout import Layout, checked_name, exclusive, saying_disk_full
from harness.builds._portable import PATCHES
from harness.builds._process import CommandError, Progress, run, silent
from harness.builds._recipe import Recipe, images_dir
from harness.builds._sandbox import sandboxed
from harness.builds._series import Series, resolve
from harness.builds._source import Source, Tree, built_binary, import_source, parse
from harness.cache import cache_dir
from harness.errors import BuildError, EnvironmentLackError, SwitchoverError, TestbedError, UsageError

__all__ = ["REFERENCE", "Plan", "Work", "build", "need_bytes"]

REFERENCE = "reference"
_FORMAT = 1  # raised when the same inputs would give another binary
_TARGET = _probe.BINARY
_NEED_BYTES = 2 << 30
_KEPT_FOLDERS = 4  # configurations that a slot can go on with; a few hundred MB each
_FIRMWARE_OF_TREE = (
    "bios*.bin", "kvmvapic.bin", "linuxboot*.bin", "multiboot*.bin", "pvh.bin", "vgabios*.bin", "efi-virtio.rom",
)
# what decides that a configured build folder can't be carried on with
_CONFIGURE_FILES = ("configure", "pythondeps.toml", "python/scripts/mkvenv.py")
_KCONFIG = re.compile(r"^\s*(?:menu)?config (\w+)", re.MULTILINE)
_DEVICE = re.compile(r"CONFIG_(\w+)=y")
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_STALE = ("no known rule to make it", "ninja: error: loading", "ninja: error: rebuilding", "ninja: error: build.ninja")


def need_bytes() -> int:
    """Room that a build needs."""
    return _NEED_BYTES


def build(
    name: str,
    *,
    source: str = "debian",
    series: Sequence[Path | str] = (),
    options: Sequence[str] = (),
    minimal: bool = True,
    cache: Path | None = None,
    progress: Progress = silent,
    jobs: int | None = None,
) -> QemuInstall:
    """Build QEMU and let `name` stand for it; what is built already is only named.

    `source` is ``debian`` (or ``debian:VERSION``), a git address (``#REF`` for a branch or tag), a tarball or .dsc, or
    a folder. A folder with a build in it is used as it is, at every start, and needs no series or options.
    `series` go on top in order (see `resolve`). `options` are added to the testbed's minimal configuration, or, with
    ``minimal=False``, are the whole configuration. `reference` alone is Debian's source with all our series.

    The install appears at once or not at all, and was started before it appears. Raises `UsageError` for a series that
    doesn't apply (patch, file and hunk), `EnvironmentLackError` for what the host lacks (dependency and package, disk
    space, network) and `BuildError` for source that doesn't compile.
    """
    checked_name(name)
    if name in FETCHABLE:
        raise UsageError(f"{name!r} is a version to fetch", hint=f"switchover qemu fetch {name}; or another name")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs must be at least 1, not {jobs}")
    if name == REFERENCE:
        if source != "debian" or series or options or not minimal:
            raise UsageError(f"{REFERENCE!r} is what images/qemu says", hint="choose another name for your own build")
        series = [images_dir() / "series"]
    layout = Layout(cache or cache_dir())
    origin = parse(source)
    if origin.kind == "folder" and (binary := built_binary(Path(origin.place))):
        if series or options:
            raise UsageError(f"{origin.place} is built already and is used as it is",
                             hint=f"leave out the series and options, or name its source by git: {origin.place}#HEAD")
        return _adopt(layout, name, Path(origin.place), binary, progress=progress)
    with saying_disk_full(layout.cache), exclusive(layout, progress=progress) as lock, layout.scratch() as scratch:
        recipe = Recipe.read()
        prepared = resolve(series, scratch=scratch, progress=progress)
        layout.require_free(_NEED_BYTES)
        _toolchain.require(debian_source=origin.kind == "debian")
        tree = import_source(origin, layout=layout, recipe=recipe, scratch=scratch, progress=progress, keep_fds=(lock,))
        plan = _plan(origin, tree, prepared, options, recipe=recipe, minimal=minimal)
        entry = layout.store / plan.build_id
        if (entry / _TARGET).is_file():
            progress(f"{name} is built already ({plan.build_id})")
            layout.name(name, entry)
        else:
            shutil.rmtree(entry, ignore_errors=True)  # not one of ours: publishing is one rename
            patched = apply(prepared, repository=layout.repository, tree=tree.tree, scratch=scratch)
            if prepared:
                progress(f"applied {', '.join(each.name for each in prepared)}")
            entry = Work(layout, plan, patched, lock, progress, jobs).install(name, scratch)
    return load(entry).installed(entry, name=name)


def _adopt(layout: Layout, name: str, folder: Path, binary: Path, *, progress: Progress) -> QemuInstall:
    """Let `name` stand for a developer's build tree."""
    found = _probe.of_path(binary)
    record = Record(
        kind="tree", build_id=digest("tree", str(binary)), version=found.version, origin=f"build tree {folder}",
        binary=str(binary), data_dirs=found.data_dirs,
    )
    with exclusive(layout, progress=progress), layout.scratch() as scratch:
        install = scratch / "install"
        install.mkdir()
        save(record, install)
        shutil.rmtree(layout.store / record.build_id, ignore_errors=True)
        entry = layout.publish(install, build_id=record.build_id, name=name)
    progress(f"{name} is {binary}, as it is at each start")
    return record.installed(entry, name=name)


@dataclass(frozen=True)
class Plan:
    """All that decides what is built."""

    source: Source
    tree: Tree
    series: tuple[Series, ...]
    options: tuple[str, ...]
    devices: str  # content of the device list; empty for a configuration of the user's own
    compiler: str

    @property
    def build_id(self) -> str:
        patches = [patch.digest for each in self.series for patch in each.patches]
        return digest("build", _FORMAT, self.tree.tree, patches, self.options, self.devices, self.compiler)

    @property
    def device_list(self) -> str:
        """Name of the device list in the source tree."""
        return f"switchover-{digest(self.devices)[:8]}"


def _plan(
    source: Source, tree: Tree, series: Sequence[Series], options: Sequence[str], *, recipe: Recipe, minimal: bool
) -> Plan:
    chosen: list[str] = []
    devices = ""
    if minimal:
        chosen += recipe.configure.options
        chosen += [each.option for each in recipe.configure.when_present if _toolchain.has_module(each.module)]
        extra = [line for each in series for line in each.devices]
        devices = (images_dir() / "devices.mak").read_text() + "".join(f"{line}\n" for line in extra)
    elif not any(option.startswith("--target-list") for option in options):
        chosen.append("--target-list=x86_64-softmmu")
    if source.offline:
        chosen.append("--disable-download")
    chosen += options
    return Plan(source, tree, tuple(series), tuple(chosen), devices, _toolchain.compiler_version())


class Work:
    """One build in its slot, under the cache's lock."""

    def __init__(
        self, layout: Layout, plan: Plan, tree: str, lock: int, progress: Progress, jobs: int | None, *, untrusted: bool = False
    ) -> None:
        """With `untrusted`, whatever the source brings along runs in a sandbox, in a slot that is gone afterwards."""
        self._layout, self._plan, self._tree, self._lock, self._progress = layout, plan, tree, lock, progress
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._tools = _toolchain.prepare(layout, progress=progress)
        self._untrusted = untrusted
        self._slot = layout.slots / (f"untrusted-{plan.build_id}" if untrusted else plan.source.slot)
        self._source = self._slot / "source"
        self._argv = [
            str(self._source / "configure"), *plan.options,
            f"--python={self._tools.python}", f"--ninja={self._tools.ninja}",
        ]
        if plan.devices:
            self._argv.append(f"--with-devices-x86_64={plan.device_list}")
        self._folder = self._slot / f"build-{digest(self._argv)[:8]}"
        self._log = self._slot / f"{self._folder.name}.log"
        self._env = {
            "CC": self._tools.compiler,
            # the cache's own, so that what a build costs doesn't depend on what else was compiled here
            "CCACHE_DIR": os.environ.get("CCACHE_DIR") or str(layout.cache / "ccache"),
            "CCACHE_BASEDIR": str(self._slot),
            # trusting ninja's dependency files saves ccache its own preprocessor runs: a third of a first build
            "CCACHE_DEPEND": "1",
            "PATH": f"{Path(self._tools.ninja).parent}:{os.environ['PATH']}",
        }
        if untrusted:
            self._env |= {"CCACHE_READONLY": "1", "CCACHE_TEMPDIR": "/tmp"}

    def install(self, name: str, scratch: Path) -> Path:
        """Compile and publish; returns the store's folder."""
        try:
            self._check_out()
            self._log.write_text("")
            fresh = self._configure()
            try:
                self._compile()
            except CommandError as error:
                if fresh or error.disk_full or not any(sign in error.output for sign in _STALE):
                    raise
                self._progress("the old build folder can't be carried on with; starting afresh")
                shutil.rmtree(self._folder)
                self._configure()
                self._compile()
            entry = self._publish(name, scratch)
            if self._untrusted:
                self._give_up()
            return entry
        except CommandError as error:
            if error.disk_full:
                self._give_up()
                raise
            raise self._verdict(error) from error
        except OSError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """A full disk leaves files cut off in the middle: nothing of this slot can be trusted."""
        shutil.rmtree(self._slot, ignore_errors=True)
        for part in self._layout.repository.glob("objects/*/tmp_obj_*"):
            part.unlink(missing_ok=True)

    def _confined(self, argv: Sequence[str], *, readable: Sequence[Path] = (), writable: Path | None = None) -> list[str]:
        """`argv` as it is to be started: in a sandbox if what it runs is a stranger's."""
        if not self._untrusted:
            return list(argv)
        tools = [Path(self._tools.python).parent.parent, Path(self._tools.ninja).parent, Path(self._env["CCACHE_DIR"])]
        return sandboxed(argv, writable=writable, readable=[*readable, *tools], env=self._env if writable else None)

    def _run(self, argv: Sequence[str], each_line: Progress | None = None) -> None:
        if self._untrusted:
            run(self._confined(argv, readable=[self._source], writable=self._folder), log=self._log, each_line=each_line)
            return
        run(argv, cwd=self._folder, env=self._env, log=self._log, keep_fds=(self._lock,), each_line=each_line)

    def _check_out(self) -> None:
        """Bring the working tree to the patched source; files that stay the same keep their times."""
        self._progress("preparing the source tree")
        fresh = self._plan.tree.unpacked
        if fresh and self._plan.tree.index and not self._source.exists():
            self._slot.mkdir(parents=True, exist_ok=True)
            self._plan.tree.index.rename(self._slot / "index")
            fresh.rename(self._source)
        self._source.mkdir(parents=True, exist_ok=True)
        (self._slot / "index.lock").unlink(missing_ok=True)
        env = {**IDENTITY, "GIT_DIR": str(self._layout.repository), "GIT_INDEX_FILE": str(self._slot / "index"),
               "GIT_WORK_TREE": str(self._source)}
        run(["git", "read-tree", "--reset", "-u", self._tree], cwd=self._source, env=env, keep_fds=(self._lock,))
        if self._plan.devices:
            listing = self._source / "configs/devices/x86_64-softmmu" / f"{self._plan.device_list}.mak"
            if not listing.parent.is_dir():
                raise UsageError(f"{self._plan.tree.origin} is too old for the minimal configuration",
                                 hint="give a whole configuration of your own")
            devices = self._known_devices()
            if not listing.is_file() or listing.read_text() != devices:
                listing.write_text(devices)

    def _known_devices(self) -> str:
        """The device list without our lines for what this source doesn't have, on which its configure would fail."""
        known = {
            symbol for file in self._source.rglob("Kconfig*") if file.is_file()
            for symbol in _KCONFIG.findall(file.read_text(errors="replace"))
        }
        lines = []
        for line in self._plan.devices.splitlines():
            match = _DEVICE.match(line)
            if match and match[1] not in known:
                self._progress(f"this source has no {match[1]}")
            else:
                lines.append(f"{line}\n")
        return "".join(lines)

    def _configure(self) -> bool:
        """Configure, unless the build folder is configured with these tools and this script; says whether it did."""
        parts = [self._argv, self._tools.meson, self._plan.compiler]
        for file in _CONFIGURE_FILES:
            path = self._source / file
            parts.append(path.read_text() if path.is_file() else "")
        stamp, wanted = self._folder / ".switchover-configured", digest(*parts)
        if stamp.is_file() and stamp.read_text() == wanted and (self._folder / "build.ninja").is_file():
            return False
        self._progress("configuring")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        try:
            self._run(self._argv)
        except CommandError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if not error.disk_full and (lack := _toolchain.mend_for(error.output)):
                raise lack from error
            raise
        if not self._untrusted:  # a stranger's configure may have left a link there; its slot is never carried on with
            stamp.write_text(wanted)
        folders = [folder for folder in self._slot.glob("build-*") if folder.is_dir()]
        for old in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)[_KEPT_FOLDERS:]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    def _compile(self) -> None:
        self._progress("compiling")
        self._run([self._tools.ninja, f"-j{self._jobs}", _TARGET], _steps(self._progress))

    def _verdict(self, error: CommandError) -> SwitchoverError:
        """What a failed configure or compile run comes down to."""
        what = f"{self._plan.tree.origin} with {len(self._plan.series)} series"
        hint = f"the whole log is {self._log}"
        if match := re.search(r"^ERROR: (unknown option .*)$", error.output, re.MULTILINE):
            return UsageError(f"QEMU's configure: {match.group(1)}", hint="see `configure --help` of that source")
        if said := list(dict.fromkeys(re.findall(r"^.*?\berror: .*$", error.output, re.MULTILINE)))[:5]:
            lines = "\n    ".join(_shortened(said, self._source))
            return BuildError(f"{what} does not compile:\n    {lines}", hint=hint)
        return BuildError(f"{what} can't be built: {error.message}", hint=hint)

    def _publish(self, name: str, scratch: Path) -> Path:
        install = scratch / "install"
        install.mkdir()
        if (self._folder / _TARGET).is_symlink():
            raise TestbedError(f"the build of {name} left a link where its binary should be")
        shutil.copy2(self._folder / _TARGET, install / _TARGET)
        shutil.copy2(self._log, install / "build.log")
        prefix = self._confined([str(install / _TARGET)], readable=[install, self._layout.root])
        version = _probe.checked_version(prefix)
        own = self._firmware_of_tree(install / "firmware")
        found = () if own else firmware(self._layout, progress=self._progress, keep_fds=(self._lock,))
        folders = [install / "firmware"] if own else list(found)
        if missing := _probe.missing_firmware(prefix, folders):
            raise EnvironmentLackError(f"no firmware for {name}: {', '.join(missing)}", hint=_probe.FIRMWARE_MEND)
        _probe.smoke([*prefix, *(word for folder in folders for word in ("-L", str(folder)))])
        entry = self._layout.store / self._plan.build_id
        plan = self._plan
        (install / PATCHES).mkdir()
        for number, patch in enumerate(patch for each in plan.series for patch in each.patches):
            shutil.copyfile(patch.path, install / PATCHES / f"{number:04d}-{patch.path.name}")
        record = Record(
            kind="build", build_id=plan.build_id, version=version, binary=_TARGET,
            origin=" + ".join([plan.tree.origin, *(each.name for each in plan.series)]),
            # firmware that lies in the cache is named relative to the entry, so that the cache can move
            data_dirs=("firmware",) if own else tuple(_relative(folder, entry, self._layout.root) for folder in found),
            details={
                "source": plan.tree.origin, "source_tree": plan.tree.tree, "patched_tree": self._tree,
                "series": [f"{patch.label} {patch.digest[:16]}" for each in plan.series for patch in each.patches],
                "options": list(plan.options), "devices": plan.devices.splitlines(), "compiler": plan.compiler,
            },
        )
        save(record, install)
        self._progress(f"{name}: QEMU {version}, build {plan.build_id}")
        entry = self._layout.publish(install, build_id=plan.build_id, name=name)
        self._layout.trim()
        return entry

    def _firmware_of_tree(self, into: Path) -> bool:
        """Copy the source's own firmware, which upstream's trees have and Debian's don't; says whether it has any."""
        blobs = self._source / "pc-bios"
        if not all((blobs / file).is_file() for file in _probe.NEEDED_FIRMWARE):
            return False
        into.mkdir()
        for pattern in _FIRMWARE_OF_TREE:
            for blob in blobs.glob(pattern):
                shutil.copy2(blob, into)
        return True


def _relative(folder: Path, entry: Path, root: Path) -> str:
    return os.path.relpath(folder, entry) if folder.is_relative_to(root) else str(folder)


def _shortened(lines: Sequence[str], source: Path) -> Iterator[str]:
    """Compiler messages without the cache's path in front of the file."""
    for line in lines:
        yield re.sub(r"^(?:\.\./|/)\S*?" + re.escape(source.name) + "/", "", line)


def _steps(progress: Progress) -> Callable[[str], None]:
    """Pass ninja's steps on at each twentieth part of the whole, so that a log isn't a line per file."""
    last = -1

    def line(text: str) -> None:
        nonlocal last
        if (match := _STEP.match(text)) and (part := int(match[1]) * 20 // max(1, int(match[2]))) > last:
            last = part
            progress(f"compiling {match[1]}/{match[2]}")

    return line
