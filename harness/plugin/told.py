"""What a test tells: figures for JUnit, and for a failed one the ledger, where each lost packet was, and where the raw data lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.evidence import Fate
from harness.analysis.metrics import readings
from harness.analysis.phases import Phase
from harness.errors import SwitchoverError
from harness.model.result import RunResult
from harness.report.story import story_text
from harness.report.table import run_table
from harness.store.analyze import Analysis, analyze_run
from harness.store.rundir import RunDirectory

__all__ = ["figures_of", "told"]

_STORIES = 3


def figures_of(result: RunResult, *, number: int) -> dict[str, Any]:
    """Every reading of one recording, and what it was made with; `number` tells a test's recordings apart from the second on."""
    prefix = "" if number == 1 else f"{number}."
    source, destination = result.qemu.source, result.qemu.destination
    found: dict[str, Any] = {
        "run": result.run_id, "outcome": str(result.outcome), "accelerator": result.accelerator, "kernel": result.guest.kernel,
        "qemu": source.version if source == destination else f"{source.version} -> {destination.version}", "mechanism": result.mechanism,
    }  # fmt: skip
    found |= {name: reading.value for name, reading in readings(result).items() if reading.value is not None}
    for stream in result.streams:
        for name in ("sent", "delivered", "passed"):
            found[f"streams.{stream.name}.{name}"] = getattr(stream, name)
    return {prefix + name: value for name, value in found.items()}


def told(directories: Sequence[Path]) -> str:
    """For a test that failed: each recording's table, the phase in which each lost packet was sent, and a few stories in full."""
    return "\n\n".join(_recording(path) for path in directories)


def _recording(path: Path) -> str:
    try:
        analysis = analyze_run(RunDirectory.open(path))
    except (SwitchoverError, OSError) as error:
        return f"{path}: {error}"
    lines = [run_table(analysis.result), "", f"raw data: {path}"]
    for name, ledger in analysis.ledgers.items():
        lost = np.flatnonzero(ledger.fate != Fate.DELIVERED)
        if not lost.size:
            continue
        lines.append(f"lost of {name}: " + "; ".join(_by_phase(analysis, name, lost)))
        for at in lost[:_STORIES].tolist():
            lines.append(story_text(ledger.explain(int(ledger.seq[at])), start_ns=_start(analysis), phases=analysis.result.phases))
        if lost.size > _STORIES:
            lines.append(f"and {lost.size - _STORIES} more: switchover why {path} {name} SEQ")
    return "\n".join(lines)


def _by_phase(analysis: Analysis, name: str, lost: np.ndarray) -> list[str]:
    """Runs of sequence numbers by the phase in which they were sent."""
    ledger = analysis.ledgers[name]
    found: dict[str, list[int]] = {}
    for at in lost.tolist():
        sent = int(ledger.host_sent_ns[at])
        phase = next((str(p.name) for p in analysis.phases if _within(p, sent)), "unknown")
        found.setdefault(phase, []).append(int(ledger.seq[at]))
    return [f"{len(numbers)} sent in {phase} ({_ranges(numbers)})" for phase, numbers in found.items()]


def _within(phase: Phase, t_ns: int) -> bool:
    return phase.start_ns <= t_ns < phase.end_ns


def _ranges(numbers: Sequence[int], *, most: int = 6) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [f"{first}" if first == last else f"{first}..{last}" for first, last in spans[:most]]
    return ", ".join(words) + (", ..." if len(spans) > most else "")


def _start(analysis: Analysis) -> int:
    return analysis.result.phases[0].start_ns if analysis.result.phases else 0
