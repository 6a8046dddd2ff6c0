"""The nested lab: the whole testbed inside a first-level guest, so that another *host* kernel is under test (tun, bridge, vhost, netem).

The first-level guest has no userland of its own: its root is this host's file system through virtiofs, below an overlay that keeps
what is written in memory. Only the cache and the results folder are the host's own. Its kernel and modules are the ones under test.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

from harness.errors import EnvironmentLackError, TestbedError, UsageError
from harness.host.accel import choose_accelerator
from harness.host.deadline import Deadline
from harness.lab import Lab
from harness.model.scenario import Accelerator, Scenario
from harness.run import RunOptions, prepare
from harness.vm import packages
from harness.vm.initramfs import Tree
from harness.vm.kernel import Module, ModuleWish, extract_vmlinux, has_pvh_entry, kernel_release, resolve_modules

__all__ = ["DEBIAN", "run_nested"]

DEBIAN = "debian"
_METAPACKAGE = "linux-image-cloud-amd64"
_NEEDED = ("virtio_pci", "virtiofs", "overlay", "tun", "bridge", "veth")
_WANTED = (
    "virtio_rng", "af_packet", "vhost_net", "tap", "macvtap", "ifb", "dummy", "8021q", "bonding", "sch_netem", "sch_tbf", "sch_plug", "sch_ingress",
    "cls_u32", "cls_bpf", "act_bpf", "act_mirred", "act_gact",
)  # fmt: skip
_MEMORY = "3G"
_PATIENCE = 20
"""What a second is to the lab inside: TCG in TCG is so much slower."""
_VCPUS = 1
"""A lab inside hardly uses a second one, and with one the frames of a direction are queued in the order in which they were stamped."""
_SOCKET, _CONSOLE = "root.sock", "console.log"
_TCG_CPU = "max,la57=off"
"""Without a fifth level of page tables, each of which TCG walks."""
_APPEND = "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off cryptomgr.notests random.trust_cpu=on"
_DONE = ".nested-exit-status"
_BOOT_S, _SILENT_S = 300.0, 1800.0
"""How long until it is ready, and then for how long it may say nothing: a boot of a guest inside, the longest silence, takes minutes."""

_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module || echo "nested: $module can't be loaded"; done
mount -t virtiofs root /lower || echo "nested: no root"
mount -t tmpfs -o size=75% upper /upper; mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new || echo "nested: no overlay"
for folder in @SHARED@; do mkdir -p "/new$folder"; mount --bind "/lower$folder" "/new$folder"; done
mount -t proc proc /new/proc; mount -t sysfs sys /new/sys; mount --bind /dev /new/dev
ln -s /proc/self/fd /new/dev/fd; mkdir -p /new/dev/shm /new/dev/pts; mount -t tmpfs shm /new/dev/shm; mount -t devpts pts /new/dev/pts
mount -t tmpfs tmp /new/tmp; mount -t tmpfs run /new/run
for path in @BELOW_TMP@; do
  if [ -d "/lower$path" ]; then mkdir -p "/new$path"; else mkdir -p "$(dirname "/new$path")"; : >"/new$path"; fi
  mount --bind "/lower$path" "/new$path"
done
ip link set lo up 2>/dev/null || ifconfig lo up
echo "nested: ready, kernel $(uname -r)"
{ chroot /new /bin/sh -c @COMMAND@; echo $? >/new@RESULTS@/@DONE@; } | cat
sync
echo "nested: done"
poweroff -f
"""


