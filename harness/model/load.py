"""Scenario files: from TOML to a checked `Scenario`, and back.

Everything that is wrong is one `ScenarioError` (exit 4), which names for each problem the file (or the `--set`), the line,
the dotted key, the value as it is written, what is wrong and the mend. Nothing but the file itself is looked at here: whether a kernel, an image,
a QEMU or a feature of it exists is found out later.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from harness.errors import ScenarioError
from harness.model.expect import expectation_problems
from harness.model.scenario import (
    KNOWN_MECHANISMS,
    DestinationPort,
    MigrationMode,
    MigrationSection,
    Scenario,
)
from harness.model.schema import NO_VALUE, Key, Problem, did_you_mean, nearest, shape_problems
from harness.model.traffic_rules import traffic_problems
from harness.model.units import parse_size

__all__ = ["KNOWN_NAMES", "dump_scenario", "load_scenario", "parse_scenario", "shipped_scenarios"]

_SHIPPED = Path(__file__).resolve().parent.parent / "scenarios"
_MOST_BYTES = 1 << 20
_MOST_LEVELS = 32
_MOST_CHARACTERS_SEARCHED = 300_000
_MOST_SHOWN = 60

KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    # asked of QEMU 7.2.22, 10.0.13 and 11.1.3, and the posted series: netpass, virtio-iterative, TAP transfer
    "capability": (
        "auto-converge", "background-snapshot", "block", "compress", "dirty-bitmaps", "dirty-limit", "events",
        "late-block-activate", "mapped-ram", "multifd", "netpass", "pause-before-switchover", "postcopy-blocktime",
        "postcopy-preempt", "postcopy-ram", "rdma-pin-all", "release-ram", "return-path", "switchover-ack",
        "validate-uuid", "virtio-iterative", "x-colo", "x-ignore-shared", "xbzrle", "zero-blocks", "zero-copy-send",
    ),
    "parameter": (
        "announce-initial", "announce-max", "announce-rounds", "announce-step", "avail-switchover-bandwidth",
        "backend-transfer", "block-bitmap-mapping", "block-incremental", "compress-level", "compress-threads",
        "compress-wait-thread", "cpr-exec-command", "cpu-throttle-increment", "cpu-throttle-initial",
        "cpu-throttle-tailslow", "decompress-threads", "direct-io", "downtime-limit", "local", "max-bandwidth",
        "max-cpu-throttle", "max-postcopy-bandwidth", "mode", "multifd-channels", "multifd-compression",
        "multifd-qatzip-level", "multifd-zlib-level", "multifd-zstd-level", "netpass-hold-back", "netpass-max-bytes",
        "netpass-max-packets", "netpass-wait-limit", "throttle-trigger-threshold",
        "tls-authz", "tls-creds", "tls-hostname", "vcpu-dirty-limit", "x-checkpoint-delay", "x-rdma-chunk-size",
        "x-vcpu-dirty-limit-period", "xbzrle-cache-size", "zero-page-detection",
    ),
}  # fmt: skip
"""Names of migration capabilities and parameters, to tell a slip of the finger from a name that is new."""

_SLIP = 0.85
"""Similarity from which an unknown name counts as misspelt: one wrong letter in seven."""


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.toml"))}


def load_scenario(name_or_path: str, *, settings: Sequence[str] = ()) -> Scenario:
    """The scenario of a TOML file, or the shipped one of that name (write `./name` for a file that is called like one).

    `settings` are KEY=VALUE with dotted keys, laid over the file in their order: `traffic.0.rate_pps=3000`. A value is read as TOML; what
    is no TOML value is a string, and so is anything for a key that takes strings.

    Raises ScenarioError with every problem that can be told at once. A migration capability or parameter that resembles a known name
    without being one is such a problem. One that resembles none passes: a QEMU with patches of its own may have it, and the discovery
    of features, which runs before anything migrates, refuses what the QEMU at hand lacks.
    """
    label, text = _read(name_or_path)
    return parse_scenario(text, label=label, settings=settings)


def parse_scenario(text: str, *, label: str, settings: Sequence[str] = ()) -> Scenario:
    """As `load_scenario`, from the TOML text itself; `label` is what messages call it. Raises ScenarioError."""
    document = _parse(label, text)
    source = _Source(label, text)
    for setting in settings:
        _apply(document, setting, source)
    if _is_deep(document):
        raise ScenarioError(f"{label}: is nested deeper than {_MOST_LEVELS} levels", hint="a scenario needs four at most")
    problems = [*_flatten_expect(document), *shape_problems(document, Scenario)]
    problems += _meaning_problems(document, {problem.key for problem in problems})
    if problems:
        raise source.error(problems)
    return msgspec.convert(document, Scenario)


# -- reading


def _read(name_or_path: str) -> tuple[str, str]:
    """What to call the scenario in messages, and its text."""
    label = _shorten(name_or_path if name_or_path.isprintable() else repr(name_or_path), most=200)
    shipped = shipped_scenarios()
    path = shipped.get(name_or_path) or Path(name_or_path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ScenarioError(f"{label}: is a folder", hint="name the scenario file in it")
        if not stat.S_ISREG(mode):  # a pipe would be waited for without end
            raise ScenarioError(f"{label}: is no regular file", hint="write the scenario to a file first")
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise _not_there(name_or_path, label, shipped) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise ScenarioError(f"{label}: can't be read: {cause}") from error
    if len(content) > _MOST_BYTES:
        raise ScenarioError(f"{label}: is larger than 1 MiB", hint="a scenario is a TOML file of a few lines")
    try:
        return label, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ScenarioError(
            f"{label}:{line}: byte 0x{content[error.start]:02x} is no UTF-8", hint="save the file as UTF-8 text"
        ) from None


def _not_there(name_or_path: str, label: str, shipped: Iterable[str]) -> ScenarioError:
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        near = nearest(path.name, [other.name for other in path.parent.glob("*.toml")])
        hint = f"did you mean {str(path.with_name(near))!r}?" if near else None
        return ScenarioError(f"{label}: there is no such file", hint=hint)
    return ScenarioError(f"there is no scenario {label!r}", hint=did_you_mean(name_or_path, shipped))


def _parse(label: str, text: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        what, line, column = found.groups() if found else (str(error), None, None)
        if line is None:
            line, column = str(text.rstrip("\n").count("\n") + 1), None
        where = f"{label}:{line}" + (f":{column}" if column else "")
        shown = text.split("\n")[int(line) - 1].strip()
        raise ScenarioError(f"{where}: {_shorten(shown)}: is no TOML: {what}", hint=_syntax_mend(what, shown)) from None
    except RecursionError:
        raise ScenarioError(f"{label}: is nested too deeply", hint="a scenario needs four levels at most") from None
    except ValueError:  # Python's limit, of some thousand digits
        raise ScenarioError(f"{label}: holds a number that is too long to be read") from None
    if not document:
        raise ScenarioError(f"{label}: is empty", hint='a scenario needs at least name = "..."; see docs/scenario.md')
    return document


def _is_deep(document: dict[str, Any]) -> bool:
    """Whether it is nested so deeply that walking it could exhaust the stack: dotted keys have no limit of their own."""
    level: list[Any] = [document]
    for _ in range(_MOST_LEVELS):
        level = [item for value in level if isinstance(value, dict | list)
                 for item in (value.values() if isinstance(value, dict) else value)]  # fmt: skip
    return bool(level)


_SYNTAX_MENDS = (
    # tomllib's complaint, the line, the mend: what people write most often in place of TOML
    (r"Illegal character '\\n'", r"", "close the quotes on the line on which they begin"),
    (r"Cannot", r"", "it is there already: leave one out"),
    (r"", r"[\w.-]+\s*:", "write KEY = VALUE"),
    (r"Invalid value", r"[\w.-]+\s*=", "write strings in quotes"),
)


def _syntax_mend(complaint: str, line: str) -> str | None:
    hits = (mend for of_complaint, of_line, mend in _SYNTAX_MENDS if re.match(of_complaint, complaint) and re.match(of_line, line))
    return next(hits, None)


# -- settings


def _apply(document: dict[str, Any], setting: str, source: _Source) -> None:
    """Lay KEY=VALUE over a document."""
    dotted, equals, text = setting.partition("=")
    parts = [part.strip().strip('"') for part in dotted.split(".")]
    if not equals or not all(parts):
        raise ScenarioError(f"--set {setting}: is no KEY=VALUE", hint="for example --set migration.hold_ms=200")
    if parts[0] == "expect":  # the keys of [expect] hold dots themselves
        parts = ["expect", ".".join(parts[1:])] if len(parts) > 1 else parts
    key: Key = ()
    here: Any = document
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                numbers = f"0 to {len(here) - 1}" if here else "none at all"
                raise ScenarioError(f"--set {setting}: there is no {_dotted((*key, part))}", hint=f"there is {numbers}")
            step: str | int = int(part)
        elif isinstance(here, dict):
            step = part
        else:
            raise ScenarioError(f"--set {setting}: {_dotted(key)} has no keys", hint=f"set {_dotted(key)} itself")
        key = (*key, step)
        if last:
            here[step] = _setting_value(setting, text.strip(), key)
            source.settings[key] = setting
        else:
            here = here.setdefault(step, [] if key == ("traffic",) else {}) if isinstance(here, dict) else here[step]


def _setting_value(setting: str, text: str, key: Key) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text
    except (ValueError, RecursionError):
        if text[:1] in ('"', "'", "[", "{"):
            raise ScenarioError(f"--set {setting}: the value is no TOML", hint="close quotes and brackets") from None
        return text
    # `qemu.source=11.1` means the name, not the number
    is_scalar = not isinstance(value, str | list | dict)
    return text if is_scalar and _refuses(key, value) and not _refuses(key, text) else value


def _refuses(key: Key, value: Any) -> bool:
    """Whether a scenario's types have no place for that value."""
    document: Any = value
    for part in reversed(key):
        document = [document] if isinstance(part, int) else {part: document}
    return any(problem.value is not NO_VALUE for problem in shape_problems(document, Scenario))


