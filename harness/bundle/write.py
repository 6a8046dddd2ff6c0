"""Make a bundle of a run directory: choose, scrub, cut to size, list everything in the manifest, write."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness import __version__
from harness.analysis.columns import ARP, RARP, Columns, read_capture
from harness.analysis.records import parse_records
from harness.builds import QemuRecipe, patches_of_build, recipe_of
from harness.bundle.archive import compressed_bytes, write_archive
from harness.bundle.finding import Finding, Observation, finding_of, holds
from harness.bundle.format import (
    MOST_BYTES,
    MOST_MEMBER_BYTES,
    MOST_MEMBERS,
    LeftOut,
    Manifest,
    Member,
    Qemus,
    is_member_name,
    patch_member,
)
from harness.bundle.scrub import Identity, Scrubber
from harness.bundle.trust import scenario_problems
from harness.errors import SwitchoverError, UsageError
from harness.model.load import dump_scenario
from harness.model.result import QemuIdentity
from harness.model.scenario import Scenario
from harness.store.rundir import RunDirectory

__all__ = ["CUT_FIRST", "Made", "foreign_addresses", "make_bundle"]

CUT_FIRST = (
    "agent-*.jsonl", "features.json", "capture/*", "traffic/*.rec", "trace-*.jsonl", "console-*", "qmp-*", "events.jsonl", "*/*", "*",
)  # fmt: skip
"""What goes first where a bundle gets too large: what a reader of the report misses least. The guest agents' transcripts say again what
the records say; captures and records are needed to repeat the analysis, but not to run the scenario again. Never cut: `_KEPT`."""
_KEPT = ("scenario.toml", "result.json", "run.json", "host.json", "argv-*.json", "log.txt", "patches/*")
_WORD = re.compile(r"[^A-Za-z0-9._-]+")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in memory. `notes` are for the one who sends it."""

    data: bytes
    manifest: Manifest
    finding: Finding
    observation: Observation
    notes: tuple[str, ...] = ()