async def run_nested(
    arguments: Sequence[str], *, scenarios: Sequence[Scenario], host_kernel: str, results: Path, cache: Path, progress: Callable[[str], None]
) -> tuple[int, list[Path]]:
    """Run this program with `arguments` in a first-level guest with the given kernel: its exit status, and what it left in `results`, in order.

    `scenarios`: those that it is going to run; what boots once for them boots out here, where that takes seconds. Empty: all boots inside.
    `host_kernel`: "debian", or a bzImage with its modules where an installed kernel has them. `EnvironmentLackError` where QEMU, virtiofsd or the
    drivers that the guest's root needs are missing.
    """
    qemu, daemon = _program("qemu-system-x86_64"), _program("virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
    if os.geteuid():
        raise EnvironmentLackError("the nested lab shares this host's root with its guest, which only root can do", hint="run it as root")
    results = results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    (results / _DONE).unlink(missing_ok=True)
    known = set(results.iterdir())
    async with AsyncExitStack() as stack:
        work = _work_folder(stack)
        progress("looking for the first-level guest's kernel")
        kernel, modules = await _kernel(host_kernel, cache=cache, work=work)
        await _save_states(scenarios, results=results, cache=cache, progress=progress)
        (work / "linux").write_bytes(kernel)
        command = _command(arguments, results=results, cache=cache)
        (work / "initrd.cpio").write_bytes(await _initrd(modules, command=command, results=results, cache=cache, named=_paths_in(arguments)))
        socket = work / _SOCKET
        await _start(stack, [daemon, f"--socket-path={socket}", "-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=auto"], log=work / "virtiofsd.log")
        await Deadline(10.0).poll(lambda: _exists(socket), awaited="virtiofsd to listen")
        console = work / _CONSOLE
        accelerator, reason = await choose_accelerator(Accelerator.AUTO, argv_prefix=[qemu], cache=cache)
        machine = await _start(stack, _argv(qemu, accelerator=accelerator, work=work), log=work / "qemu.log")
        progress(f"booting the first-level guest ({accelerator}: {reason})")
        try:
            await _follow(machine, console, progress=progress)
        finally:
            with suppress(OSError):
                shutil.copy(console, results / "nested-console.log")
    try:
        status = int((results / _DONE).read_text())
    except (OSError, ValueError):
        raise TestbedError(f"the first-level guest ended without a word; its console is {results / 'nested-console.log'}") from None
    (results / _DONE).unlink()
    return status, sorted(path for path in results.iterdir() if path not in known and path.is_dir() and not path.name.endswith(".partial"))


def _work_folder(stack: AsyncExitStack) -> Path:
    """A folder that goes with `stack`, and with us if we are killed: a child removes it when our end of its input closes."""
    folder = Path(tempfile.mkdtemp(prefix="switchover-nested-"))
    words = ["/bin/sh", "-c", 'cat; rm -rf -- "$1"', "sh", str(folder)]
    remover = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    stack.callback(remover.communicate)
    return folder


async def _save_states(scenarios: Sequence[Scenario], *, results: Path, cache: Path, progress: Callable[[str], None]) -> None:
    """The states from which the guests inside start: they depend on nothing of the host's kernel, and the cache is shared."""
    options = RunOptions(results=results, cache=cache)
    for scenario in scenarios:
        # Where there is no KVM inside; this host need not have vhost.
        network = msgspec.structs.replace(scenario.network, vhost=False)
        try:
            settings = await prepare(msgspec.structs.replace(scenario, network=network, accelerator=Accelerator.TCG), options=options, progress=progress)
        except EnvironmentLackError as lack:
            progress(f"{scenario.name}: {lack.message}: if the first-level guest has it, it boots there")
            continue
        await Lab(msgspec.structs.replace(settings, vhost=scenario.network.vhost), progress=progress).save_states()


def _argv(qemu: str, *, accelerator: str, work: Path) -> list[str]:
    """The first-level guest's QEMU; its files are in `work`."""
    under = ["-accel", "kvm", "-cpu", "host"] if accelerator == "kvm" else ["-accel", "tcg,thread=multi", "-cpu", _TCG_CPU]
    return [
        qemu, "-machine", "q35,memory-backend=mem", *under, "-smp", str(_VCPUS),
        "-m", _MEMORY, "-object", f"memory-backend-memfd,id=mem,size={_MEMORY},share=on",
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{work / _CONSOLE}", "-device", "virtio-rng-pci",
        "-chardev", f"socket,id=root,path={work / _SOCKET}", "-device", "vhost-user-fs-pci,chardev=root,tag=root",
        "-kernel", str(work / "linux"), "-initrd", str(work / "initrd.cpio"), "-append", _APPEND,
    ]  # fmt: skip


def _program(name: str, *others: str) -> str:
    found = shutil.which(name) or next((path for path in others if Path(path).exists()), None)
    if found is None:
        packages = "qemu-system-x86 qemu-system-common (in Debian 13 and later also virtiofsd)"
        raise EnvironmentLackError(f"the nested lab needs {name}", hint=f"apt-get install {packages}")
    return found


async def _exists(path: Path) -> bool:
    return path.exists()


async def _start(stack: AsyncExitStack, argv: list[str], *, log: Path) -> asyncio.subprocess.Process:
    """A process that ends with the block, and with us."""
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *prefix, *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )

    async def end() -> None:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    stack.push_async_callback(end)
    return process


async def _follow(machine: asyncio.subprocess.Process, console: Path, *, progress: Callable[[str], None]) -> None:
    """Pass the guest's lines on until it ends. `DeadlineError` when it is not ready in time, or says nothing more."""
    read, ready = 0, False
    limit = Deadline(_BOOT_S)
    while machine.returncode is None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await machine.wait()
        text = console.read_text(errors="replace") if console.exists() else ""
        whole = text.rfind("\n") + 1
        for line in text[read:whole].splitlines():
            ready = ready or line.startswith("nested: ready")
            progress(f"inside: {line.strip()}")
        if whole > read and ready:
            limit = Deadline(_SILENT_S)
        read = max(read, whole)
        if limit.expired:
            raise limit.error("the first-level guest's next word" if ready else "the first-level guest to be ready", seen=text[-300:])


