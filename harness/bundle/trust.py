"""What may be in a bundle that somebody else made, member by member. Everything is refused with one `BundleError`.

The scenario is the only part of a bundle that decides what is run. It comes in through the schema alone, and of that, free texts
(fields whose values the schema doesn't enumerate) are refused unless they are known to name nothing of this host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from harness.builds import patch_problem, recipe_problem
from harness.bundle.format import Manifest, is_patch, patch_member
from harness.errors import BundleError, ScenarioError
from harness.model.facts import RunFacts
from harness.model.load import parse_scenario
from harness.model.result import RunResult
from harness.model.scenario import Scenario

__all__ = ["NEEDED", "check_content", "check_manifest", "scenario_of", "scenario_problems"]

NEEDED = ("scenario.toml", "result.json", "run.json")
"""Members without which a bundle says nothing."""

_Test = Callable[[str], bool]
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:,[+-]?[A-Za-z0-9._-]+(?:=[A-Za-z0-9._-]+)?)*")


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None


_FREE_TEXTS: dict[str, _Test] = {
    # free texts of the schema that a bundle may fill, and with what
    "description": lambda text: text.isprintable() and len(text) <= 2000,
    "mechanism": _is_word,
    "guest.memory": _is_word,
    "guest.cpu": lambda text: _CPU.fullmatch(text) is not None and len(text) <= 200,
    "qemu.source": _is_word,
    "qemu.destination": _is_word,
    "migration.capabilities": _is_word,
}
_EXECUTING = ("exec", "command", "tls", "creds", "authz", "path", "file", "socket", "uri", "channel")
"""Parts of the names of migration parameters that make QEMU run, read or connect to something."""
_EXPECTED = re.compile(r"[A-Za-z0-9._ -]{1,200}")
_COMPARED = re.compile(r"[A-Za-z0-9 .<>=!+-]{1,80}")


def scenario_problems(scenario: Scenario) -> list[str]:
    """Why a scenario of unknown origin is not to be run as it is: one text for each field that could reach out of the lab."""
    document = msgspec.to_builtins(scenario)
    found = list(_texts(inspect.type_info(Scenario), document, ""))
    problems = [f"{way} = {_shown(text)}: a bundle may not give that" for way, text in found if not _FREE_TEXTS.get(way, _never)(text)]
    for name, value in scenario.migration.parameters.items():
        if any(part in name for part in _EXECUTING):
            problems.append(f"migration.parameters.{_shown(name)}: a bundle may not give that")
        elif isinstance(value, str):
            if not _is_word(value):
                problems.append(f"migration.parameters.{name} = {_shown(value)}: a bundle may give a word or a number")
        elif not isinstance(value, bool | int | float) or abs(value) > 1 << 63:
            problems.append(f"migration.parameters.{_shown(name)}: a bundle may give a word or a number")
    for key, wanted in scenario.expect.items():
        if not _EXPECTED.fullmatch(key) or (isinstance(wanted, str) and not _COMPARED.fullmatch(wanted)):
            problems.append(f"expect.{_shown(key)}: holds characters that no expectation needs")
    return problems


def _never(_text: str) -> bool:
    return False


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _texts(info: inspect.Type, value: Any, way: str) -> Iterator[tuple[str, str]]:
    """The free texts in a scenario's document with the dotted names of their fields (list entries share one name)."""
    match info:
        case inspect.StructType(fields=fields):
            for field in fields:
                if field.encode_name in value:
                    yield from _texts(field.type, value[field.encode_name], f"{way}.{field.encode_name}".lstrip("."))
        case inspect.Metadata(type=inner):
            yield from _texts(inner, value, way)
        case inspect.UnionType(types=types):
            for kind in types:
                if value is not None and not isinstance(kind, inspect.NoneType):
                    yield from _texts(kind, value, way)
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            for entry in value:
                yield from _texts(item, entry, way)
        case inspect.DictType(value_type=item) if way not in ("expect", "migration.parameters"):
            for name, entry in value.items():
                yield way, str(name)
                yield from _texts(item, entry, way)
        case inspect.StrType(pattern=None) if isinstance(value, str):
            yield way, value
        case inspect.AnyType() if way != "migration.parameters" and isinstance(value, str | list | dict):
            yield way, str(value)


def scenario_of(raw: bytes, *, label: str) -> Scenario:
    """The scenario of a bundle: read by its schema like any other file, then held against `scenario_problems`."""
    try:
        scenario = parse_scenario(raw.decode("utf-8"), label="scenario.toml")
    except UnicodeDecodeError as error:
        raise BundleError(f"{label}: scenario.toml is no UTF-8") from error
    except ScenarioError as error:
        raise BundleError(f"{label}: {' '.join(error.message.split())}") from error
    if problems := scenario_problems(scenario):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(f"{label}: scenario.toml: {problems[0]}{more}")
    return scenario


# -- the manifest and the members


