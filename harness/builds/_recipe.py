"""What lies in ``images/qemu``: the default source, configuration, device list and the series of the reference."""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness.errors import UsageError
from harness.resources import image_resources

__all__ = ["Recipe", "WhenPresent", "images_dir"]


class _Debian(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    codename: str
    version: str
    series: str


class WhenPresent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A configure `option` that is given where pkg-config knows `module` (Debian's `package`)."""

    module: str
    package: str
    option: str


class _Configure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    options: list[str]
    when_present: list[WhenPresent] = []


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``images/qemu/options.toml``."""

    debian: _Debian
    configure: _Configure

    @classmethod
    def read(cls, folder: Path | None = None) -> Recipe:
        """The recipe in `folder` (default: `images_dir`); `UsageError` names the file and what is wrong in it."""
        path = (folder or images_dir()) / "options.toml"
        try:
            return msgspec.toml.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise UsageError(f"{path}: {error}") from error


def images_dir() -> Path:
    """The folder ``images/qemu``, of the checkout or of the installed package."""
    return image_resources() / "qemu"
