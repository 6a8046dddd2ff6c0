"""What a replay would run on this host, and in what that differs from what the sender ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from harness import __version__
from harness.builds import FETCHABLE, QemuInstall, QemuRecipe, fetch, find_build, rebuild, resolve_qemu
from harness.bundle import OpenedBundle
from harness.bundle.finding import needs_timing
from harness.bundle.rule import runs_needed
from harness.errors import EnvironmentLackError, SwitchoverError, UsageError
from harness.host.facts import host_facts
from harness.model.scenario import Scenario

__all__ = ["ReplayPlan", "Side", "plan_replay", "provide"]

Progress = Callable[[str], None]
_HOST = ("distribution", "kernel", "architecture", "cpu_model", "virtualised", "cores_usable", "cpu_governor", "clocksource")


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One side's QEMU. `step`: what brings it here; `qemu`: what is there already."""

    wanted: QemuRecipe
    step: Literal["use", "fetch", "build", "lack"]
    qemu: QemuInstall | None = None
    difference: str = ""
    fetch: str = ""


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided before the first run. `differences`: (what, there, here)."""

    scenario: Scenario
    sides: dict[str, Side]
    differences: tuple[tuple[str, str, str], ...]
    needed: int
    timing: bool
    notes: tuple[str, ...] = ()

    @property
    def builds(self) -> tuple[QemuRecipe, ...]:
        """What would be compiled from the bundle's patches."""
        return tuple({side.wanted.build: side.wanted for side in self.sides.values() if side.step == "build"}.values())

    @property
    def fetches(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(side.fetch for side in self.sides.values() if side.step == "fetch"))


def plan_replay(bundle: OpenedBundle, *, qemu: str | None, kernel: Path | None, cache: Path) -> ReplayPlan:
    """Look at this host. `qemu` takes the place of both sides' QEMUs, `kernel` that of the guest's. Raises UsageError for either that can't be used."""
    recipes = {"source": bundle.manifest.qemu.source, "destination": bundle.manifest.qemu.destination}
    sides = {name: _given(recipe, qemu, cache) if qemu is not None else _side(recipe, cache) for name, recipe in recipes.items()}
    scenario, notes = bundle.scenario, []
    if kernel is not None:
        if not kernel.is_file():
            raise UsageError(f"{kernel} is no kernel", hint="give the path of a bzImage")
        scenario = msgspec.structs.replace(scenario, guest=msgspec.structs.replace(scenario.guest, kernel=str(kernel.absolute())))
    elif bundle.manifest.own_kernel:
        notes.append(f"the sender's guest had a kernel or an image of its own ({bundle.observation.result.guest.kernel}); give one with --kernel")
    for name, side in sides.items():
        if side.step == "lack":
            notes.append(f"the {name}'s QEMU is not to be had from this bundle: give one with --qemu")
    return ReplayPlan(
        scenario=scenario, sides=sides, differences=tuple(_differences(bundle, sides)),
        needed=runs_needed(times=bundle.manifest.seen_times, runs=bundle.manifest.seen_runs),
        timing=needs_timing(bundle.finding), notes=tuple(notes),
    )  # fmt: skip


def _given(recipe: QemuRecipe, name: str, cache: Path) -> Side:
    qemu = resolve_qemu(name, cache)
    return Side(wanted=recipe, step="use", qemu=qemu, difference="" if qemu.build_id == recipe.build else f"{qemu.version} ({qemu.name})")


def _side(recipe: QemuRecipe, cache: Path) -> Side:
    """The nearest thing to the sender's QEMU that there is or could be."""
    if recipe.kind == "build":
        if found := find_build(recipe, cache=cache):
            other = found.build_id != recipe.build
            return Side(wanted=recipe, step="use", qemu=found, difference="the same source, built by another compiler" if other else "")
        return Side(wanted=recipe, step="build" if recipe.portable else "lack")
    if recipe.kind == "fetched":
        return _fetched(recipe, recipe.name, cache)
    if recipe.kind == "system":
        here = _try("system", cache)
        if here is not None and here.build_id == recipe.build:
            return Side(wanted=recipe, step="use", qemu=here)
        series = ".".join(recipe.version.split(".")[:2])
        if (here is None or not here.version.startswith(f"{series}.")) and series in FETCHABLE:
            return _fetched(recipe, series, cache)
        if here is not None:
            return Side(wanted=recipe, step="use", qemu=here, difference=f"{here.version} (another build)")
    return Side(wanted=recipe, step="lack")


def _fetched(recipe: QemuRecipe, name: str, cache: Path) -> Side:
    if name not in FETCHABLE:
        return Side(wanted=recipe, step="lack")
    here = _try(name, cache)
    if here is None:
        return Side(wanted=recipe, step="fetch", fetch=name)
    return Side(wanted=recipe, step="use", qemu=here, difference="" if here.build_id == recipe.build else f"{here.version} (another build)")


def _try(name: str, cache: Path) -> QemuInstall | None:
    try:
        return resolve_qemu(name, cache)
    except SwitchoverError:
        return None


def _differences(bundle: OpenedBundle, sides: dict[str, Side]) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for name, side in sides.items():
        if side.difference:
            found.append((f"{name}'s QEMU", f"{side.wanted.version} ({side.wanted.package or side.wanted.origin})", side.difference))
    there, here = bundle.observation.result.host, host_facts()
    for key in _HOST:
        one, other = there.get(key), _plain(getattr(here, key, None) if not isinstance(here, dict) else here.get(key))
        if one != other:
            found.append((f"host: {key}", str(one), str(other)))
    if bundle.manifest.switchover != __version__:
        found.append(("switchover", bundle.manifest.switchover, __version__))
    return found


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def provide(
    plan: ReplayPlan, bundle: OpenedBundle, *, fetch_missing: bool, build: bool, cache: Path, progress: Progress
) -> Scenario:
    """Fetch and build what is missing, as far as it was asked for, and give the scenario that names what is here now.

    Nothing of a bundle is compiled unless `build` says so. `EnvironmentLackError` for what is missing and wasn't asked for.
    """
    names: dict[str, str] = {}
    for name, side in plan.sides.items():
        match side.step:
            case "lack":
                raise EnvironmentLackError(f"the {name}'s QEMU {side.wanted.version} ({side.wanted.kind}) is not to be had here", hint="give one with --qemu")
            case "fetch":
                if not fetch_missing:
                    raise EnvironmentLackError(f"QEMU {side.fetch} is missing", hint=f"--yes fetches it; or switchover qemu fetch {side.fetch}")
                names[name] = fetch(side.fetch, cache=cache, progress=progress).name
            case "build":
                if not build:
                    raise EnvironmentLackError(
                        f"the {name}'s QEMU has to be built from {len(side.wanted.patches)} patches of the bundle",
                        hint="look at them, then say --build; or give another QEMU with --qemu",
                    )
                names[name] = rebuild(side.wanted, patches=bundle.patches, cache=cache, progress=progress).name
            case "use":
                assert side.qemu is not None
                names[name] = side.qemu.name
    return msgspec.structs.replace(plan.scenario, qemu=msgspec.structs.replace(plan.scenario.qemu, **names))