def check_manifest(manifest: Manifest, *, label: str) -> None:
    """What the manifest alone says, before anything else is read."""
    names = {member.name for member in manifest.members}
    if missing := [name for name in NEEDED if name not in names]:
        raise BundleError(f"{label}: has no {missing[0]}")
    texts = [manifest.switchover, manifest.minimised_from, *manifest.finding, *manifest.scrubbed]
    texts += [text for each in manifest.left_out for text in (each.name, each.reason)]
    if not all(text.isprintable() for text in texts):
        raise BundleError(f"{label}: its manifest holds control characters")
    if manifest.seen_times > manifest.seen_runs:
        raise BundleError(f"{label}: saw its finding {manifest.seen_times} times in {manifest.seen_runs} runs")
    for side, recipe in (("source", manifest.qemu.source), ("destination", manifest.qemu.destination)):
        if problem := recipe_problem(recipe):
            raise BundleError(f"{label}: the recipe of the {side}'s QEMU: {problem}")
        if lost := next((p for p in recipe.patches if recipe.complete and patch_member(p.sha256) not in names), None):
            raise BundleError(f"{label}: the patch {lost.label!r} is not in it")
        if not all(patch.label.isprintable() for patch in recipe.patches):
            raise BundleError(f"{label}: the name of a patch holds control characters")
    wanted = {patch_member(p.sha256) for recipe in (manifest.qemu.source, manifest.qemu.destination) for p in recipe.patches}
    if extra := next((name for name in sorted(names) if is_patch(name) and name not in wanted), None):
        raise BundleError(f"{label}: {extra} is a patch of no recipe")


def check_content(name: str, data: bytes, *, manifest: Manifest, label: str) -> None:
    """One member's content, where it decides what is read, run or shown later."""
    if is_patch(name):
        shown = next((p.label for q in (manifest.qemu.source, manifest.qemu.destination) for p in q.patches if patch_member(p.sha256) == name), name)
        if problem := patch_problem(data):
            raise BundleError(f"{label}: patch {shown}: {problem}")
        member = next(m for m in manifest.members if m.name == name)
        if patch_member(member.sha256) != name:
            raise BundleError(f"{label}: patch {shown} has another digest than its name")
    elif name == "scenario.toml":
        scenario_of(data, label=label)
    elif name in ("run.json", "result.json"):
        kind: type[RunFacts] | type[RunResult] = RunFacts if name == "run.json" else RunResult
        record = _decode(data, kind, name=name, label=label)
        if record.run_id != manifest.run_id:
            raise BundleError(f"{label}: {name} is of run {record.run_id!r}, the manifest of {manifest.run_id!r}")
        if isinstance(record, RunFacts):
            _check_facts(record, manifest=manifest, label=label)
    elif not name.endswith((".pcapng", ".rec")):
        _check_shown(name, data, label=label)


def _check_shown(name: str, data: bytes, *, label: str) -> None:
    """Texts that may come to be shown: a terminal would obey control characters. The writer leaves none."""
    try:
        if name.endswith((".json", ".jsonl")):
            for line in [data] if name.endswith(".json") else data.splitlines():
                _check_plain(msgspec.json.decode(line), name=name, label=label, measured=False)
        elif not _is_plain(data.decode("utf-8")):
            raise BundleError(f"{label}: {name} holds control characters")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{label}: {name} is damaged: {error}") from error


def _decode(data: bytes, kind: type[Any], *, name: str, label: str) -> Any:
    try:
        head = msgspec.json.decode(data)
        version = head.get("schema_version") if isinstance(head, dict) else None
        if version != 1:
            raise BundleError(f"{label}: {name} has schema version {str(version)[:20]}, this program reads 1")
        _check_plain(head, name=name, label=label)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BundleError(f"{label}: {name} is damaged: {error}") from error


_MOST_NUMBER = 1 << 63


def _is_plain(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def _check_plain(value: Any, *, name: str, label: str, measured: bool = True) -> None:
    """Texts that a terminal would obey and, where numbers are `measured`, such that no measurement gives."""
    pending = [value]
    while pending:
        item = pending.pop()
        match item:
            case dict():
                pending += [*item.keys(), *item.values()]
            case list():
                pending += item
            case str() if not _is_plain(item):
                raise BundleError(f"{label}: {name} holds control characters")
            case int() | float() if measured and not -_MOST_NUMBER < item < _MOST_NUMBER:
                raise BundleError(f"{label}: {name} holds a number beyond all measure")


_NOT_PATHS = frozenset(("scenario", "host", "notes", "failure", "info", "parameters", "qemu", "guest"))


def _check_facts(facts: RunFacts, *, manifest: Manifest, label: str) -> None:
    """run.json names files and machines: they must be members (or such that were cut), and nothing else of this host."""
    known = {member.name for member in manifest.members} | {each.name for each in manifest.left_out}
    pending: list[tuple[str, Any]] = [("", msgspec.to_builtins(facts))]
    while pending:
        key, item = pending.pop()
        match item:
            case dict():
                pending += [(name, value) for name, value in item.items() if name not in _NOT_PATHS]
                pending += [("", name) for name in item]
            case list() | tuple():
                pending += [(key, value) for value in item]
            case str() if not key.endswith("reason") and item not in known and (key in ("file",) or key.endswith("_file") or _leads_away(item)):
                raise BundleError(f"{label}: run.json names the file {_shown(item)}, which is not in the bundle")
    for stream in facts.streams:
        if not (0 <= stream.id < 1 << 32 and 0 < stream.rate_pps <= 1_000_000 and _is_word(stream.name)):
            raise BundleError(f"{label}: run.json describes a stream that can't be")


def _leads_away(text: str) -> bool:
    return "/" in text or "\\" in text or ".." in text
