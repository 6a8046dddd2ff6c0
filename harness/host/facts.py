"""What this host is (`host_facts`, for every result) and what it can do (`doctor_checks`, for people).

A check tries the thing itself rather than looking for signs of it: it makes a lab, a TAP, a bridge and each queueing
discipline, opens each device, asks for each buffer. Run as a program, the module tries what needs no lab with the
privileges it has (``--as UID``: with that user's) and prints what failed, as JSON: so root learns what an ordinary user
could do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import psutil
from pyroute2.netlink.exceptions import NetlinkError

from harness import __version__
from harness.errors import EnvironmentLackError, SwitchoverError
from harness.host.accel import probe_kvm
from harness.host.bridge import PortFlags
from harness.host.network import Network
from harness.host.warden import Warden
from harness.host.warden_process import has_sys_admin

__all__ = ["Check", "Status", "doctor_checks", "host_facts", "require_userfaultfd", "require_vhost"]

MIB, GIB = 1 << 20, 1 << 30
PYTHON_NEEDED = (3, 11)
PAIR_BYTES = 3 * (256 + 96) * MIB
"""Source, destination and peer of the default size, each with QEMU's own memory (some 90 MiB under TCG)."""
CACHE_BYTES = 2 * GIB
"""A guest image with its packages (0.2 GiB), some warm states (0.1 GiB each) and one QEMU build (1 GiB)."""
BUFFER_BYTES = 64 * MIB
"""What a live view of a TAP asks for, so that a burst isn't dropped while the runner is busy."""

_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _PACKET_VNET_HDR, _TPACKET_V3 = 263, 5, 10, 15, 2
_SO_RCVBUFFORCE = 33
_SYS_USERFAULTFD, _UFFD_NEW, _UFFD_API, _UFFD_VERSION = 323, 0xAA00, 0xC018AA3F, 0xAA
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF, _IFF_TAP_NO_PI_VNET_HDR = 0x400454CA, 0x0002 | 0x1000 | 0x4000
_NOBODY = 65534


class Status(StrEnum):
    """`LACK`: nothing works without it. `WARN`: something does not, and `why` says what."""

    OK = "ok"
    WARN = "warn"
    LACK = "lack"


class Check(msgspec.Struct, frozen=True):
    """One thing that was tried. `why`: what was seen and, where it failed, what needs it; `mend`: how to mend it, if possible."""

    name: str
    status: Status
    why: str
    mend: str = ""


# -- facts


def _read(path: str, default: str = "") -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return default


def host_facts() -> dict[str, Any]:
    """What may explain a figure measured here: kernel, processor, memory, load. No names of the host or its user.

    Sizes in bytes; None for what this host doesn't tell.
    """
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        distribution = None
    first_cpu = [line.partition(":") for line in _read("/proc/cpuinfo").split("\n\n", 1)[0].splitlines()]
    cpu = {key.strip(): value.strip() for key, _, value in first_cpu}
    memory = psutil.virtual_memory()
    huge_pages = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "switchover": __version__,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "distribution": distribution,
        "python": platform.python_version(),
        "cpu_model": cpu.get("model name"),
        "virtualised": "hypervisor" in cpu.get("flags", "").split(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or None,
        "transparent_hugepage": huge_pages[huge_pages.find("[") + 1 : huge_pages.find("]")] or None,
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "load": [round(figure, 2) for figure in os.getloadavg()],
        "root": os.geteuid() == 0,
    }


# -- trials that need no lab: each raises OSError with the reason


def _open(path: str, flags: int = os.O_RDWR) -> None:
    os.close(os.open(path, flags | os.O_CLOEXEC))