# -- where a problem stands


class _Source:
    """The file and the settings that a document comes from."""

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.lines = text.split("\n")
        self.settings: dict[Key, str] = {}

    def error(self, problems: Sequence[Problem]) -> ScenarioError:
        """All problems in one error, those of the file in the order of its lines."""
        keys = [problem.key for problem in problems if self._setting(problem.key) is None]
        found = self._find_lines(keys)
        ordered = sorted(problems, key=lambda problem: found.get(problem.key, len(self.lines) + 1))
        messages = [self._message(problem, found.get(problem.key)) for problem in ordered]
        if len(problems) == 1:
            return ScenarioError(messages[0], hint=ordered[0].mend)
        mends = [f"\n    mend: {problem.mend}" if problem.mend else "" for problem in ordered]
        listed = "".join(f"\n  {message}{mend}" for message, mend in zip(messages, mends, strict=True))
        return ScenarioError(f"{self.label}: {len(problems)} problems{listed}")

    def _message(self, problem: Problem, line: int | None) -> str:
        shown = "" if problem.value is NO_VALUE else f" = {_shorten(_toml_value(problem.value))}"
        setting = self._setting(problem.key)
        where = f"--set {setting}" if setting else self.label if line is None else f"{self.label}:{line}"
        return f"{where}: {_dotted(problem.key)}{shown}: {problem.wrong}"

    def _setting(self, key: Key) -> str | None:
        """The last setting that touched the key."""
        hits = [setting for own, setting in self.settings.items() if own == key[: len(own)]]
        return hits[-1] if hits else None

    def _find_lines(self, keys: Iterable[Key]) -> dict[Key, int]:
        """The line on which each key begins, where it stands in the file.

        tomllib keeps no lines. A key begins behind the longest readable part of the file in which it isn't there yet; text within
        a string can't be mistaken for a key that way.
        """
        wanted, found = set(keys), {}
        begin, searched = 1, 0
        for number in range(1, len(self.lines) + 1):
            text = "\n".join(self.lines[:number])
            searched += len(text)
            if not wanted or searched > _MOST_CHARACTERS_SEARCHED:
                break
            try:
                part = tomllib.loads(text)
            except ValueError:
                continue
            _flatten_expect(part)
            for key in [key for key in wanted if _holds(part, key)]:
                wanted.remove(key)
                found[key] = begin
            begin = number + 1
        return found


