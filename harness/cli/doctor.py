"""``switchover doctor``: what this host can do, what it lacks, what needs that, and the command that mends it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.builds import REFERENCE, QemuInstall, resolve_qemu
from harness.cache import cache_dir
from harness.errors import SwitchoverError
from harness.host.facts import Check, Status, doctor_checks, host_facts
from harness.model.defects import loses_writes
from harness.vm.discovery import FEATURES, discover
from harness.vm.image import load_image

__all__ = ["doctor", "exit_code", "print_checks"]

EXIT_LACK = 3
NEEDED_FEATURES = ("pause-before-switchover", "return-path")
"""What a migration of ours can't do without; every QEMU from 4.0 on has them."""

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.LACK: "bold red"}
_IMAGE_PROGRAMS = {"apt-get": "apt", "dpkg-deb": "dpkg", "gcc": "gcc", "make": "make"}


def doctor(*, json: bool) -> int:
    """Try everything and print it; 0 when all that is needed is there, else 3. With `json`, one object on standard output:
    ``ok``, ``host`` (as host.json) and ``checks``."""
    checks = asyncio.run(all_checks(cache=cache_dir()))
    code = exit_code(checks)
    if json:
        answer = {"ok": code == 0, "host": host_facts(), "checks": checks}
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        print_checks(checks, console=Console())
    return code


def exit_code(checks: list[Check]) -> int:
    return EXIT_LACK if any(check.status is Status.LACK for check in checks) else 0


async def all_checks(*, cache: Path) -> list[Check]:
    """The checks of QEMU and the guest image, which know their own places, and those of the host."""
    qemu, qemu_check = await _qemu(cache)
    host = await doctor_checks(cache=cache, qemu=qemu.argv_prefix if qemu else None)
    kvm = any(check.name == "kvm" and check.status is Status.OK for check in host)
    return [qemu_check, *_memory_check(qemu, kvm=kvm), await _reference(cache), _image(cache), *host]


def _memory_check(qemu: QemuInstall | None, *, kvm: bool) -> list[Check]:
    """Under KVM there is nothing to say."""
    if qemu is None or kvm:
        return []
    name = "qemu-dirty-log"
    if loses_writes(qemu.version, accelerator="tcg"):
        why = f"{qemu.name}: under TCG, QEMU {qemu.version} now and then loses what a migrating guest writes (docs/tcg-dirty-log.md)"
        return [Check(name, Status.WARN, why, "switchover qemu fetch 10.0, then name it: --set qemu.source=10.0 --set qemu.destination=10.0")]
    return [Check(name, Status.OK, f"{qemu.name}: QEMU {qemu.version} keeps what a migrating guest writes under TCG")]


async def _qemu(cache: Path) -> tuple[QemuInstall | None, Check]:
    try:
        qemu = resolve_qemu("system", cache)
        features = await discover(qemu, cache=cache)
    except SwitchoverError as error:
        why = f"{error.message}; scenarios use the host's own QEMU unless they name another"
        return None, Check("qemu", Status.LACK, why, error.hint or "apt-get install qemu-system-x86")
    title = f"{features} at {qemu.path}"
    if lacking := features.lacking(NEEDED_FEATURES):
        return qemu, Check("qemu", Status.LACK, f"{title}: {'; '.join(lacking)}", "switchover qemu fetch 7.2")
    if not features.has("ring-status"):
        why = f"{title}: {features.lacking(['ring-status'])[0]}; the mechanism tap-handover needs it"
        return qemu, Check("qemu", Status.WARN, why, "switchover qemu fetch 7.2")
    return qemu, Check("qemu", Status.OK, title)


async def _reference(cache: Path) -> Check:
    name = "qemu-reference"
    try:
        features = await discover(resolve_qemu(REFERENCE, cache), cache=cache)
    except SwitchoverError as error:
        why = f"{error.message}; scenarios of features that no release has (netpass, for one) need it"
        return Check(name, Status.WARN, why, error.hint or f"switchover qemu build {REFERENCE}")
    return Check(name, Status.OK, f"{features} with {', '.join(feature for feature in FEATURES if features.has(feature))}")


def _image(cache: Path) -> Check:
    """The image built last. Whether it still fits its recipe is found out where it is used."""
    folder = cache / "images" / "by-input"
    links = sorted(folder.iterdir(), key=lambda link: link.lstat().st_mtime) if folder.is_dir() else []
    for link in reversed(links):
        try:
            image = load_image(link)
        except SwitchoverError:
            continue
        return Check("guest-image", Status.OK, f"kernel {image.kernel_release}, image {image.digest[:12]}")
    missing = [program for program in _IMAGE_PROGRAMS if shutil.which(program) is None]
    if missing:
        why = f"there is none, and {', '.join(missing)} to build it are missing; without it no guest boots"
        return Check("guest-image", Status.LACK, why, f"apt-get install {' '.join(_IMAGE_PROGRAMS[each] for each in missing)}")
    return Check("guest-image", Status.WARN, "there is none yet; the first run builds it", "switchover image build")


# -- printing


def print_checks(checks: list[Check], *, console: Console) -> None:
    """A table on a terminal; elsewhere one line per check, and one for its mend."""
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("", "check", "what was seen"):
            table.add_column(title)
        for check in checks:
            seen = Text(check.why)
            if check.mend and check.status is not Status.OK:
                seen.append(f"\nmend: {check.mend}", style="cyan")
            table.add_row(Text(check.status, style=_STYLES[check.status]), check.name, seen)
        console.print(table)
        console.print(Text(summary(checks), style="bold"))
        return
    for check in checks:
        print(f"{check.status:<5} {check.name:<15} {check.why}")
        if check.mend and check.status is not Status.OK:
            print(f"{'':<21} mend: {check.mend}")
    print(summary(checks))


def summary(checks: list[Check]) -> str:
    lacks = [check.name for check in checks if check.status is Status.LACK]
    warnings = sum(check.status is Status.WARN for check in checks)
    limits = f"; {warnings} limit{'s' if warnings != 1 else ''} as said above" if warnings else ""
    if lacks:
        return f"This host lacks what every run needs: {', '.join(lacks)}{limits}"
    return f"All that a run needs is here{limits}"