async def _kernel(host_kernel: str, *, cache: Path, work: Path) -> tuple[bytes, list[Module]]:
    """The kernel (unpacked, where QEMU can boot it so) and the modules that the first-level guest loads, each after those it needs."""
    if host_kernel == DEBIAN:
        name = await packages.real_kernel_package(_METAPACKAGE)
        (package,) = [each for each in await packages.resolve([name]) if each.name == name]
        (archive,) = await packages.download([package], folder=cache / "packages")
        root = await packages.unpack(archive, folder=work / "kernel")
        (path,) = (root / "boot").glob("vmlinuz-*")
    else:
        path, root = Path(host_kernel), Path("/")
        if not path.is_file():
            raise UsageError(f"there is no kernel {path}", hint='give a bzImage, or "debian"')
    bzimage = path.read_bytes()
    release = kernel_release(bzimage, what=str(path))
    candidates = [root / "lib/modules" / release, path.parent.parent / "lib/modules" / release]
    folder = next((each for each in candidates if each.is_dir()), None)
    wishes = [ModuleWish(name=each, required=each in _NEEDED) for each in (*_NEEDED, *_WANTED)]
    vmlinux = extract_vmlinux(bzimage, what=str(path))
    try:
        modules = resolve_modules(wishes, folder=folder, vmlinux=lambda: vmlinux, release=release)
    except UsageError as error:
        raise UsageError(error.message, hint=f"build them in, or have the modules in {' or '.join(map(str, candidates))}") from None
    return vmlinux if has_pvh_entry(vmlinux) else bzimage, modules


def _command(arguments: Sequence[str], *, results: Path, cache: Path) -> str:
    """The shell command inside: this program, from where we are, with the same interpreter."""
    here = Path(__file__).parent.parent
    environment = {
        "SWITCHOVER_CACHE": str(cache), "SWITCHOVER_RESULTS": str(results), "SWITCHOVER_PATIENCE": str(_PATIENCE), "PYTHONPATH": str(here),
        "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/root", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    }  # fmt: skip
    words = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    program = [sys.executable, "-c", "from harness.cli.app import main; main()", *arguments]
    return f"cd {shlex.quote(str(Path.cwd()))} && env {' '.join(words)} {shlex.join(program)} 2>&1"


def _paths_in(arguments: Sequence[str]) -> list[str]:
    """The files and folders that arguments name, as they are or as the value of a setting: scenarios, QEMUs, images."""
    words = [word for argument in arguments for word in re.split(r"[=,:]", argument)]
    return [str(Path(word).absolute()) for word in words if "/" in word and Path(word).exists()]


async def _initrd(modules: Sequence[Module], *, command: str, results: Path, cache: Path, named: Sequence[str]) -> bytes:
    """Busybox, the modules in their order, and the first process."""
    (package,) = [each for each in await packages.resolve(["busybox-static"]) if each.name == "busybox-static"]
    (archive,) = await packages.download([package], folder=cache / "packages")
    tree = Tree()
    with tempfile.TemporaryDirectory() as folder:
        root = await packages.unpack(archive, folder=Path(folder))
        tree.file("bin/busybox", (root / "bin/busybox").read_bytes(), mode=0o755)
    for folder in ("proc", "sys", "dev", "lower", "upper", "new"):
        tree.folder(folder)
    tree.character_device("dev/console", major=5, minor=1)
    for number, module in enumerate(modules):
        tree.file(f"modules/{number:03d}-{module.name}.ko", module.content)
    tree.file("init", _script(command, results=results, cache=cache, named=named).encode(), mode=0o755)
    return tree.to_cpio()


def _script(command: str, *, results: Path, cache: Path, named: Sequence[str] = ()) -> str:
    """The first process: mounts, modules, the command, its status, the end."""
    # What lies below a folder that becomes a tmpfs is bound after that.
    shared = [str(cache), str(results), str(Path(__file__).parent.parent), str(Path(sys.prefix)), str(Path.cwd()), *named]
    below = [path for path in dict.fromkeys(shared) if path.startswith(("/tmp/", "/run/"))]
    script = _INIT
    for name, value in (
        ("SHARED", " ".join(shlex.quote(path) for path in shared[:2] if path not in below)), ("BELOW_TMP", " ".join(map(shlex.quote, below))),
        ("COMMAND", shlex.quote(command)), ("RESULTS", shlex.quote(str(results))), ("DONE", _DONE),
    ):  # fmt: skip
        script = script.replace(f"@{name}@", value)
    return script