def make_bundle(
    run: RunDirectory, *, identity: Identity, cache: Path, max_bytes: int | None = None, others: Sequence[RunDirectory] = (),
    minimised_from: str = "",
) -> Made:
    """The bundle of a run. `others` are further runs of the same scenario: they are counted, so that it is known how often the
    finding is seen. The same run gives the same bytes.

    Raises `UsageError` for a run that can't be bundled, and for a `max_bytes` that even the least bundle exceeds.
    """
    seen = Observation.of_run(run)
    finding = finding_of(seen)
    scrubber = Scrubber(identity)
    content: dict[str, bytes] = {}
    left: list[LeftOut] = []
    scenario, own_kernel = _plain_scenario(run.facts().scenario, scrubber)
    if problems := scenario_problems(scenario):
        raise UsageError(f"{run.path}: a bundle can't hold this scenario: {problems[0]}")
    run_id = _word(scrubber.text(run.run_id))
    for path in sorted(run.path.rglob("*")):
        name = path.relative_to(run.path).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        try:
            content[name] = _member(path, name, scrubber=scrubber, scenario=scenario, run_id=run_id)
        except _Unfit as reason:
            left.append(LeftOut(name=scrubber.text(name)[:400], size=path.lstat().st_size, reason=str(reason)))
    qemu, notes = _recipes(run, scrubber=scrubber, cache=cache, content=content)
    distinct = {other.run_id: other for other in others if other.run_id != run.run_id}  # a run that is given twice was seen once
    again = [holds(finding, Observation.of_run(other)) for other in distinct.values()]
    shown = _shown_finding(run, scrubber)

    def manifest() -> Manifest:
        members = [Member(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in sorted(content.items())]
        return Manifest(
            run_id=run_id, switchover=__version__, finding=shown, seen_runs=1 + sum(answer is not None for answer in again),
            seen_times=1 + sum(answer is True for answer in again), qemu=qemu, own_kernel=own_kernel, minimised_from=minimised_from,
            scrubbed=dict(sorted(scrubber.counts.items())), left_out=tuple(left), members=tuple(members),
        )  # fmt: skip

    _keep_countable(content, left)
    data = write_archive(manifest(), content)
    if max_bytes is not None and len(data) > max_bytes:
        for name in _cut(content, excess=len(data) - max_bytes):
            left.append(LeftOut(name=name, size=len(content.pop(name)), reason=f"cut to keep the bundle below {max_bytes} bytes"))
        data = write_archive(manifest(), content)
        while len(data) > max_bytes and (candidates := _candidates(content)):
            name = candidates[0]
            left.append(LeftOut(name=name, size=len(content.pop(name)), reason=f"cut to keep the bundle below {max_bytes} bytes"))
            data = write_archive(manifest(), content)
        if len(data) > max_bytes:
            raise UsageError(f"the least bundle of {run.path} has {len(data)} bytes, more than {max_bytes}", hint="give a larger --max-size")
    return Made(data=data, manifest=manifest(), finding=finding, observation=seen, notes=tuple(notes))


class _Unfit(Exception):  # noqa: N818 -- says why a file stays out
    pass


def _word(text: str) -> str:
    """A name as the schema takes it: what was scrubbed from it stays as a plain word."""
    return _WORD.sub("-", text.replace("<", "").replace(">", "")).strip("-.")[:110] or "run"


def _plain_scenario(scenario: Scenario, scrubber: Scrubber) -> tuple[Scenario, bool]:
    """The scenario without paths of this host, and whether it had a kernel or an image of its own."""
    guest = scenario.guest
    own = guest.kernel is not None or guest.image is not None
    names = {side: name if "/" not in name else _word(Path(name).name) for side, name in msgspec.structs.asdict(scenario.qemu).items()}
    document: dict[str, Any] = scrubber.value(msgspec.to_builtins(scenario))
    document["name"] = _word(document["name"])[:64]
    plain = msgspec.convert(document, Scenario)
    return msgspec.structs.replace(
        plain, guest=msgspec.structs.replace(plain.guest, kernel=None, modules=None, image=None),
        qemu=msgspec.structs.replace(plain.qemu, **names),
    ), own  # fmt: skip


def _member(path: Path, name: str, *, scrubber: Scrubber, scenario: Scenario, run_id: str) -> bytes:
    """A file as the bundle holds it; `_Unfit` says why it does not."""
    if path.is_symlink() or not path.is_file():
        raise _Unfit("is no plain file")
    if not is_member_name(name):
        raise _Unfit("is of no kind that a bundle holds")
    if path.stat().st_size > MOST_MEMBER_BYTES:
        raise _Unfit(f"is larger than {MOST_MEMBER_BYTES >> 20} MiB")
    if name == "scenario.toml":
        return dump_scenario(scenario).encode()
    if path.suffix == ".pcapng":
        return _capture(path)
    raw = path.read_bytes()
    try:
        match path.suffix:
            case ".rec":
                parse_records(raw, name=name)
                return raw
            case ".json" if name in ("run.json", "result.json"):
                document = scrubber.value(msgspec.json.decode(raw))
                document |= {"run_id": run_id, "scenario": msgspec.to_builtins(scenario)}
                return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
            case ".json":
                return scrubber.json(raw)
            case ".jsonl":
                return scrubber.json_lines(raw)
            case ".log" | ".txt" | ".toml" | ".csv":
                return scrubber.text(raw.decode("utf-8", "replace").replace("\r", "")).encode()
    except (msgspec.MsgspecError, SwitchoverError) as error:
        raise _Unfit(f"is damaged: {scrubber.text(str(error).partition(chr(10))[0])[:200]}") from error
    raise _Unfit("is of no kind that a bundle holds")


def _capture(path: Path) -> bytes:
    """A capture, if nothing but a lab's traffic is in it."""
    try:
        columns = read_capture(path).columns
    except SwitchoverError as error:
        raise _Unfit("is a damaged capture") from error
    if count := foreign_addresses(columns):
        raise _Unfit(f"holds {count} frames with addresses from outside the lab")
    return path.read_bytes()


_LAB4 = (0x0A4D, 0x0A4E)  # the upper halves of 10.77.0.0/16 and 10.78.0.0/16
_LAB6 = (0xFD77, 0xFD78)


def foreign_addresses(columns: Columns) -> int:
    """How many frames carry an IP address that no lab has."""
    four = (columns.ip_version == 4) | (columns.ethertype == ARP) | (columns.ethertype == RARP)
    six = columns.ip_version == 6
    foreign = np.zeros(len(columns), dtype=np.bool_)
    for high, low in ((columns.source_hi, columns.source_lo), (columns.destination_hi, columns.destination_lo)):
        multicast = low >= 0xE0000000
        foreign |= four & ~(np.isin(low >> np.uint64(16), _LAB4) | multicast | (low == 0))
        top = high >> np.uint64(48)
        local = (high >> np.uint64(54) == 0x3FA) | (high >> np.uint64(56) == 0xFF)
        foreign |= six & ~(np.isin(top, _LAB6) | local | ((high == 0) & (low <= 1)))
    return int(np.count_nonzero(foreign))


def _recipes(run: RunDirectory, *, scrubber: Scrubber, cache: Path, content: dict[str, bytes]) -> tuple[Qemus, list[str]]:
    """How both QEMUs came about; their patches become members."""
    pair, packages = run.facts().qemu, _packages(run)
    recipes: dict[str, QemuRecipe] = {}
    notes: list[str] = []
    for side, identity in (("source", pair.source), ("destination", pair.destination)):
        recipe = _recipe(identity, packages.get(side, ""), scrubber=scrubber, cache=cache)
        if recipe.patches:
            files = patches_of_build(recipe.build, cache=cache)
            for patch in recipe.patches:
                content[patch_member(patch.sha256)] = files[patch.sha256].read_bytes()
        if recipe.kind not in ("system", "fetched") and not recipe.portable:
            notes.append(f"the {side}'s QEMU ({recipe.kind}) can't be built from this bundle: a replay needs --qemu")
        recipes[side] = recipe
    if any(recipe.patches for recipe in recipes.values()):
        notes.append("the patches are in it as they are, with their authors' names")
    return Qemus(source=recipes["source"], destination=recipes["destination"]), notes


def _recipe(identity: QemuIdentity, package: str, *, scrubber: Scrubber, cache: Path) -> QemuRecipe:
    recipe = recipe_of(name=identity.name, version=identity.version, build=identity.build, package=package, cache=cache)
    texts = {name: scrubber.text(getattr(recipe, name)) for name in ("name", "version", "package", "origin", "compiler")}
    source = recipe.source if recipe.source.startswith("Debian source ") else scrubber.text(recipe.source)
    return msgspec.structs.replace(recipe, source=source, **texts)


def _packages(run: RunDirectory) -> dict[str, str]:
    """What each side's QEMU says of its package."""
    try:
        features = msgspec.json.decode((run.path / "features.json").read_bytes())
        return {side: str(features[side].get("package", "")) for side in ("source", "destination")}
    except (OSError, msgspec.MsgspecError, LookupError, AttributeError, TypeError):
        return {}


def _shown_finding(run: RunDirectory, scrubber: Scrubber) -> tuple[str, ...]:
    lines = finding_of(Observation.of_run(run)).lines()
    return tuple(scrubber.text(line).replace("\n", " ")[:400] for line in lines)


def _keep_countable(content: dict[str, bytes], left: list[LeftOut]) -> None:
    """Stay below what a reader takes at all."""
    while len(content) > MOST_MEMBERS - 1 or sum(map(len, content.values())) > MOST_BYTES:
        candidates = _candidates(content)
        if not candidates:
            raise UsageError("the run is too large for a bundle")
        left.append(LeftOut(name=candidates[0], size=len(content.pop(candidates[0])), reason="the run is too large for a bundle"))


def _candidates(content: dict[str, bytes]) -> list[str]:
    """What may be cut, in order; of one kind the largest first."""
    kept = {name for name in content for pattern in _KEPT if fnmatch.fnmatchcase(name, pattern)}
    ordered: dict[str, None] = {}
    for pattern in CUT_FIRST:
        fitting = (name for name in content if name not in kept and fnmatch.fnmatchcase(name, pattern))
        ordered |= dict.fromkeys(sorted(fitting, key=lambda name: (-len(content[name]), name)))
    return list(ordered)


def _cut(content: dict[str, bytes], *, excess: int) -> list[str]:
    """What to cut so that the archive gets smaller by about `excess` bytes."""
    chosen: list[str] = []
    for name in _candidates(content):
        if excess <= 0:
            break
        chosen.append(name)
        excess -= compressed_bytes(content[name])
    return chosen
