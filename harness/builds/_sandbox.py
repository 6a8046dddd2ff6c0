"""A place for code that nobody here wrote: no network, no home, no environment, one folder to write to (bubblewrap)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import EnvironmentLackError

__all__ = ["sandboxed"]

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")
_PASSED = ("LC_ALL", "LANG", "PATH")


def sandboxed(
    argv: Sequence[str], *, writable: Path | None = None, readable: Sequence[Path] = (), env: Mapping[str, str] | None = None
) -> list[str]:
    """`argv` inside namespaces of its own, with no network device but an unconnected loopback.

    It sees the system's programs and libraries and `readable`, and may change `writable` and a private /tmp alone. Of the environment
    it gets the locale, PATH and `env`. It ends with its parent. `EnvironmentLackError` without bubblewrap.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise EnvironmentLackError("code from a bundle is built in a sandbox, and bubblewrap is not installed", hint="apt-get install bubblewrap")
    words = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for place in map(Path, _SYSTEM):
        if place.is_symlink():
            words += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            words += ["--ro-bind", str(place), str(place)]
    for settings in _SETTINGS:
        words += ["--ro-bind-try", settings, settings]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--setenv", "HOME", "/tmp"]
    for place in dict.fromkeys((*readable, Path(sys.prefix), Path(sys.base_prefix))):
        if place.is_dir() and not place.is_relative_to("/usr"):
            words += ["--ro-bind", str(place), str(place)]
    if writable is not None:
        words += ["--bind", str(writable), str(writable), "--chdir", str(writable)]
    values = {name: os.environ[name] for name in _PASSED if name in os.environ} | {"LC_ALL": "C"} | dict(env or {})
    for name, value in values.items():
        words += ["--setenv", name, value]
    return [*words, "--", *argv]
