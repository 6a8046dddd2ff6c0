"""The shape of a scenario and of a result: their JSON Schemas, and a check that names every departure from a type at once.

msgspec stops at the first thing that is wrong and knows no mend; the check here walks the same types, so the two agree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from harness.model.result import RunResult
from harness.model.scenario import Scenario

__all__ = ["NO_VALUE", "Key", "Problem", "did_you_mean", "nearest", "schemas", "shape_problems"]

Key = tuple[str | int, ...]
"""Where a value stands: names of keys, and numbers of list entries."""

NO_VALUE: Any = msgspec.UNSET

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: where, what and how to mend it. `value` is NO_VALUE where none was written."""

    key: Key
    wrong: str
    mend: str | None = None
    value: Any = NO_VALUE


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas (draft 2020-12) of `scenario` and `result`, as JSON values."""
    written = {
        name: {"$schema": _DIALECT, "title": name, **msgspec.json.schema(kind)}
        for name, kind in (("scenario", Scenario), ("result", RunResult))
    }
    return msgspec.json.decode(msgspec.json.encode(written), type=dict[str, dict[str, Any]])


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word that `word` resembles most, if it resembles one at all; case, hyphens and underscores don't count."""
    plain = {name.lower().replace("_", "-"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("_", "-"), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A mend: the nearest of the known words, else all of them."""
    words = list(known)
    near = nearest(word, words)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(words)}"


def shape_problems(value: object, kind: type) -> list[Problem]:
    """All departures of plain TOML or JSON values from a struct type. Without any, `msgspec.convert` accepts the value."""
    return list(_check(inspect.type_info(kind), value, ()))


def _check(info: inspect.Type, value: Any, key: Key) -> Iterator[Problem]:
    yield from _CHECKS[type(info)](info, value, key)


def _struct(info: inspect.StructType, value: Any, key: Key) -> Iterator[Problem]:
    if not isinstance(value, dict):
        name = _section_name(key)
        many = isinstance(key[-1], int) or isinstance(value, list)
        yield Problem(key, "must be a table", f"begin it with {name}" if many else f"write its keys below {name}", value)
        return
    fields = {field.encode_name: field for field in info.fields}
    for name, content in value.items():
        if name in fields:
            yield from _check(fields[name].type, content, (*key, name))
        else:
            yield Problem((*key, name), "there is no such key", _near_key(name, fields, key), content)
    for name, field in fields.items():
        if field.required and name not in value:
            yield Problem((*key, name), "is missing", f"write {name} = ...")


def _near_key(name: str, fields: Iterable[str], key: Key) -> str:
    """The nearest key of this table; else the table to which the key belongs; else what there is."""
    known = list(fields)
    if near := nearest(name, known):
        return f"did you mean {near!r}?"
    homes = [home for home in _homes(inspect.type_info(Scenario), name) if home != key]
    if homes:
        return " or ".join(f"it belongs to {_section_name(home)}" if home else "it belongs to the top" for home in homes)
    return f"known: {', '.join(known)}"


def _homes(info: inspect.Type, name: str, key: Key = ()) -> Iterator[Key]:
    """The tables in which a scenario may have a key of that name."""
    if isinstance(info, inspect.VarTupleType):
        yield from _homes(info.item_type, name, (*key, 0))
    if isinstance(info, inspect.StructType):
        for field in info.fields:
            if field.encode_name == name:
                yield key
            yield from _homes(field.type, name, (*key, field.encode_name))


def _section_name(key: Key) -> str:
    name = ".".join(part for part in key if isinstance(part, str))
    return f"[[{name}]]" if isinstance(key[-1], int) else f"[{name}]"


def _list(info: inspect.VarTupleType, value: Any, key: Key) -> Iterator[Problem]:
    tables = isinstance(info.item_type, inspect.StructType)
    if not isinstance(value, list):
        mend = f"begin each with {_section_name((*key, 0))}" if tables else "write [...], even for a single one"
        yield Problem(key, "must be a list of tables" if tables else "must be a list", mend, value)
        return
    for number, item in enumerate(value):
        yield from _check(info.item_type, item, (*key, number))


def _dict(info: inspect.DictType, value: Any, key: Key) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(key, "must be a table", f"write its keys below {_section_name(key)}", value)
        return
    for name, content in value.items():
        yield from _check(info.value_type, content, (*key, name))


def _text(info: inspect.StrType, value: Any, key: Key, *, meant: str | None = None) -> Iterator[Problem]:
    if not isinstance(value, str):
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        mend = f'write it in quotes: "{value}"' if plain and not meant else "write it in quotes"
        yield Problem(key, f"must be a string: {meant}" if meant else "must be a string", mend, value)
    elif info.pattern is not None and re.fullmatch(info.pattern.removesuffix("$"), value) is None:
        yield Problem(key, f"must be {meant or info.pattern}", None, value)


def _number(info: inspect.IntType | inspect.FloatType, value: Any, key: Key) -> Iterator[Problem]:
    whole = isinstance(info, inspect.IntType)
    wanted = "a whole number" if whole else "a number"
    bounds = _bounds(info)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        quoted = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?", value)
        yield Problem(key, f"must be {wanted}", "write it without quotes" if quoted else bounds and f"it is {bounds}", value)
    elif not _is_finite(value) or not _within(info, value):
        yield Problem(key, f"must be {bounds or 'a finite number'}", None, value)


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _within(info: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        (info.ge is None or value >= info.ge) and (info.gt is None or value > info.gt)
        and (info.le is None or value <= info.le) and (info.lt is None or value < info.lt)
    )  # fmt: skip


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    named = (("at least", info.ge), ("more than", info.gt), ("at most", info.le), ("less than", info.lt))
    return " and ".join(f"{word} {bound:.15g}" for word, bound in named if bound is not None)


def _boolean(_info: inspect.BoolType, value: Any, key: Key) -> Iterator[Problem]:
    if not isinstance(value, bool):
        yield Problem(key, "must be true or false", None, value)


def _words(info: inspect.EnumType | inspect.LiteralType, value: Any, key: Key) -> Iterator[Problem]:
    known = info.values if isinstance(info, inspect.LiteralType) else [member.value for member in info.cls]
    if type(value) is not type(known[0]) or value not in known:
        wanted = " or ".join(f'"{word}"' if isinstance(word, str) else str(word) for word in known)
        near = nearest(value, map(str, known)) if isinstance(value, str) else None
        yield Problem(key, f"must be {wanted}", f"did you mean {near!r}?" if near else None, value)


def _union(info: inspect.UnionType, value: Any, key: Key) -> Iterator[Problem]:
    """An optional value, or plain values of several types."""
    kinds = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
    if value is None and len(kinds) < len(info.types):
        return
    if len(kinds) == 1:
        yield from _check(kinds[0], value, key)
    elif all(any(_check(kind, value, key)) for kind in kinds):
        names = dict.fromkeys(_KIND_NAMES[type(kind)] for kind in kinds)
        yield Problem(key, f"must be {' or '.join(names)}", None, value)


def _anything(_info: inspect.AnyType, value: Any, key: Key) -> Iterator[Problem]:
    """Whatever JSON can say too, since it goes to QMP."""
    if isinstance(value, dict):
        for name, content in value.items():
            yield from _anything(_info, content, (*key, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _anything(_info, item, (*key, number))
    elif not isinstance(value, str | int | float) or not _is_finite(value):
        yield Problem(key, "must be a finite number, a string, true, false, a list or a table", None, value)


def _described(info: inspect.Metadata, value: Any, key: Key) -> Iterator[Problem]:
    if isinstance(info.type, inspect.StrType):
        yield from _text(info.type, value, key, meant=(info.extra_json_schema or {}).get("description"))
    else:
        yield from _check(info.type, value, key)


_CHECKS: dict[type, Callable[[Any, Any, Key], Iterator[Problem]]] = {
    inspect.AnyType: _anything,
    inspect.BoolType: _boolean,
    inspect.DictType: _dict,
    inspect.EnumType: _words,
    inspect.FloatType: _number,
    inspect.IntType: _number,
    inspect.LiteralType: _words,
    inspect.Metadata: _described,
    inspect.StrType: _text,
    inspect.StructType: _struct,
    inspect.UnionType: _union,
    inspect.VarTupleType: _list,
}

_KIND_NAMES: dict[type, str] = {
    inspect.BoolType: "true or false",
    inspect.FloatType: "a finite number",
    inspect.IntType: "a finite number",
    inspect.StrType: "a string",
}
