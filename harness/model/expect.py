"""What a scenario expects of its result: the keys and comparisons of `[expect]`, and the verdict they make.

A key is a count of the streams, summed over them (`lost`, `ledger.unexplained`), or the path of one value in result.json
(`downtime.compute_ms`, `streams.udp-to-guest.lost`, `tcp.tcp-bulk-to-guest.rto_events`, `figures.NAME`); a list counts its entries. The value is a number (equal), a
comparison such as "< 300", ">= 10", "!= 0", a range such as "10 .. 20" (both ends included), or a word where the result has one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from harness.errors import ScenarioError
from harness.model.result import Figure, Outcome, RunResult, StreamResult, TcpResult, Verdict
from harness.model.scenario import Scenario
from harness.model.schema import Problem, did_you_mean
from harness.model.streams import plan_traffic

__all__ = ["check_expectations", "expectation_answers", "expectation_problems"]

_NOT_EXPECTED = ("expectations", "host", "run_id", "scenario", "schema_version", "verdict")
"""Fields of a result that are no measurement of it."""

_GRAMMAR = 'write a number, "< 300", ">= 10", "!= 0" or "10 .. 20"; the unit is that of the key'
_NUMBER = r"[+-]?\d{1,18}(?:\.\d{1,18})?(?:e[+-]?\d{1,2})?"
_COMPARISON = re.compile(rf"(<=|>=|==|!=|<|>|=|)\s*({_NUMBER})", re.IGNORECASE)
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})", re.IGNORECASE)


_TRUTHS = ("true", "false")


class _Refused(Exception):  # noqa: N818 -- carries a problem to the place that knows its key
    def __init__(self, wrong: str, mend: str | None = None) -> None:
        super().__init__(wrong)
        self.wrong, self.mend = wrong, mend


class _Target(msgspec.Struct, frozen=True):
    """What a key means: the way to it from a result (from each stream if `summed`), and the words it may be."""

    way: tuple[str, ...]
    summed: bool = False
    count: bool = False
    is_word: bool = False
    words: tuple[str, ...] = ()


class _Comparison(msgspec.Struct, frozen=True):
    """`value OPERATOR low`, or `low <= value <= high` for "..". `text` is how a failure quotes it."""

    operator: str
    low: Any
    high: float
    text: str

    def holds(self, value: Any, *, resolution: float) -> bool | None:
        """None where the value's resolution leaves it open. Equal means: no difference that could be seen."""
        if self.operator in ("==", "!="):
            equal = value == self.low if isinstance(self.low, str) else abs(value - self.low) <= resolution
            return equal if self.operator == "==" else not equal
        accepts = _ACCEPTS[self.operator]
        answers = {accepts(self, end) for end in (value - resolution, value, value + resolution)}
        return answers.pop() if len(answers) == 1 else None

    @property
    def possible(self) -> bool:
        """Whether a count, which is never negative, can meet it."""
        match self.operator:
            case "<":
                return bool(self.low > 0)
            case "<=" | "==":
                return bool(self.low >= 0)
            case "..":
                return self.high >= 0
        return True


_ACCEPTS: dict[str, Callable[[_Comparison, float], bool]] = {
    "<": lambda wanted, value: bool(value < wanted.low),
    "<=": lambda wanted, value: bool(value <= wanted.low),
    ">": lambda wanted, value: bool(value > wanted.low),
    ">=": lambda wanted, value: bool(value >= wanted.low),
    "..": lambda wanted, value: bool(wanted.low <= value <= wanted.high),
}


def expectation_problems(scenario: Scenario) -> list[Problem]:
    """What is wrong with a scenario's `[expect]`; nothing needs to have run."""
    names = _planned(scenario)
    problems: list[Problem] = []
    for key, wanted in scenario.expect.items():
        try:
            _understand(key, wanted, names=names)
        except _Refused as refused:
            problems.append(Problem(("expect", key), refused.wrong, refused.mend, wanted))
    return problems


