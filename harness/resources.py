# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the data that no module is lies: the guest image recipe, the generator's source, the QEMU patches, the suite."""

from __future__ import annotations

from pathlib import Path

from harness.errors import TestbedError

__all__ = ["image_resources", "suite_resources"]


def image_resources() -> Path:
    """The folder ``images``: of the checkout, or the copy that a wheel carries as ``harness/_images``.

    Raises TestbedError when neither is there: the installation is broken.
    """
    package = Path(__file__).resolve().parent
    candidates = [package / "_images", package.parent / "images"]
    for candidate in candidates:
        if (candidate / "guest" / "recipe.toml").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise TestbedError(f"the guest image recipe is missing (looked in {looked})", hint="install switchover again")


def suite_resources() -> Path:
    """The folder of the suite that users run on their own QEMU: the checkout's ``tests/migration``, or a wheel's copy of it."""
    package = Path(__file__).resolve().parent
    candidates = [package / "_suite", package.parent / "tests" / "migration"]
    for candidate in candidates:
        if (candidate / "test_none.py").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise TestbedError(f"the suite is missing (looked in {looked})", hint="install switchover again")
