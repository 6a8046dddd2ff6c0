"""The summary that one pastes into a mail: plain text, 72 columns, complete without the bundle."""

from __future__ import annotations

import textwrap

import msgspec
from tabulate import tabulate

from harness.builds import QemuRecipe
from harness.bundle.finding import class_text
from harness.bundle.format import SUFFIX
from harness.bundle.write import Made
from harness.model.result import Figure, RunResult

__all__ = ["WIDTH", "mail_text"]

WIDTH = 72


def _wrap(text: str, *, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest, break_long_words=True, break_on_hyphens=False
    )


def mail_text(made: Made) -> str:
    """What was run, on what, what happened, and how to see it again."""
    result, manifest = made.observation.result, made.manifest
    scenario = result.scenario
    parts = [
        "\n".join(_wrap(line, first="Finding: " if number == 0 else " " * 9, rest=" " * 9) for number, line in enumerate(manifest.finding)),
        _setting(made),
        _streams(result),
        _downtimes(result),
    ]
    if result.expectations:
        parts.append("\n".join(["Not as expected:", *(_wrap(line, first="  ") for line in result.expectations)]))
    if result.notes:
        parts.append("\n".join(["Notes:", *(_wrap(note, first="  ") for note in result.notes)]))
    how = [f"  switchover replay {manifest.run_id}{SUFFIX}"]
    if manifest.seen_runs > 1:
        how.insert(0, f"Seen in {manifest.seen_times} of {manifest.seen_runs} runs here. To see it again:")
    else:
        how.insert(0, "To see it again:")
    if len(how[1]) > WIDTH:
        how[1] = f"  switchover replay BUNDLE      (run {manifest.run_id})"[:WIDTH]
    parts.append("\n".join(how))
    head = f"{scenario.name}: {result.verdict} ({result.outcome})"
    return "\n\n".join(part for part in [_wrap(head), *parts] if part) + "\n"


def _setting(made: Made) -> str:
    result, manifest = made.observation.result, made.manifest
    scenario, host = result.scenario, result.host
    migration = scenario.migration
    how = f"{migration.mode}, mechanism {result.mechanism}"
    if migration.hold_ms:
        how += f", held for {migration.hold_ms:g} ms"
    if migration.capabilities:
        how += f", {', '.join(migration.capabilities)}"
    rows = [("Migration", how)]
    source, destination = manifest.qemu.source, manifest.qemu.destination
    if source == destination:
        rows.append(("QEMU", _qemu(source)))
    else:
        rows += [("Source QEMU", _qemu(source)), ("Dest. QEMU", _qemu(destination))]
    rows += [
        ("Guest", f"Linux {result.guest.kernel}, {scenario.guest.machine}, {scenario.guest.memory}, {scenario.guest.vcpus} vCPU"),
        ("Host", f"{host.get('distribution', '?')}, Linux {host.get('kernel', '?')}, {host.get('cores_usable', '?')} cores, {result.accelerator}"),
        ("Testbed", f"switchover {manifest.switchover}, run {manifest.run_id}"),
    ]
    return "\n".join(_wrap(text, first=f"{name + ':':<13}", rest=" " * 13) for name, text in rows)


def _qemu(recipe: QemuRecipe) -> str:
    text = f"{recipe.version} ({recipe.package or recipe.origin or recipe.kind})"
    if recipe.patches:
        series = list(dict.fromkeys(patch.label.partition("/")[0] for patch in recipe.patches))
        text += f" + {', '.join(series)} ({len(recipe.patches)} patches)"
    return text


def _streams(result: RunResult) -> str:
    """A row a stream, and below it where each stream's lost packets ended."""
    if not result.streams:
        return ""
    rows = [
        [
            _shortened(stream.name), str(stream.sent), str(stream.lost), str(stream.passed), str(stream.duplicated), str(stream.reordered),
            "-" if stream.longest_gap_ms is None else f"{stream.longest_gap_ms:.1f}",
        ]
        for stream in result.streams
    ]  # fmt: skip
    headers = ["stream", "sent", "lost", "passed", "dup", "reord", "gap ms"]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * 6])
    lines = [line.rstrip() for line in str(table).splitlines()]
    for stream in result.streams:
        classes = msgspec.structs.asdict(stream.ledger)
        where = [f"{count} {class_text(name)}" for name, count in classes.items() if name != "delivered" and count]
        if where:
            lines.append(_wrap(f"{stream.name} lost: {', '.join(where)}", first="  ", rest="    "))
    return "\n".join(lines)


def _shortened(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _downtimes(result: RunResult) -> str:
    def shown(figure: Figure) -> str:
        return "not measured" if figure.value is None else f"{figure.value:.1f} ms (+/- {figure.resolution_ms:g})"

    downtime = result.downtime
    if downtime.compute_ms.value is None and downtime.network_ms.value is None:
        return ""
    named = {"compute": downtime.compute_ms, "network": downtime.network_ms, "reported by QEMU": downtime.reported_ms}
    return _wrap("Downtime: " + ", ".join(f"{name} {shown(figure)}" for name, figure in named.items()), rest="  ")