def check_expectations(result: RunResult) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict of a result's own scenario, and one line for each expectation that was not met.

    Without expectations there is nothing to judge by: `no-baseline`. A run that was inconclusive stays so. A value that was not
    measured, or that lies nearer to its limit than its resolution, makes the verdict inconclusive unless another
    expectation failed. A migration that did not end as planned fails, whatever the packets did, unless the scenario expects an
    `outcome` itself. Raises ScenarioError for an expectation that can't be meant.
    """
    expect: dict[str, Any] = dict(result.scenario.expect)
    if not expect:
        return (Verdict.INCONCLUSIVE if result.outcome is Outcome.INCONCLUSIVE else Verdict.NO_BASELINE), ()
    planned = Outcome.CANCELLED if result.scenario.migration.cancels else Outcome.COMPLETED
    if "outcome" not in expect and result.outcome is not Outcome.INCONCLUSIVE:
        expect = {"outcome": planned.value, **expect}
    answers: list[bool | None] = []
    lines: list[str] = []
    for key, wanted in expect.items():
        answer, line = _judge(result, key, wanted)
        answers.append(answer)
        if answer is not True:
            lines.append(line)
    if result.outcome is Outcome.INCONCLUSIVE:
        verdict = Verdict.INCONCLUSIVE
    elif False in answers:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.INCONCLUSIVE if None in answers else Verdict.PASS
    return verdict, tuple(lines)


def expectation_answers(result: RunResult) -> dict[str, bool | None]:
    """For each key of the result's own `[expect]`: whether it was met, None where that can't be told. Raises ScenarioError."""
    return {key: _judge(result, key, wanted)[0] for key, wanted in result.scenario.expect.items()}


def _judge(result: RunResult, key: str, wanted: Any) -> tuple[bool | None, str]:
    try:
        target, comparison = _understand(key, wanted, names=_known(result))
    except _Refused as refused:
        raise ScenarioError(f"expect: {key} = {wanted!r}: {refused.wrong}", hint=refused.mend) from None
    value, resolution = _value(result, target)
    if value is None:
        return None, f"{key} was not measured, expected {comparison.text}"
    answer = comparison.holds(value, resolution=resolution)
    shown = f"{key} = {value:.15g}" if isinstance(value, float) else f"{key} = {value}"
    if answer is None:
        return None, f"{shown}, expected {comparison.text}: too near to tell with a resolution of {resolution:.15g}"
    return answer, f"{shown}, expected {comparison.text}"


def _value(result: RunResult, target: _Target) -> tuple[Any, float]:
    """The value and its resolution; None where the result has none."""
    if target.summed:
        return sum(_walk(stream, target.way) for stream in result.streams), 0.0
    if target.way[0] in _NAMED and len(target.way) > 1:
        entry = next((entry for entry in getattr(result, target.way[0]) if entry.name == target.way[1]), None)
        value = _walk(entry, target.way[2:])
    else:
        value = _walk(result, target.way)
    if isinstance(value, Figure):
        return value.value, value.resolution_ms
    if isinstance(value, bool):
        return str(value).lower(), 0.0
    return (len(value) if isinstance(value, tuple) else value), 0.0


def _walk(value: Any, way: Sequence[str]) -> Any:
    for part in way:
        if value is None:
            return None
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


# -- keys


@functools.cache
def _fields(kind: type) -> dict[str, inspect.Type]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field.type for field in info.fields}


_NAMED: dict[str, tuple[str, type]] = {"streams": ("stream", StreamResult), "tcp": ("connection", TcpResult)}
"""The lists of a result whose entries go by their names: what people call an entry, and its type."""

_Names = dict[str, list[str]]


def _names(streams: Iterable[Any], connections: Iterable[Any]) -> _Names:
    return {"streams": [each.name for each in streams], "tcp": [each.name for each in connections]}


def _planned(scenario: Scenario) -> _Names:
    traffic = plan_traffic(scenario.traffic)
    return _names(traffic.udp, traffic.tcp)


def _known(result: RunResult) -> _Names:
    """Those that the result has, and those that it was to have: the records of one that a guest sent may have ended with the guest."""
    planned = _planned(result.scenario)
    there = _names(result.streams, result.tcp)
    return {kind: list(dict.fromkeys((*there[kind], *planned[kind]))) for kind in there}


def _understand(key: str, wanted: Any, *, names: _Names) -> tuple[_Target, _Comparison]:
    target = _find(key, names=names)
    comparison = _word(wanted, target) if target.is_word else _compare(wanted)
    if target.count and not comparison.possible:
        raise _Refused("no count can be that", "a count is 0 or more")
    return target, comparison


def _find(key: str, *, names: _Names) -> _Target:
    first, _, rest = key.partition(".")
    if first in _NAMED and rest:
        return _of_named(first, rest, names=names[first])
    per_stream, of_run = _fields(StreamResult), _fields(RunResult)
    if first in of_run and first not in _NOT_EXPECTED:
        return _descend(of_run[first], (first,), tuple(key.split("."))[1:])
    if first not in per_stream:
        known = [name for name in (*_summable(), *of_run) if name not in _NOT_EXPECTED]
        raise _Refused("a result has no such field", did_you_mean(first, known))
    target = _descend(per_stream[first], (first,), tuple(key.split("."))[1:])
    if not target.count or first not in _summable():
        raise _Refused("is not summed over the streams", f"write streams.NAME.{key}")
    if not names["streams"]:
        raise _Refused("there is no stream to count", "add a [[traffic]]")
    return _Target(target.way, summed=True, count=True)


@functools.cache
def _summable() -> tuple[str, ...]:
    return tuple(name for name, kind in _fields(StreamResult).items() if isinstance(kind, inspect.IntType) or name == "ledger")


def _of_named(group: str, rest: str, *, names: Sequence[str]) -> _Target:
    word, kind = _NAMED[group]
    # names may hold dots: the longest that fits is meant
    for name in sorted(names, key=len, reverse=True):
        if rest.startswith(f"{name}."):
            first, *following = rest.removeprefix(f"{name}.").split(".")
            fields = _fields(kind)
            if first not in fields:
                raise _Refused(f"a {word} has no such field", did_you_mean(first, fields))
            return _descend(fields[first], (group, name, first), tuple(following))
    if rest in names:
        example = "lost" if group == "streams" else "rto_events"
        raise _Refused(f"is a whole {word}", f"write a field of it, such as {group}.{rest}.{example}")
    if not names:
        raise _Refused(f"there is no {word}", "add a [[traffic]]" + (" of kind tcp" if group == "tcp" else ""))
    raise _Refused(f"there is no such {word}", did_you_mean(rest.split(".")[0], names))


def _descend(info: inspect.Type, way: tuple[str, ...], rest: tuple[str, ...]) -> _Target:
    """Follow the rest of a key through the types."""
    match info:
        case inspect.UnionType(types=types):
            return _descend(next(kind for kind in types if not isinstance(kind, inspect.NoneType)), way, rest)
        case inspect.StructType() if rest:
            fields = _fields(info.cls)
            if rest[0] not in fields:
                raise _Refused(f"{'.'.join(way)} has no field {rest[0]!r}", did_you_mean(rest[0], fields))
            return _descend(fields[rest[0]], (*way, rest[0]), rest[1:])
        case inspect.StructType(cls=cls) if cls is Figure:
            return _Target(way)
        case inspect.DictType(value_type=inspect.StructType() as record) if rest:
            return _descend(record, (*way, rest[0]), rest[1:])
        case inspect.DictType(value_type=inspect.IntType() | inspect.FloatType() as number) if rest:
            return _Target((*way, ".".join(rest)), count=isinstance(number, inspect.IntType))
        case inspect.StructType():
            raise _Refused("is a group of values", f"write one of them, such as {'.'.join(way)}.{next(iter(_fields(info.cls)))}")
        case inspect.DictType(value_type=inspect.StructType() | inspect.IntType() | inspect.FloatType()):
            raise _Refused("is a group of values", f"write one of them: {'.'.join(way)}.NAME")
        case _ if rest:
            raise _Refused(f"{'.'.join(way)} has no fields", f"write {'.'.join(way)}")
        case inspect.IntType() | inspect.VarTupleType():
            return _Target(way, count=True)
        case inspect.FloatType():
            return _Target(way)
        case inspect.BoolType():
            return _Target(way, is_word=True, words=_TRUTHS)
        case inspect.StrType():
            return _Target(way, is_word=True)
        case inspect.EnumType(cls=words):
            return _Target(way, is_word=True, words=tuple(str(word.value) for word in words))
    raise _Refused("can't be compared", "write the key of a number or of a word")


# -- values


def _word(wanted: Any, target: _Target) -> _Comparison:
    if isinstance(wanted, bool) and target.words == _TRUTHS:
        wanted = str(wanted).lower()
    if not isinstance(wanted, str):
        raise _Refused("must be a word", f"known: {', '.join(target.words)}" if target.words else None)
    if target.words and wanted not in target.words:
        raise _Refused("there is no such word", did_you_mean(wanted, target.words))
    return _Comparison("==", wanted, 0.0, wanted)


def _compare(wanted: Any) -> _Comparison:
    """A comparison with numbers, from the value that the scenario gives."""
    if isinstance(wanted, bool):
        raise _Refused("must be a number or a comparison", _GRAMMAR)
    if isinstance(wanted, int | float):
        return _Comparison("==", wanted, wanted, str(wanted))
    text = wanted.strip()
    if match := _COMPARISON.fullmatch(text):
        sign = match[1] if match[1] not in ("", "=") else "=="
        return _Comparison(sign, _to_number(match[2]), 0.0, text)
    if match := _RANGE.fullmatch(text):
        low, high = _to_number(match[1]), _to_number(match[2])
        if low > high:
            raise _Refused("is a range that holds nothing", f'write "{match[2]} .. {match[1]}"')
        return _Comparison("..", low, high, text)
    raise _Refused("is no comparison", _GRAMMAR)


def _to_number(text: str) -> float:
    """As an int where it is written as one: counts are exact."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
