"""``switchover features``: what a QEMU binary can do."""

from __future__ import annotations

import asyncio

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.builds import resolve_qemu
from harness.cache import cache_dir
from harness.vm.discovery import FEATURES, Features, discover

__all__ = ["features", "print_features"]


def features(*, qemu: str, json: bool) -> int:
    """Print what `qemu` (a name of ``qemu list``, or a path) can do; 0.

    With `json`, one object on standard output: every list of `Features`, and ``features`` with each of ours and null or
    the reason why it is missing. Raises what `resolve_qemu` and `discover` raise.
    """
    cache = cache_dir()
    found = asyncio.run(discover(resolve_qemu(qemu, cache), cache=cache))
    if json:
        answer = {"features": {name: _reason(found, name) for name in FEATURES}, **msgspec.to_builtins(found)}
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        print_features(found, console=Console())
    return 0


def _reason(found: Features, feature: str) -> str | None:
    return next(iter(found.lacking([feature])), None)


def _lists(found: Features) -> dict[str, str]:
    """What fits on a page; the long lists only as their length."""
    aliases = [
        f"{machine.alias} = {machine.name}{' (default)' if machine.default else ''}" for machine in found.machines if machine.alias
    ]
    values = [f"{name}: {' '.join(words)}" for name, words in found.parameter_values.items()]
    lists = {
        "capabilities": " ".join(found.capabilities),
        "parameters": " ".join(found.parameters),
        "values": "; ".join(values),
        "tap options": " ".join(found.netdev_options.get("tap", ())),
        "netdevs": " ".join(found.netdev_options),
        "filters": "; ".join(f"{kind}: {' '.join(names)}" for kind, names in found.filter_properties.items()),
        "machines": "; ".join(aliases),
    }
    lengths = {
        "QMP commands": len(found.commands), "QMP events": len(found.events), "trace events": len(found.trace_events),
        "machine types": len(found.machines), "migration properties": len(found.migration_properties),
        **{f"{device} properties": len(names) for device, names in found.device_properties.items()},
    }  # fmt: skip
    counts = ", ".join(f"{count} {what}" for what, count in lengths.items())
    return {**{title: words or "none" for title, words in lists.items()}, "in --json": counts}


def print_features(found: Features, *, console: Console) -> None:
    """Our features first, with the reason for each that is missing, then the lists behind them."""
    package = f", {found.package}" if found.package else ""
    head = f"{found}{package}, build {found.build_id}, KVM {'' if found.kvm else 'not '}compiled in"
    reasons = {name: _reason(found, name) for name in FEATURES}
    if not console.is_terminal:
        print(head)
        for name, reason in reasons.items():
            print(f"{'no' if reason else 'yes':<4}{name:<25}{_short(reason)}".rstrip())
        for title, words in _lists(found).items():
            print(f"{title}: {words}")
        return
    console.print(Text(head, style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, reason in reasons.items():
        mark = Text("no", style="yellow") if reason else Text("yes", style="green")
        table.add_row(mark, name, Text(_short(reason)))
    console.print(table)
    details = Table(box=None, pad_edge=False, show_header=False)
    details.add_column(style="bold", no_wrap=True)
    details.add_column(overflow="fold")
    for title, words in _lists(found).items():
        details.add_row(title, Text(words))
    console.print(details)


def _short(reason: str | None) -> str:
    """A reason without the QEMU and the feature, which stand beside it."""
    return reason.split(": ", 1)[1] if reason else ""
