"""Look for a guest image without building it. Not in `image`, whose own text is one of an image's inputs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from harness.resources import image_resources
from harness.vm.guest_tree import Recipe
from harness.vm.image import GuestImage, _input_key, _read_kernel, load_image

__all__ = ["image_at_hand"]


def image_at_hand(*, cache: Path, kernel: Path | None = None, modules: Path | None = None) -> GuestImage | None:
    """What `build_image` would give at once; None where it would have to build. Raises UsageError for a kernel that will not do."""
    folder = image_resources() / "guest"
    recipe = msgspec.convert(tomllib.loads((folder / "recipe.toml").read_text()), Recipe)
    own = _read_kernel(kernel, modules, recipe.modules) if kernel is not None else None
    known = cache / "images" / "by-input" / _input_key(folder, kernel=own)
    return load_image(known) if known.exists() else None
