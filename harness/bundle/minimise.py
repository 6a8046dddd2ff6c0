"""Make a scenario smaller while something about it stays true: pure, but for the question that is asked of each candidate.

The sections of a scenario are not known here: lists (streams, NICs, capabilities) and tables (parameters) are found in the schema and
reduced by delta debugging (Zeller's ddmin: the result has no entry that could still be left out), as are the second guest and the
second NIC; then every other key is put back
to its default, then numbers get smaller. A candidate that the schema or the rules refuse is never asked about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from harness.errors import ScenarioError
from harness.model.load import dump_scenario, parse_scenario
from harness.model.scenario import TRAFFIC_DEFAULTS, Scenario, TrafficKind

__all__ = ["Budget", "Stays", "ddmin", "minimise"]

T = TypeVar("T")
Way = tuple[str | int, ...]
Stays = Callable[[Scenario], Awaitable[bool]]
"""Whether the finding stays with a scenario; may take as long as it has to."""

_KEPT: tuple[Way, ...] = (("name",), ("description",), ("qemu",), ("expect",), ("accelerator",), ("timing", "timeout_s"), ("mechanism",))
"""What is never touched: it says what is tested, and by what."""
_FLOORS = {"rate_pps": 20.0, "settle_s": 0.3, "tail_s": 0.3, "drain_s": 0.1, "hold_ms": 0.0, "outage_ms": 10.0, "size": 32}
"""Numbers that make a run longer or larger, with the least that is tried."""
_HALVINGS = 4
_LESS: dict[Way, Any] = {("network", "peer"): "namespace", ("guest", "management"): False}
"""Where less than the default will do: no guest for a peer, no NIC but the one under test. Tried first, since it makes each run shorter."""


class Budget:
    """How many different scenarios may be asked about; what was asked once is remembered."""

    def __init__(self, stays: Stays, *, most: int, each: Callable[[Scenario, bool], None] | None = None) -> None:
        self.asked = 0
        self._stays, self._most, self._each = stays, most, each
        self._known: dict[str, bool] = {}

    @property
    def spent(self) -> bool:
        return self.asked >= self._most

    async def holds(self, document: dict[str, Any]) -> bool:
        """Whether a document is a scenario with which the finding stays; False for one that can't be meant, and when the budget is spent."""
        try:
            text = dump_scenario(msgspec.convert(document, Scenario))
            scenario = parse_scenario(text, label="candidate")
        except (ScenarioError, msgspec.ValidationError):
            return False
        if text not in self._known:
            if self.spent:
                return False
            self.asked += 1
            self._known[text] = await self._stays(scenario)
            if self._each is not None:
                self._each(scenario, self._known[text])
        return self._known[text]


async def ddmin(items: Sequence[T], holds: Callable[[list[T]], Awaitable[bool]]) -> list[T]:
    """A subsequence for which `holds` and from which no single item can be left out; `items` itself must hold."""
    kept = list(items)
    parts = 1
    while kept:
        parts = min(parts, len(kept))
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if await holds(rest):
                kept = rest
                parts = max(parts - 1, 1)
                break
        else:
            if size == 1:
                return kept
            parts *= 2
    return kept


async def minimise(scenario: Scenario, budget: Budget) -> Scenario:
    """The smallest scenario found. The given one must have the finding; so has the one returned.

    Unless the budget was spent, no stream, capability, parameter or other list entry of it can be left out alone.
    """
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(scenario))
    while True:
        before = dump_scenario(msgspec.convert(document, Scenario))
        for way, value in _LESS.items():
            if _at(document, way) != value:
                document = await _instead(document, way, [value], budget)
        for way in list(_collections(document)):
            document = await _fewer(document, way, budget)
        for way, default in list(_departures(document)):
            document = await _instead(document, way, [default], budget)
        for way in list(_numbers(document)):
            document = await _smaller(document, way, budget)
        if budget.spent or dump_scenario(msgspec.convert(document, Scenario)) == before:
            return msgspec.convert(document, Scenario)


# -- one step


def _at(document: Any, way: Way) -> Any:
    for part in way:
        document = document[part]
    return document


