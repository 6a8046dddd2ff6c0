"""The accelerator is tried, not believed.

`/dev/kvm` may open, create a VM and still never run a kernel (a nested host that offers KVM without hardware help, for
one). So `auto` runs a firmware image of our own under KVM: it counts down in real mode, where such hosts
crawl, and resets the machine. With working KVM that takes some tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.errors import DeadlineError, EnvironmentLackError
from harness.host.deadline import Deadline
from harness.host.warden import Warden
from harness.model.scenario import Accelerator

__all__ = ["AcceleratorProbe", "choose_accelerator", "probe_firmware", "probe_kvm"]

PROBE_DEADLINE_S = 1.5
_COUNTDOWN = 20_000_000
_FIRMWARE_BYTES = 1 << 16
_FIRMWARE_FD = 3
_ENTRY, _RESET_VECTOR = 0x1000, 0xFFF0


class AcceleratorProbe(msgspec.Struct, frozen=True):
    """What the trial of KVM came to."""

    usable: bool
    reason: str
    elapsed_s: float


def probe_firmware() -> bytes:
    """A 64 KiB firmware: count down in real mode, then reset through the keyboard controller."""
    image = bytearray(b"\xf4" * _FIRMWARE_BYTES)  # hlt
    code = b"\xfa"  # cli
    code += b"\x66\xb9" + struct.pack("<I", _COUNTDOWN)  # mov ecx, countdown
    code += b"\x66\x49\x75\xfc"  # dec ecx; jnz back
    code += b"\xb0\xfe\xe6\x64"  # mov al, 0xfe; out 0x64, al
    code += b"\xf4\xeb\xfd"  # hlt, for ever
    image[_ENTRY : _ENTRY + len(code)] = code
    image[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9" + struct.pack("<H", (_ENTRY - (_RESET_VECTOR + 3)) & 0xFFFF)
    return bytes(image)


async def probe_kvm(argv_prefix: Sequence[str], *, deadline_s: float = PROBE_DEADLINE_S) -> AcceleratorProbe:
    """Run the probe firmware under KVM with this QEMU. Never raises for a KVM that doesn't work."""
    if not Path("/dev/kvm").exists():
        return AcceleratorProbe(usable=False, reason="there is no /dev/kvm", elapsed_s=0.0)
    firmware = os.memfd_create("kvm-probe")
    try:
        os.write(firmware, probe_firmware())
        argv = [
            *argv_prefix, "-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-m", "1M", "-bios", f"/proc/self/fd/{_FIRMWARE_FD}",
        ]  # fmt: skip
        async with Warden() as warden:  # so that the trial ends with us, whatever happens
            began = time.monotonic()
            process = await warden.spawn("KVM probe", argv, fds={_FIRMWARE_FD: firmware})
            try:
                status = await process.wait(Deadline(deadline_s))
            except DeadlineError:
                reason = f"/dev/kvm opens, but a tiny guest did not end within {deadline_s:g} s under it"
                return AcceleratorProbe(usable=False, reason=reason, elapsed_s=time.monotonic() - began)
            elapsed = time.monotonic() - began
            if status != 0:
                words = process.tail().strip().splitlines()
                reason = words[-1] if words else f"QEMU ended with {status}"
                return AcceleratorProbe(usable=False, reason=reason, elapsed_s=elapsed)
            return AcceleratorProbe(usable=True, reason=f"a tiny guest ran in {elapsed:.2f} s", elapsed_s=elapsed)
    finally:
        os.close(firmware)


def _probe_key(argv_prefix: Sequence[str]) -> str:
    """A trial holds for one boot of the host, one binary, and one state of the device's permissions."""
    binary = shutil.which(argv_prefix[-1]) or argv_prefix[-1]
    try:
        stat = Path(binary).stat()
        identity = f"{binary} {stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        identity = binary
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{boot_id} {os.access('/dev/kvm', os.R_OK | os.W_OK)} {' '.join(argv_prefix)} {identity}".encode()).hexdigest()[:16]


async def _probe_once(argv_prefix: Sequence[str], cache: Path) -> AcceleratorProbe:
    memory = cache / "kvm-probe" / f"{_probe_key(argv_prefix)}.json"
    try:
        return msgspec.json.decode(memory.read_bytes(), type=AcceleratorProbe)
    except (OSError, msgspec.DecodeError):
        pass
    probe = await probe_kvm(argv_prefix)
    with contextlib.suppress(OSError):  # a cache that can't be written costs a second next time, no more
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(probe))
        fresh.replace(memory)
    return probe


async def choose_accelerator(wish: Accelerator, *, argv_prefix: Sequence[str], cache: Path) -> tuple[str, str]:
    """The accelerator to use ("kvm" or "tcg") and why; `EnvironmentLackError` when KVM is demanded and doesn't work."""
    if wish is Accelerator.TCG:
        return "tcg", "asked for"
    probe = await _probe_once(argv_prefix, cache)
    if probe.usable:
        return "kvm", probe.reason
    if wish is Accelerator.KVM:
        raise EnvironmentLackError(f"KVM doesn't work here: {probe.reason}", hint="set accelerator to tcg or auto")
    return "tcg", probe.reason