def _libc(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _try_userfaultfd() -> None:
    """As QEMU gets one for postcopy: faults of the kernel count too. Newer ones ask the device first."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = -1
    with contextlib.suppress(OSError):
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        fd = libc.ioctl(device, _UFFD_NEW, os.O_CLOEXEC)
        os.close(device)
    if fd < 0:
        fd = _libc(libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC), "userfaultfd")
    try:
        wish = ctypes.create_string_buffer(struct.pack("QQQ", _UFFD_VERSION, 0, 0))
        _libc(libc.ioctl(fd, _UFFD_API, wish), "userfaultfd API")
    finally:
        os.close(fd)


def _try_receive_buffer() -> None:
    """As the captures ask for it: by force where allowed, else as much as the host's limit gives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles what it is asked for
        if got < BUFFER_BYTES:
            raise OSError(f"{got / MIB:.1f} MiB instead of {BUFFER_BYTES // MIB} MiB")


def _try_namespaces() -> None:
    """A TAP in a user and network namespace of one's own; where /dev/net/tun doesn't open, the namespaces alone.

    Changes this process for good.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _libc(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "a user and network namespace")
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # a trial of its own
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"trial", _IFF_TAP_NO_PI_VNET_HDR))
    finally:
        os.close(tun)


_TRIALS: dict[str, Callable[[], None]] = {
    "tun": lambda: _open("/dev/net/tun"),
    "vhost-net": lambda: _open("/dev/vhost-net"),
    "kvm": lambda: _open("/dev/kvm"),
    "userfaultfd": _try_userfaultfd,
    "receive-buffer": _try_receive_buffer,
}


def _failure(trial: Callable[[], None]) -> str:
    """Why it failed, or an empty string."""
    try:
        trial()
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return ""


def _as_user(uid: int) -> dict[str, str]:
    """The failures of all trials for another user, who has a TAP in namespaces to make besides."""
    answer = subprocess.run(
        [sys.executable, "-m", __name__, "--as", str(uid)], cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return msgspec.json.decode(answer.stdout, type=dict[str, str])


def _main(arguments: Sequence[str]) -> None:
    trials = dict(_TRIALS)
    if arguments and arguments[0] == "--as":
        os.setgroups([])
        os.setresgid(*[int(arguments[1])] * 3)
        os.setresuid(*[int(arguments[1])] * 3)
        trials["namespaces"] = _try_namespaces  # the last: it changes what the others would see
    print(json.dumps({name: _failure(trial) for name, trial in trials.items()}))


# -- checks


async def doctor_checks(*, cache: Path, qemu: Sequence[str] | None = None) -> list[Check]:
    """Everything about this host that the testbed relies on, tried now. `qemu` starts a QEMU (for the trial of KVM).

    Takes one to three seconds, leaves nothing behind, and raises nothing for what is missing.
    """
    failures = {name: _failure(trial) for name, trial in _TRIALS.items()}
    return [
        _python(),
        _tun(failures["tun"]),
        *await _lab_checks(),
        await _kvm(qemu),
        _vhost(failures["vhost-net"]),
        _userfaultfd(failures["userfaultfd"]),
        _memory(),
        _cores(),
        _disk(cache),
        _receive_buffer(failures["receive-buffer"]),
        _locked_memory(),
        *_programs(),
        *_rootless(),
    ]


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] >= PYTHON_NEEDED:
        return Check("python", Status.OK, version)
    wanted = ".".join(map(str, PYTHON_NEEDED))
    return Check("python", Status.LACK, f"this is {version}, {wanted} or newer is needed", f"apt-get install python{wanted}")


def _tun(failure: str) -> Check:
    if not failure:
        return Check("tun", Status.OK, "/dev/net/tun opens")
    mend = "chmod 666 /dev/net/tun" if Path("/dev/net/tun").exists() else "modprobe tun"
    return Check("tun", Status.LACK, f"{failure}; every guest's NIC is a TAP", f"as root: {mend}")


@asynccontextmanager
async def _lab() -> AsyncIterator[tuple[Warden, Network]]:
    async with Warden() as warden, Network(warden) as network:
        yield warden, network


async def _lab_checks() -> list[Check]:
    """What only a lab can tell; after the first failure there is nothing to build the rest on."""
    checks: list[Check] = []
    stage, needed_for, mend = "namespaces", "every lab lives in namespaces of its own", ""
    try:
        async with _lab() as (warden, network):
            kind = "mount, network, PID" if has_sys_admin() else "user, mount, network, PID"
            checks.append(Check(stage, Status.OK, f"a lab with {kind} and IPC namespaces was made"))

            stage, needed_for, mend = "bridge", "the lab's network is a bridge", "as root: modprobe bridge"
            await network.start()
            stage, needed_for, mend = "tap", "every guest's NIC is a TAP with a vnet header", "as root: modprobe tun"
            port = await network.add_tap("trial", queues=2, flags=PortFlags.closed())
            checks.append(Check(stage, Status.OK, "a TAP with vnet header and 2 queues was made"))
            stage, needed_for = "bridge", "a destination's port stays closed until the guest runs there"
            mend = "use a kernel from 4.18 on"
            for flags in (PortFlags.closed(), PortFlags.opened()):
                network.set_port(port, flags)
                if (seen := await network.port_flags(port)) != flags:
                    raise OSError(f"a port set to {flags} is {seen}")
            checks.append(Check(stage, Status.OK, "a port's learning and flooding can be switched off and on"))

            stage, needed_for = "packet-socket", "frames are captured and injected with their vnet headers"
            mend = "use a kernel with CONFIG_PACKET"
            for options in (_vnet_header, _ring):
                with await network.packet_socket() as sock:
                    options(sock)
                    sock.bind((port.name, 0))
            checks.append(Check(stage, Status.OK, "AF_PACKET with PACKET_VNET_HDR and with a TPACKET_V3 ring"))
            checks.append(await _qdiscs(warden, network))
    except SwitchoverError as error:
        checks.append(Check(stage, Status.LACK, f"{error.message}; {needed_for}", error.hint or mend))
    except (OSError, NetlinkError) as error:
        checks.append(Check(stage, Status.LACK, f"{error}; {needed_for}", mend))
    return checks


def _vnet_header(sock: socket.socket) -> None:
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)


def _ring(sock: socket.socket) -> None:
    block_bytes, blocks, frame_bytes = 1 << 18, 4, 2048
    sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
    wish = struct.pack("7I", block_bytes, blocks, frame_bytes, block_bytes // frame_bytes * blocks, 10, 0, 0)
    sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, wish)
    mmap.mmap(sock.fileno(), block_bytes * blocks).close()


_QDISCS: dict[str, tuple[dict[str, Any], str]] = {
    "clsact": ({}, "loss that is made on purpose"),
    "ingress": ({}, "loss that is made on purpose"),
    "htb": ({"handle": "1:", "default": 1}, "links of limited rate"),
    "tbf": ({"handle": "1:", "rate": "1mbit", "burst": 10_000, "latency": "10ms"}, "links of limited rate"),
    "netem": ({"handle": "1:", "delay": 1000}, "delay, jitter and random loss on the host"),
}
"""Queueing disciplines: how each is tried, and what needs it."""


async def _qdiscs(warden: Warden, network: Network) -> Check:
    missing: dict[str, str] = {}
    for number, (kind, (options, _)) in enumerate(_QDISCS.items()):
        name = f"q{number}"
        fds = await warden.tap(name)
        try:
            await network.route.tc("add", kind=kind, index=await network.index_of(name), **options)
        except NetlinkError as error:
            missing[kind] = "not in this kernel" if error.code == errno.ENOENT else os.strerror(error.code)
        finally:
            for fd in fds:
                os.close(fd)
    if not missing:
        return Check("qdiscs", Status.OK, f"{', '.join(_QDISCS)} were added")
    purposes = dict.fromkeys(_QDISCS[kind][1] for kind in missing)
    there = [kind for kind in _QDISCS if kind not in missing]
    why = "; ".join(f"{kind}: {reason}" for kind, reason in missing.items())
    return Check(
        "qdiscs", Status.WARN, f"{why}. Needed for {'; '.join(purposes)}. There are {', '.join(there) or 'none'}",
        f"as root: modprobe {' '.join(f'sch_{kind}' for kind in missing)}  (where the kernel has modules)",
    )  # fmt: skip


async def _kvm(qemu: Sequence[str] | None) -> Check:
    if qemu is None:
        return Check("kvm", Status.WARN, "not tried, for want of a QEMU", "apt-get install qemu-system-x86")
    try:
        probe = await probe_kvm(qemu)
        usable, reason = probe.usable, probe.reason
    except SwitchoverError as error:
        usable, reason = False, error.message
    if usable:
        return Check("kvm", Status.OK, reason)
    mend = ""  # a KVM that opens and doesn't work can't be mended from in here
    if not Path("/dev/kvm").exists():
        mend = "as root: modprobe kvm_intel || modprobe kvm_amd  (in a virtual machine: allow nesting)"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        mend = 'as root: usermod -aG kvm "$USER"'
    return Check("kvm", Status.WARN, f"{reason}; guests run under TCG: losses are as real, times longer, rates lower", mend)


def _vhost(failure: str) -> Check:
    if not failure:
        return Check("vhost-net", Status.OK, "/dev/vhost-net opens")
    mend = "chmod 666 /dev/vhost-net" if Path("/dev/vhost-net").exists() else "modprobe vhost_net"
    return Check("vhost-net", Status.WARN, f"{failure}; needed for scenarios with vhost = true", f"as root: {mend}")


def require_vhost() -> None:
    """`EnvironmentLackError` where a NIC can't have vhost = on, with what mends it."""
    found = _vhost(_failure(_TRIALS["vhost-net"]))
    if found.status is not Status.OK:
        raise EnvironmentLackError(f"network.vhost is true, and this host has no vhost: {found.why.split(';')[0]}", hint=found.mend)


def _userfaultfd(failure: str) -> Check:
    if not failure:
        return Check("userfaultfd", Status.OK, "one was opened that takes the kernel's faults too")
    mend = "use a kernel with CONFIG_USERFAULTFD" if os.geteuid() == 0 else "as root: sysctl -w vm.unprivileged_userfaultfd=1"
    return Check("userfaultfd", Status.WARN, f"{failure}; needed for postcopy", mend)


def require_userfaultfd() -> None:
    """`EnvironmentLackError` where QEMU would refuse postcopy for want of a userfaultfd, with what mends it."""
    found = _userfaultfd(_failure(_TRIALS["userfaultfd"]))
    if found.status is not Status.OK:
        raise EnvironmentLackError(f"postcopy needs a userfaultfd that takes the kernel's faults too, and this host gives none: {found.why.split(';')[0]}", hint=found.mend)


def _memory() -> Check:
    free = psutil.virtual_memory().available
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    why = f"{free / GIB:.1f} GiB available"
    if free >= PAIR_BYTES:
        return Check("memory", Status.OK, why)
    return Check(
        "memory", Status.WARN, f"{why}; a pair of the default size may take {PAIR_BYTES / GIB:.1f} GiB in the migration",
        "free some, or choose smaller guests: --set guest.memory=128M",
    )  # fmt: skip


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if cores < 2:
        return Check("cores", Status.WARN, "one core: machines, traffic and capture disturb one another's times")
    if load > cores:
        return Check("cores", Status.WARN, f"{cores} cores with a load of {load:.1f}: times will be those of a busy host")
    return Check("cores", Status.OK, f"{cores} cores, load {load:.1f}")


def _disk(cache: Path) -> Check:
    folder = next(each for each in (cache, *cache.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trial")
    except OSError as error:
        return Check(
            "cache", Status.LACK, f"{folder} can't be written: {error.strerror}; guest images and builds are kept there",
            "set SWITCHOVER_CACHE to a folder of yours",
        )  # fmt: skip
    free = shutil.disk_usage(folder).free
    why = f"{free / GIB:.1f} GiB free for {cache}"
    if free >= CACHE_BYTES:
        return Check("cache", Status.OK, why)
    return Check(
        "cache", Status.WARN, f"{why}; {CACHE_BYTES / GIB:g} GiB hold the guest image, warm states and a QEMU build",
        "free some, or set SWITCHOVER_CACHE to a folder on a larger disk",
    )  # fmt: skip


def _receive_buffer(failure: str) -> Check:
    if not failure:
        return Check("receive-buffer", Status.OK, f"a socket gets {BUFFER_BYTES // MIB} MiB")
    return Check(
        "receive-buffer", Status.WARN,
        f"{failure}; at high rates captures and tap-handover may drop frames (a run that did is inconclusive)",
        f"as root: sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}",
    )  # fmt: skip


def _locked_memory() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() == 0 or soft == resource.RLIM_INFINITY:
        return Check("locked-memory", Status.OK, "not limited" if soft == resource.RLIM_INFINITY else "root is not limited")
    return Check(
        "locked-memory", Status.WARN,
        f"limited to {soft / MIB:g} MiB; the migration capabilities zero-copy-send and rdma-pin-all may need more",
        "ulimit -l unlimited" if hard == resource.RLIM_INFINITY else "as root: prlimit --memlock=unlimited --pid $$",
    )  # fmt: skip


_PROGRAMS = {
    "ccache": "only makes repeated builds of QEMU faster",
    "iperf3": "only needed for iperf3 as an independent witness on the host's side",
    "tshark": "only needed to look into captures by hand (they are plain pcapng)",
}


def _programs() -> list[Check]:
    checks = []
    for name, purpose in _PROGRAMS.items():
        if found := shutil.which(name):
            checks.append(Check(name, Status.OK, found))
        else:
            checks.append(Check(name, Status.WARN, f"not found; {purpose}", f"apt-get install {name}"))
    return checks


_ROOTLESS = {
    "tun": ("no TAP", "chmod 666 /dev/net/tun"),
    "namespaces": ("no namespaces", "sysctl -w user.max_user_namespaces=10000"),
    "kvm": ("guests under TCG", 'usermod -aG kvm "$USER"'),
    "userfaultfd": ("no postcopy", "sysctl -w vm.unprivileged_userfaultfd=1"),
    "receive-buffer": (
        "smaller capture buffers", f"sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}"
    ),
}  # fmt: skip
"""What an ordinary user would go without, and what root does about it."""


def _rootless() -> list[Check]:
    """What would be different for an ordinary user: only root can try that; others have seen it above."""
    if os.geteuid() != 0 or not has_sys_admin():
        return []
    try:
        failures = _as_user(_NOBODY)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return [Check("rootless", Status.WARN, f"what an ordinary user could do was not found out: {error}")]
    lacking = {name: failures[name] for name in _ROOTLESS if failures[name]}
    if not lacking:
        return [Check("rootless", Status.OK, "an ordinary user could do the same")]
    why = "; ".join(f"{_ROOTLESS[name][0]} ({failure})" for name, failure in lacking.items())
    return [Check("rootless", Status.WARN, f"an ordinary user would have {why}", "; ".join(_ROOTLESS[name][1] for name in lacking))]


if __name__ == "__main__":
    _main(sys.argv[1:])