def _with(document: Any, way: Way, value: Any) -> Any:
    """A copy of the document with another value in one place."""
    if not way:
        return value
    first, rest = way[0], way[1:]
    changed = _with(document[first], rest, value)
    if isinstance(document, dict):
        return document | {first: changed}
    return [changed if number == first else item for number, item in enumerate(document)]


async def _fewer(document: dict[str, Any], way: Way, budget: Budget) -> dict[str, Any]:
    try:
        value = _at(document, way)
    except (LookupError, TypeError):
        return document  # it went with something else
    is_table = isinstance(value, dict)
    items = list(value.items()) if is_table else list(value)

    def of(chosen: list[Any]) -> dict[str, Any]:
        changed: dict[str, Any] = _with(document, way, dict(chosen) if is_table else chosen)
        return changed

    return of(await ddmin(items, lambda chosen: budget.holds(of(chosen))))


async def _instead(document: dict[str, Any], way: Way, values: Sequence[Any], budget: Budget) -> dict[str, Any]:
    for value in values:
        candidate: dict[str, Any] = _with(document, way, value)
        if await budget.holds(candidate):
            return candidate
    return document


async def _smaller(document: dict[str, Any], way: Way, budget: Budget) -> dict[str, Any]:
    """The floor if that will do, else halves of the way to it."""
    floor = _FLOORS[str(way[-1])]
    value = _at(document, way)
    for step in range(_HALVINGS):
        tried = floor + (value - floor) * (1 - 0.5**step)
        tried = round(tried) if isinstance(value, int) else round(tried, 3)
        if tried >= value:
            break
        candidate = _with(document, way, tried)
        if await budget.holds(candidate):
            return dict(candidate)
    return document


# -- what there is in a document


def _walk(info: inspect.Type, value: Any, way: Way) -> Iterator[tuple[Way, inspect.Type, Any, Any]]:
    """Every place below a type: its way, its type, its value, and its default (UNSET where it has none)."""
    match info:
        case inspect.Metadata(type=inner):
            yield from _walk(inner, value, way)
        case inspect.UnionType(types=types):
            for kind in types:
                if not isinstance(kind, inspect.NoneType) and value is not None:
                    yield from _walk(kind, value, way)
        case inspect.StructType(fields=fields):
            for field in fields:
                here = (*way, field.encode_name)
                if here in _KEPT or field.encode_name not in value:
                    continue
                yield here, field.type, value[field.encode_name], _default(field)
                yield from _walk(field.type, value[field.encode_name], here)
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item) if isinstance(value, list):
            for number, entry in enumerate(value):
                yield from _walk(item, entry, (*way, number))


def _default(field: inspect.Field) -> Any:
    default = field.default if field.default is not msgspec.NODEFAULT else msgspec.UNSET
    if default is msgspec.UNSET and field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return default if default is msgspec.UNSET else msgspec.to_builtins(default)


def _places(document: dict[str, Any]) -> Iterator[tuple[Way, inspect.Type, Any, Any]]:
    yield from _walk(inspect.type_info(Scenario), document, ())


def _collections(document: dict[str, Any]) -> Iterator[Way]:
    """Lists and tables with free keys, the outer ones first: what holds most goes first."""
    found = [way for way, _, value, _ in _places(document) if isinstance(value, list) and value]
    found += [way for way, kind, value, _ in _places(document) if isinstance(kind, inspect.DictType) and value]
    yield from sorted(found, key=len)


def _departures(document: dict[str, Any]) -> Iterator[tuple[Way, Any]]:
    """Plain values that are not what they would be by default; numbers that are to get smaller come later."""
    for way, _, value, default in _places(document):
        if way[0] == "traffic" and len(way) > 1:  # the schema leaves it open there: it depends on the kind
            if way[-1] == "direction" and value == "both":
                yield way, "to-guest"
                yield way, "from-guest"
            if way[-1] in ("direction", "name", "kind"):
                continue
            default = default if default is not None else TRAFFIC_DEFAULTS[TrafficKind(_at(document, way[:-1])["kind"])].get(str(way[-1]))
        plain = not isinstance(value, list | dict) and way not in _LESS
        if plain and default is not msgspec.UNSET and value != default and way[-1] not in _FLOORS:
            yield way, default


def _numbers(document: dict[str, Any]) -> Iterator[Way]:
    for way, _, value, _ in _places(document):
        if way[-1] in _FLOORS and isinstance(value, int | float):
            yield way
