"""Which QEMUs there are, and which one a name or a path means."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from harness.builds import _probe
from harness.builds._build import REFERENCE
from harness.builds._fetch import FETCHABLE
from harness.builds._install import QemuInstall, load
from harness.builds._layout import Layout, checked_name
from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, SwitchoverError, UsageError

__all__ = ["forget_qemu", "list_qemus", "resolve_qemu"]

SYSTEM = "system"


def list_qemus(cache: Path | None = None) -> list[QemuInstall]:
    """The host's own QEMU, if there is one, then what was fetched and built, by name.

    An entry that can't be read, or whose binary is gone, is left out: `resolve_qemu` says why.
    """
    layout = Layout(cache or cache_dir())
    found: list[QemuInstall] = []
    for name in (SYSTEM, *_names(layout)):
        try:
            found.append(_named(layout, name))
        except SwitchoverError:
            continue
    return found


def forget_qemu(name: str, cache: Path | None = None) -> None:
    """Take a name away from a build. The build stays for a while, without a name."""
    (Layout(cache or cache_dir()).names / checked_name(name)).unlink(missing_ok=True)


def resolve_qemu(name_or_path: str | Path, cache: Path | None = None) -> QemuInstall:
    """The QEMU that a scenario or an option means: ``system``, a name of `list_qemus`, or the path of a binary.

    A name comes first; write ``./name`` for a file of that name. Raises `UsageError` for what can't be one (with the
    nearest name) and `EnvironmentLackError` for one that isn't there yet, with the command that brings it.
    """
    text = os.fspath(name_or_path)
    layout = Layout(cache or cache_dir())
    if text == SYSTEM or ("/" not in text and layout.named(text)):
        return _named(layout, text)
    path = Path(text).expanduser()
    if "/" in text or path.exists():
        return _probe.of_path(path)
    if text in FETCHABLE:
        raise EnvironmentLackError(f"QEMU {text} was not fetched yet", hint=f"switchover qemu fetch {text}")
    if text == REFERENCE:
        raise EnvironmentLackError(f"the QEMU {text!r} was not built yet", hint=f"switchover qemu build {text}")
    known = [SYSTEM, REFERENCE, *FETCHABLE, *_names(layout)]
    near = difflib.get_close_matches(text, known, n=1)
    raise UsageError(f"no QEMU is called {text!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                     hint="`switchover qemu list` shows them; a path has a '/' in it")


def _names(layout: Layout) -> list[str]:
    return sorted(link.name for link in layout.names.glob("[!.]*")) if layout.names.is_dir() else []


def _named(layout: Layout, name: str) -> QemuInstall:
    if name == SYSTEM:
        return _probe.system()
    entry = layout.named(name)
    if entry is None:
        raise EnvironmentLackError(f"the cache's entry of {name!r} is gone", hint="build or fetch it again")
    install = load(entry).installed(entry, name=name)
    _probe.check_binary(Path(install.path))
    return install
