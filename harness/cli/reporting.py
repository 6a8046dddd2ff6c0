"""`switchover report`: a run's text, with what a bundle says of itself where it is one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from harness.bundle import Finding, Manifest, open_any
from harness.errors import SwitchoverError, TestbedError
from harness.report.text import run_report
from harness.store.analyze import analyze_run

__all__ = ["text_of", "written"]


def text_of(path: Path) -> str:
    """The report of a run directory or a bundle. The result is worked out anew where the raw data is there, else it is the recorded one."""
    notes: list[str] = []
    with open_any(path) as (run, bundle):
        try:
            result = analyze_run(run).result
        except SwitchoverError as error:
            if bundle is None or not bundle.manifest.left_out:
                raise
            result = run.result()
            notes.append(f"As it was recorded, not worked out anew: {' '.join(error.message.replace(str(run.path), '').split())}")
        events = run.events() if (run.path / "events.jsonl").is_file() else []
        parts = [run_report(result, events)]
        if bundle is not None:
            parts.append(_bundle(path.name, bundle.manifest, bundle.finding))
    return "\n\n".join([*parts, *notes])


def _bundle(name: str, manifest: Manifest, finding: Finding) -> str:
    lines = ["Bundle", "------", *(f"finding: {line}" for line in finding.lines())]
    lines.append(f"seen in {manifest.seen_times} of {manifest.seen_runs} runs, switchover {manifest.switchover}")
    if manifest.minimised_from:
        lines.append(f"made smaller from run {manifest.minimised_from}")
    for side, recipe in (("source", manifest.qemu.source), ("destination", manifest.qemu.destination)):
        lines.append(f"{side}'s QEMU: {recipe.version}, {recipe.package or recipe.source or recipe.origin or recipe.kind}")
        lines += [f"  + {patch.label}" for patch in recipe.patches]
    if manifest.scrubbed:
        lines.append("scrubbed: " + ", ".join(f"{count} {kind}" for kind, count in manifest.scrubbed.items()))
    lines += [f"left out: {each.name} ({each.size:,} bytes): {each.reason}" for each in manifest.left_out]
    lines += [f"to see it again: switchover replay {name}"]
    return "\n".join(lines)


def written(content: str | bytes, target: Path) -> None:
    """Write a file; it appears whole or not at all."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise TestbedError(f"{target} can't be written: {error.strerror}") from error