def _holds(document: Any, key: Key) -> bool:
    for part in key:
        try:
            document = document[part]
        except (LookupError, TypeError):
            return False
    return True


def _dotted(key: Key) -> str:
    return ".".join(str(part) if isinstance(part, int) else _toml_key(part) for part in key)


def _shorten(text: str, *, most: int = _MOST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


# -- what is well formed and still can't be meant


def _flatten_expect(document: dict[str, Any]) -> list[Problem]:
    """Join the keys below `expect`: unquoted, `downtime.compute_ms` is two tables to TOML and one key to people."""
    expect = document.get("expect")
    if not isinstance(expect, dict):
        return []
    flat: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in _leaves(expect, ""):
        if key in flat:
            problems.append(Problem(("expect", key), "is there twice, with and without quotes", "leave one out", value))
        flat[key] = value
    document["expect"] = flat
    return problems


def _leaves(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _meaning_problems(document: dict[str, Any], bad: set[Key]) -> list[Problem]:
    """Contradictions and names that mean nothing. Keys that are known to be bad count as left out, and what depends on them isn't judged."""
    sound = _without(document, bad, ())
    if not isinstance(sound.get("name"), str):
        sound["name"] = "unnamed"
    try:
        scenario = msgspec.convert(sound, Scenario)
    except msgspec.ValidationError as error:
        if bad:
            return []
        return [Problem((), str(error))]

    def is_open(key: Key) -> bool:
        """Whether the key's value is one of the bad ones; names of streams hang on all of the traffic."""
        keys = {key, ("traffic",)} if key[0] == "expect" else {key}
        return any(_related(one, other) for one in keys for other in bad)

    problems = [problem for check in _CHECKS for problem in check(scenario) if not is_open(problem.key)]
    for rule in _RULES:
        keys = [_key_of(dotted) for dotted in rule.keys]
        if rule.broken(scenario) and not any(map(is_open, keys)):
            written = _value_at(document, keys[0])
            value = _value_at(msgspec.to_builtins(scenario), keys[0]) if written is NO_VALUE else written
            problems.append(Problem(keys[0], rule.wrong.format(s=scenario), rule.mend, value))
    return problems


def _related(one: Key, other: Key) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _without(value: Any, bad: set[Key], key: Key) -> Any:
    """A copy without the bad keys; bad list entries that are tables stay as empty ones, so that the others keep their numbers."""
    if isinstance(value, dict):
        return {name: _without(item, bad, (*key, name)) for name, item in value.items() if (*key, name) not in bad}
    if isinstance(value, list):
        return [{} if (*key, at) in bad else _without(item, bad, (*key, at)) for at, item in enumerate(value)]
    return value


def _key_of(dotted: str) -> Key:
    return tuple(dotted.split("."))


def _value_at(document: Any, key: Key) -> Any:
    for part in key:
        document = document.get(part, NO_VALUE) if isinstance(document, dict) else NO_VALUE
    return document


class _Rule(NamedTuple):
    """A contradiction. `keys`: what it is between, the one to change first. `wrong` is formatted with the scenario as `s`."""

    keys: tuple[str, ...]
    broken: Callable[[Scenario], bool]
    wrong: str
    mend: str


def _stays(scenario: Scenario) -> bool:
    return scenario.migration.mode in (MigrationMode.NONE, MigrationMode.STOP_CONT)


def _least_s(scenario: Scenario) -> float:
    migration, timing = scenario.migration, scenario.timing
    stop_ms = migration.outage_ms if migration.mode is MigrationMode.STOP_CONT else migration.hold_ms
    stop_ms += migration.cancel_after_ms or 0.0
    return timing.settle_s + stop_ms / 1000 + timing.tail_s + timing.drain_s


_MIGRATES = ", or take migration.mode = precopy or postcopy"
_DEFAULT_OUTAGE_MS = MigrationSection().outage_ms
_SOURCE_MEMORY_ENDS = ("x-ignore-shared", "release-ram", "background-snapshot", "x-colo")
_NOT_IN_MODE = "means nothing in mode {s.migration.mode}: the guest does not migrate"

_RULES: tuple[_Rule, ...] = (
    _Rule(("migration.hold_ms", "migration.mode"),
          lambda s: _stays(s) and s.migration.hold_ms > 0, _NOT_IN_MODE, "set it to 0" + _MIGRATES),
    _Rule(("migration.cancel_at_switchover", "migration.mode"),
          lambda s: _stays(s) and s.migration.cancel_at_switchover, _NOT_IN_MODE, "set it to false" + _MIGRATES),
    _Rule(("migration.cancel_after_ms", "migration.mode"),
          lambda s: _stays(s) and s.migration.cancel_after_ms is not None, _NOT_IN_MODE, "leave it out" + _MIGRATES),
    _Rule(("migration.cancel_after_ms", "migration.cancel_at_switchover"),
          lambda s: s.migration.cancel_after_ms is not None and s.migration.cancel_at_switchover,
          "a migration is cancelled once, and cancel_at_switchover is true", "leave one of them out"),
    _Rule(("migration.capabilities",),
          lambda s: "switchover-ack" in s.migration.capabilities and "return-path" not in s.migration.capabilities,
          "switchover-ack needs return-path: the ACK comes on it", 'add "return-path"'),
    _Rule(("network.iterative_delta", "migration.capabilities"),
          lambda s: s.network.iterative_delta and "virtio-iterative" not in s.migration.capabilities,
          "means nothing without the capability virtio-iterative", 'add "virtio-iterative" to migration.capabilities'),
    _Rule(("network.iterative_control", "migration.capabilities"),
          lambda s: s.network.iterative_control == "reset" and "virtio-iterative" not in s.migration.capabilities,
          "without the capability virtio-iterative there is no load at the setup",
          'add "virtio-iterative" to migration.capabilities'),
    _Rule(("network.enabled_queues", "network.queues"),
          lambda s: (s.network.enabled_queues or 1) > s.network.queues,
          "the NIC has {s.network.queues} queue pairs", "take fewer, or more queues"),
    _Rule(("migration.capabilities", "migration.mode"),
          lambda s: _stays(s) and bool(s.migration.capabilities), _NOT_IN_MODE, "set it to []" + _MIGRATES),
    _Rule(("migration.parameters", "migration.mode"),
          lambda s: _stays(s) and bool(s.migration.parameters), _NOT_IN_MODE, "leave it out" + _MIGRATES),
    _Rule(("migration.fault", "migration.mode"),
          lambda s: _stays(s) and s.migration.fault is not None, _NOT_IN_MODE, "leave it out" + _MIGRATES),
    _Rule(("migration.start_after_ms", "migration.mode"),
          lambda s: _stays(s) and s.migration.start_after_ms is not None, _NOT_IN_MODE, "leave it out" + _MIGRATES),
    _Rule(("migration.compare_memory", "migration.mode"),
          lambda s: s.migration.compare_memory and (s.migration.mode is not MigrationMode.PRECOPY or s.migration.cancels),
          "needs a source that stands still with all of the memory: precopy that is not cancelled", "set it to false, or migration.mode to precopy"),
    _Rule(("migration.compare_memory", "migration.capabilities"),
          lambda s: s.migration.compare_memory and any(each in s.migration.capabilities for each in _SOURCE_MEMORY_ENDS),
          "can't be done with {s.migration.capabilities}: the source does not stand still with the memory", "leave one of them out"),
    _Rule(("migration.only_at_source", "migration.mode"),
          lambda s: _stays(s) and bool(s.migration.only_at_source), _NOT_IN_MODE, "set it to []" + _MIGRATES),
    _Rule(("migration.fault", "migration.cancel_at_switchover"),
          lambda s: s.migration.fault is not None and s.migration.cancels,
          "can't be planned together with a cancel: who ends the migration would be chance", "leave one of them out"),
    _Rule(("mechanism", "migration.mode"),
          lambda s: _stays(s) and s.mechanism in KNOWN_MECHANISMS[1:], _NOT_IN_MODE, "take none" + _MIGRATES),
    _Rule(("migration.outage_ms", "migration.mode"),
          lambda s: s.migration.mode is not MigrationMode.STOP_CONT and s.migration.outage_ms != _DEFAULT_OUTAGE_MS,
          "is for mode stop-cont only, not for {s.migration.mode}",
          "take migration.mode = stop-cont, or hold_ms for a longer switchover"),
    _Rule(("migration.mode", "mechanism"),
          lambda s: s.mechanism in ("tap-handover", "local-tap") and s.migration.mode is MigrationMode.POSTCOPY,
          "{s.mechanism} works in precopy only", "take precopy, or the mechanism netpass"),
    _Rule(("network.queues", "mechanism"),
          lambda s: s.mechanism == "tap-handover" and s.network.queues > 1,
          "tap-handover can keep the order of one queue only", "take queues = 1, or another mechanism"),
    _Rule(("network.vhost", "mechanism"),
          lambda s: s.mechanism in ("redirect", "local-tap") and s.network.vhost,
          "{s.mechanism} needs QEMU to handle the frames, and with vhost the host's kernel does",
          "take vhost = false, or the mechanism tap-handover or redirect-packet"),
    _Rule(("network.destination_port", "mechanism"),
          lambda s: s.mechanism == "tap-handover" and s.network.destination_port is DestinationPort.FROM_START,
          "tap-handover opens the destination's port itself", "leave it out, or take another mechanism"),
    _Rule(("migration.transport", "mechanism"),
          lambda s: s.mechanism == "local-tap" and s.migration.transport != "unix",
          "local-tap hands descriptors over, which only a UNIX socket can carry", 'take transport = "unix"'),
    _Rule(("guest.modules", "guest.kernel"),
          lambda s: s.guest.modules is not None and s.guest.kernel is None,
          "modules belong to a kernel, and none is given", "give guest.kernel too"),
    _Rule(("timing.timeout_s", "timing.settle_s", "timing.tail_s", "timing.drain_s", "migration.hold_ms", "migration.outage_ms",
           "migration.cancel_after_ms"),
          lambda s: s.timing.timeout_s <= _least_s(s),
          "is too short: settling, stop, tail and draining alone take longer or as long",
          "take a larger one, and leave time for booting and migrating"),
)  # fmt: skip


def _check_mechanism(scenario: Scenario) -> Iterator[Problem]:
    if scenario.mechanism not in KNOWN_MECHANISMS:
        mend = did_you_mean(scenario.mechanism, KNOWN_MECHANISMS)
        yield Problem(("mechanism",), "there is no such mechanism", mend, scenario.mechanism)


def _check_memory(scenario: Scenario) -> Iterator[Problem]:
    memory = scenario.guest.memory
    key = ("guest", "memory")
    try:
        size_bytes = parse_size(memory)
    except ValueError:
        yield Problem(key, "is no size", 'write a whole number with K, M or G, such as "256M"', memory)
        return
    if size_bytes == 0 or size_bytes % (1 << 20):
        yield Problem(key, "must be whole mebibytes, and not none", 'write for example "256M"', memory)


def _check_paths(scenario: Scenario) -> Iterator[Problem]:
    for section, fields in (("guest", ("cpu", "kernel", "modules", "image")), ("qemu", ("source", "destination"))):
        for field in fields:
            value = getattr(getattr(scenario, section), field)
            if value is not None and (not value.strip() or "\0" in value):
                yield Problem((section, field), "is no name and no path", "leave it out for the default", value)


def _check_migration_names(scenario: Scenario) -> Iterator[Problem]:
    migration = scenario.migration
    for number, name in enumerate(migration.capabilities):
        yield from _check_name(name, ("migration", "capabilities", number), "capability", "parameter", name)
    for name, value in migration.parameters.items():
        yield from _check_name(name, ("migration", "parameters", name), "parameter", "capability", value)


def _check_name(name: str, key: Key, kind: str, other: str, value: Any) -> Iterator[Problem]:
    if name in KNOWN_NAMES[kind]:
        return
    if name in KNOWN_NAMES[other]:
        place = "[migration.parameters]" if other == "parameter" else "migration.capabilities"
        yield Problem(key, f"{name} is a migration {other}, no {kind}", f"write it in {place}", value)
    elif not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        yield Problem(key, f"is no name of a migration {kind}", "write it as QEMU does, such as "
                      + ("return-path" if kind == "capability" else "downtime-limit"), value)  # fmt: skip
    elif near := nearest(name, KNOWN_NAMES[kind], cutoff=_SLIP):
        yield Problem(key, f"no QEMU is known to have this migration {kind}", f"did you mean {near!r}?", value)


_CHECKS: tuple[Callable[[Scenario], Iterable[Problem]], ...] = (
    _check_mechanism, _check_memory, _check_paths, traffic_problems, _check_migration_names, expectation_problems,
)  # fmt: skip


# -- writing


def dump_scenario(scenario: Scenario) -> str:
    """The scenario as TOML with all defaults spelt out; `load_scenario` makes the same scenario of it.

    Raises ScenarioError for a parameter that TOML can't express (None).
    """
    document = {key: value for key, value in msgspec.to_builtins(scenario).items() if value not in ((), {})}
    return "\n".join(_toml_table(document, ())).lstrip("\n") + "\n"


def _toml_table(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: its plain values first, then its sub-tables."""
    nested: list[tuple[str, Any]] = []
    for key, value in table.items():
        if value is None and path != ("migration", "parameters"):
            continue
        many = isinstance(value, list | tuple)
        if isinstance(value, dict) or (many and value and all(isinstance(item, dict) for item in value)):
            nested.append((key, value))
        else:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in nested:
        name = ".".join(_toml_key(part) for part in (*path, key))
        many = not isinstance(value, dict)
        for item in value if many else [value]:
            yield ""
            yield f"[[{name}]]" if many else f"[{name}]"
            yield from _toml_table(item, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    """A value on one line. JSON's strings are TOML's, but for DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if value is None:
        raise ScenarioError("a scenario holds a value that TOML has no word for: null")
    return str(value)
