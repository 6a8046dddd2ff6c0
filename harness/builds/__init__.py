"""QEMU versions and builds side by side: what is behind ``switchover qemu list|fetch|build``.

`resolve_qemu` turns what a scenario says (``system``, a name, a path) into a `QemuInstall`; `fetch` unpacks Debian's
packages of another release with all their libraries; `build` compiles a source with patch series. Everything lives in
the cache, apart from the host's own packages, and appears there only when it is complete and was started once.
All functions are synchronous, say what they do through a `progress` callback, and leave nothing half done behind when
interrupted.
"""

from __future__ import annotations

from harness.builds._build import REFERENCE, build
from harness.builds._catalogue import forget_qemu, list_qemus, resolve_qemu
from harness.builds._fetch import FETCHABLE, fetch
from harness.builds._install import QemuInstall
from harness.builds._portable import (
    PatchFile,
    QemuRecipe,
    find_build,
    patch_problem,
    patches_of_build,
    recipe_of,
    recipe_problem,
)
from harness.builds._process import Progress
from harness.builds._rebuild import rebuild
from harness.builds._toolchain import BUILD_PACKAGES

__all__ = [
    "BUILD_PACKAGES",
    "FETCHABLE",
    "REFERENCE",
    "PatchFile",
    "Progress",
    "QemuInstall",
    "QemuRecipe",
    "build",
    "fetch",
    "find_build",
    "forget_qemu",
    "list_qemus",
    "patch_problem",
    "patches_of_build",
    "rebuild",
    "recipe_of",
    "recipe_problem",
    "resolve_qemu",
]
