"""What of this host only a look at it tells: the accelerator that a replay would get, and the guest image that is at hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from harness.bundle import OpenedBundle
from harness.errors import SwitchoverError
from harness.host.accel import choose_accelerator
from harness.model.scenario import Scenario
from harness.replay.plan import ReplayPlan
from harness.vm.at_hand import image_at_hand
from harness.vm.image import GuestImage

__all__ = ["Here", "look_here", "with_here"]


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """`accelerator` is empty where it can't be known yet (the QEMU is still to come); `image` is None when it is still to be built."""

    accelerator: str = ""
    image: GuestImage | None = None
    problems: tuple[str, ...] = ()


async def look_here(plan: ReplayPlan, *, cache: Path) -> Here:
    """Try the accelerator and look for the image. Nothing is fetched or built, and nothing of a bundle is run."""
    accelerator, problems = "", []
    source = plan.sides["source"].qemu
    if source is not None:
        try:
            accelerator, _ = await choose_accelerator(plan.scenario.accelerator, argv_prefix=source.argv_prefix, cache=cache)
        except SwitchoverError as error:
            problems.append(error.message)
    try:
        image = await asyncio.to_thread(_image, plan.scenario, cache)
    except SwitchoverError as error:
        image = None
        problems.append(error.message)
    return Here(accelerator=accelerator, image=image, problems=tuple(problems))


def _image(scenario: Scenario, cache: Path) -> GuestImage | None:
    return image_at_hand(cache=cache, kernel=Path(scenario.guest.kernel) if scenario.guest.kernel else None)


def with_here(plan: ReplayPlan, bundle: OpenedBundle, here: Here) -> ReplayPlan:
    """The plan with what differs in accelerator, guest kernel and image."""
    there = bundle.observation.result
    differences, notes = list(plan.differences), [*plan.notes, *here.problems]
    if here.accelerator and here.accelerator != there.accelerator:
        differences.append(("accelerator", there.accelerator, here.accelerator))
        if plan.timing:
            notes.append("the finding is a time, and times under two accelerators are never compared: this can't be told here")
    if here.image is None:
        notes.append("the guest image is not here yet; it is built from the Debian packages of today, so its kernel may be another")
    elif here.image.kernel_release != there.guest.kernel:
        differences.append(("guest kernel", there.guest.kernel, here.image.kernel_release))
    elif here.image.digest != there.guest.image:
        differences.append(("guest image", there.guest.image[:12], f"{here.image.digest[:12]} (the same kernel release)"))
    return msgspec.structs.replace(plan, differences=tuple(differences), notes=tuple(notes))
