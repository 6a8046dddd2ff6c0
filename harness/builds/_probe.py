"""Is this file a QEMU for x86_64 guests that runs here, and does it find its firmware?"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.builds._install import QemuInstall, file_id, version_of
from harness.errors import EnvironmentLackError, UsageError

__all__ = ["HOST_FIRMWARE", "check_binary", "firmware_dirs", "missing_firmware", "of_path", "smoke", "system"]

BINARY = "qemu-system-x86_64"
#: Where distributions put SeaBIOS and QEMU's own boot blocks.
HOST_FIRMWARE = (Path("/usr/share/seabios"), Path("/usr/share/qemu"), Path("/usr/lib/ipxe/qemu"))
#: What a machine of ours loads: the BIOS, the local APIC's helper, and the loader behind ``-kernel``.
NEEDED_FIRMWARE = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin")
FIRMWARE_MEND = "apt-get install seabios qemu-system-data"

_ELF_HEADER = struct.Struct("<4sBB10xHH")  # magic, class, byte order, type, machine
_ELF_64, _ELF_LITTLE, _ELF_EXECUTABLES = 2, 1, (2, 3)
_MACHINES = {3: "i386", 20: "powerpc", 21: "powerpc64", 22: "s390", 40: "arm", 62: "x86_64", 183: "aarch64",
             243: "riscv", 258: "loongarch"}
_X86_64 = 62
_ANSWER_S = 60.0  # a loaded machine may take seconds to start even a program that only prints its version


def check_binary(path: Path) -> Path:
    """`path`, absolute, when it is an executable x86_64 ELF file; else `UsageError` that says what it is."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="give the path of a qemu-system-x86_64") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder, not a QEMU binary",
                         hint=f"give the binary in it, or `switchover qemu build NAME --source {path}`")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file", hint="give the path of a qemu-system-x86_64")
    try:
        with path.open("rb") as file:
            head = file.read(_ELF_HEADER.size)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if head.startswith(b"#!"):
        raise UsageError(f"{path} is a script, not a QEMU binary",
                         hint="give the binary that the script starts: the testbed builds the command line itself")
    if not head.startswith(b"\x7fELF") or len(head) < _ELF_HEADER.size:
        raise UsageError(f"{path} is not an ELF executable", hint="give the path of a qemu-system-x86_64")
    _, width, order, kind, machine = _ELF_HEADER.unpack(head)
    if order != _ELF_LITTLE:  # a big-endian file: its other fields are the other way round
        machine = int.from_bytes(machine.to_bytes(2, "little"), "big")
    if (width, order, machine) != (_ELF_64, _ELF_LITTLE, _X86_64):
        what = _MACHINES.get(machine, f"ELF machine {machine}")
        raise UsageError(f"{path} is built for {what}, not for x86_64", hint="give a binary that runs on this host")
    if kind not in _ELF_EXECUTABLES:
        raise UsageError(f"{path} is an ELF file but not a program", hint="give the linked qemu-system-x86_64")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} is not executable", hint=f"chmod +x {path}")
    return path.absolute()


def checked_version(argv_prefix: Sequence[str]) -> str:
    """The version of the QEMU that `argv_prefix` starts, after making sure that it runs and emulates a PC.

    Raises `EnvironmentLackError` when it can't run here (libraries) and `UsageError` when it is another program.
    """
    name = argv_prefix[-1]
    answer = _answer([*argv_prefix, "--version"])
    if answer.returncode != 0:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        raise EnvironmentLackError(
            f"{name} does not run here: {said[-1] if said else f'status {answer.returncode}'}",
            hint="install the libraries it misses (`ldd` lists them)",
        )
    version = version_of(answer.stdout)
    if not version:
        raise UsageError(f"{name} is a program, but not QEMU's system emulator",
                         hint="give the path of a qemu-system-x86_64")
    if "q35" not in _answer([*argv_prefix, "-machine", "help"]).stdout:
        raise UsageError(f"{name} is a QEMU that has no x86 PC machine", hint="give a qemu-system-x86_64 with q35")
    return version


def missing_firmware(argv_prefix: Sequence[str], data_dirs: Sequence[Path | str] = ()) -> list[str]:
    """The needed firmware files that this QEMU finds neither in its own folders nor in `data_dirs`."""
    own = _answer([*argv_prefix, "-L", "help"]).stdout.split("\n")
    folders = [Path(folder) for folder in (*data_dirs, *filter(None, own))]
    return [file for file in NEEDED_FIRMWARE if not any((folder / file).is_file() for folder in folders)]


def firmware_dirs(argv_prefix: Sequence[str], *, candidates: Sequence[Path] = HOST_FIRMWARE) -> tuple[str, ...]:
    """The ``-L`` folders this QEMU needs: none when it finds its firmware itself, else the `candidates` that exist.

    Raises `EnvironmentLackError` when the firmware isn't there either.
    """
    if not missing_firmware(argv_prefix):
        return ()
    present = [folder for folder in candidates if folder.is_dir()]
    if missing := missing_firmware(argv_prefix, present):
        raise EnvironmentLackError(f"{argv_prefix[-1]}: firmware not found: {', '.join(missing)}", hint=FIRMWARE_MEND)
    return tuple(str(folder) for folder in present)


def smoke(start: Sequence[str]) -> None:
    """Start a q35 machine under TCG, stopped, and talk QMP to it; `EnvironmentLackError` with QEMU's words otherwise.

    That finds a missing library, module or BIOS before anyone relies on the install.
    """
    argv = [*start, "-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config",
            "-display", "none", "-S", "-qmp", "stdio"]
    commands = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "query-status", "quit"))
    answer = _answer(argv, text=commands)
    if answer.returncode != 0 or '"prelaunch"' not in answer.stdout:
        said = (answer.stderr or answer.stdout).strip()[-2000:]
        raise EnvironmentLackError(f"{argv[0]} can't start a machine here: {said or f'status {answer.returncode}'}")


def of_path(path: Path) -> QemuInstall:
    """The install of a binary the user points at; its name is its path. Errors as `check_binary`, `checked_version`."""
    binary = check_binary(path)
    prefix = (str(binary),)
    return QemuInstall(
        name=str(binary), argv_prefix=prefix, version=checked_version(prefix), data_dirs=firmware_dirs(prefix),
        build_id=file_id(binary), origin="path", path=str(binary),
    )


def system() -> QemuInstall:
    """The host's own QEMU, as found on ``PATH``; `EnvironmentLackError` when there is none."""
    found = shutil.which(BINARY)
    if found is None:
        raise EnvironmentLackError(f"this host has no {BINARY}", hint="apt-get install qemu-system-x86")
    binary = check_binary(Path(found))
    prefix = (str(binary),)
    return QemuInstall(
        name="system", argv_prefix=prefix, version=checked_version(prefix), data_dirs=firmware_dirs(prefix),
        build_id=file_id(binary), origin="this host", path=str(binary),
    )


def _answer(argv: Sequence[str], *, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a QEMU that prints and ends."""
    try:
        return subprocess.run(list(argv), input=text, capture_output=True, text=True, errors="replace", check=False,
                              timeout=_ANSWER_S)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLackError(f"{argv[0]} did not answer within {_ANSWER_S:g} s: {' '.join(argv)}") from error
    except OSError as error:  # for one, the file's own interpreter is missing
        raise EnvironmentLackError(f"{argv[0]} can't be started: {error.strerror}",
                                   hint="install the libraries it misses (`ldd` lists them)") from error
