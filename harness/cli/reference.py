"""`switchover reference`: the manual's reference part, made from the code, in Markdown."""

from __future__ import annotations

import inspect as pyinspect
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from msgspec import inspect

from harness.errors import UsageError

__all__ = ["reference_text", "register"]

_PARTS = ("commands", "scenario", "result", "features", "mechanisms")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def reference(
        part: Annotated[str | None, typer.Argument(help=f"One of {', '.join(_PARTS)}; all of them without.", metavar="[PART]")] = None,
    ) -> None:
        """The reference, made from the code: every command and option, scenario key, result field, feature and mechanism, as Markdown."""
        print(reference_text(app, part))


def reference_text(app: typer.Typer, part: str | None = None) -> str:
    """One part, or all. `UsageError` for a part that isn't one."""
    if part is not None and part not in _PARTS:
        raise UsageError(f"the reference has no part {part!r}", hint=f"one of {', '.join(_PARTS)}")
    from harness.model.result import RunResult
    from harness.model.scenario import Scenario

    makers: dict[str, Any] = {
        "commands": lambda: _commands(app), "scenario": lambda: _record("Scenario", Scenario), "result": lambda: _record("Result", RunResult),
        "features": _features, "mechanisms": _mechanisms,
    }  # fmt: skip
    return "\n\n".join("\n".join(makers[name]()) for name in _PARTS if part in (None, name))


def _commands(app: typer.Typer) -> Iterator[str]:
    yield "# Commands"
    yield from _command(typer.main.get_command(app), "switchover")


def _command(command: Any, path: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, each in sorted(command.commands.items()):
            if not each.hidden:
                yield from _command(each, f"{path} {name}")
        return
    arguments = " ".join(p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument")
    yield f"\n## `{path}{' ' + arguments if arguments else ''}`\n\n{(command.help or '').strip()}\n"
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    if options:
        yield "| option | meaning | unless given |\n|---|---|---|"
    for each in options:
        usual = each.default
        shown = "" if usual is None or usual is False or usual in ((), []) or callable(usual) else f"`{usual}`"
        yield f"| `{', '.join([*each.opts, *each.secondary_opts])}` | {_cell(each.help or '')} | {shown} |"


def _record(title: str, kind: type[Any]) -> Iterator[str]:
    """A struct, and each struct within it, once."""
    yield f"# {title}"
    todo: list[tuple[str, type[Any]]] = [("", kind)]
    seen: set[type[Any]] = set()
    while todo:
        where, struct = todo.pop(0)
        if struct in seen:
            continue
        seen.add(struct)
        told = inspect.type_info(struct)
        assert isinstance(told, inspect.StructType)
        yield f"\n## {where or title.lower()}\n\n{pyinspect.cleandoc(struct.__doc__ or '')}\n"
        yield "| key | type | unless given |\n|---|---|---|"
        for field in told.fields:
            yield f"| `{field.encode_name}` | {_cell(_type(field.type))} | {_default(field)} |"
            inner = f"{where}.{field.encode_name}" if where else field.encode_name
            todo += [(inner, each) for each in _structs(field.type)]


def _type(found: inspect.Type) -> str:
    match found:
        case inspect.Metadata():
            return _type(found.type)
        case inspect.StructType():
            return "table, below"
        case inspect.EnumType():
            return "one of " + ", ".join(f"`{each.value}`" for each in found.cls)
        case inspect.LiteralType():
            return "one of " + ", ".join(f"`{each}`" for each in found.values)
        case inspect.UnionType():
            return " or ".join(_type(each) for each in found.types)
        case inspect.VarTupleType() | inspect.ListType():
            return f"list of {_type(found.item_type)}"
        case inspect.TupleType():
            return f"list of {', '.join(_type(each) for each in found.item_types)}"
        case inspect.DictType():
            return f"table of {_type(found.key_type)} to {_type(found.value_type)}"
        case inspect.NoneType():
            return "nothing"
    return type(found).__name__.removesuffix("Type").lower().replace("str", "string").replace("int", "integer").replace("bool", "true or false")


def _structs(found: inspect.Type) -> list[type[Any]]:
    match found:
        case inspect.Metadata():
            return _structs(found.type)
        case inspect.StructType():
            return [found.cls]
        case inspect.UnionType():
            return [each for one in found.types for each in _structs(one)]
        case inspect.VarTupleType() | inspect.ListType():
            return _structs(found.item_type)
        case inspect.DictType():
            return _structs(found.value_type)
    return []


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        made = field.default_factory()
        return "" if isinstance(made, msgspec.Struct) or not made else f"`{made}`"
    plain = msgspec.to_builtins(field.default)
    return "" if plain is None or plain in ([], (), {}, "") or isinstance(field.default, msgspec.Struct) else f"`{plain}`"


def _features() -> Iterator[str]:
    from harness.vm.discovery import FEATURES

    yield "# Features\n\nA QEMU has one when it has at least one of every group.\n\n| feature | what is looked for |\n|---|---|"
    for name, groups in FEATURES.items():
        yield f"| `{name}` | {'; and '.join(' or '.join(f'`{each}`' for each in group) for group in groups)} |"


def _mechanisms() -> Iterator[str]:
    from harness.migrate.mechanisms import MECHANISMS

    yield "# Mechanisms\n\n| mechanism | what it does | needs | modes |\n|---|---|---|---|"
    for name, kind in MECHANISMS.items():
        first = pyinspect.cleandoc(sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]
        said = first.removeprefix(f"{name}: ")
        needs = ", ".join(f"`{each}`" for each in (*kind.features, *kind.capabilities))
        yield f"| `{name}` | {_cell(said)} | {needs} | {', '.join(sorted(kind.modes))} |"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
