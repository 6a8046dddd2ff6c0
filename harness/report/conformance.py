"""What a run of the suite says of a QEMU, feature by feature, from pytest's JUnit file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
from tabulate import tabulate

from harness.errors import TestbedError

__all__ = ["Conformance", "Row", "State", "conformance", "conformance_table", "exit_code"]

_MODULE = re.compile(r"(?:^|\.)test_(\w+)$")
_BROKE = ("TestbedError", "DeadlineError", "ProcessError", "MigrationError", "UsageError", "CommandRefusedError", "BuildError")
"""Errors of the harness itself, by whose name the plugin's message begins."""
_PREFIX = re.compile(r"^(?:Skipped: )?")


class State(StrEnum):
    WORKS = "works"
    IN_PART = "works in part"
    BROKEN = "broken"
    NOT_JUDGED = "not judged"
    """The testbed broke, which says nothing of the QEMU."""
    SKIPPED = "skipped"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the suite. `why`: the first failures, or each reason why something was skipped."""

    name: str
    title: str
    state: State
    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    why: tuple[str, ...] = ()


class Conformance(msgspec.Struct, frozen=True, kw_only=True):
    """`features`: each feature of `switchover features`, and None or why this QEMU lacks it."""

    qemu: str
    destination: str
    kernel: str | None
    rows: tuple[Row, ...]
    features: dict[str, str | None]


def conformance(
    junit: Path, *, titles: Mapping[str, str], qemu: str, destination: str, kernel: str | None, features: Mapping[str, str | None]
) -> Conformance:
    """Gather a JUnit file by the modules of the suite, in the order of `titles`. `TestbedError` for a file that isn't one."""
    found: dict[str, list[tuple[str, str, str]]] = {name: [] for name in titles}
    try:
        cases = list(ET.parse(junit).getroot().iter("testcase"))
    except (OSError, ET.ParseError) as error:
        raise TestbedError(f"pytest left no result in {junit}: {error}") from error
    for case in cases:
        match = _MODULE.search(case.get("classname", ""))
        name = match.group(1).replace("_", "-") if match else "other"
        outcome, why = _outcome(case)
        found.setdefault(name, []).append((case.get("name", ""), outcome, why))
    rows = tuple(_row(name, titles.get(name, ""), tests) for name, tests in found.items() if tests)
    return Conformance(qemu=qemu, destination=destination, kernel=kernel, rows=rows, features=dict(features))


def _outcome(case: ET.Element) -> tuple[str, str]:
    for kind in ("error", "failure", "skipped"):
        if (found := case.find(kind)) is not None:
            words = _PREFIX.sub("", found.get("message") or (found.text or "").strip())
            line = next((each.strip() for each in words.splitlines() if each.strip()), "")
            if kind == "failure" and (line.partition(":")[0] in _BROKE or "the testbed broke" in (found.text or "") + _sections(case)):
                return "errors", line
            return {"error": "errors", "failure": "failed", "skipped": "skipped"}[kind], line
    return "passed", ""


def _sections(case: ET.Element) -> str:
    return "".join(part.text or "" for name in ("system-out", "system-err") for part in case.iter(name))


def _row(name: str, title: str, tests: Sequence[tuple[str, str, str]]) -> Row:
    counts = {kind: sum(outcome == kind for _, outcome, _ in tests) for kind in ("passed", "failed", "errors", "skipped")}
    if counts["failed"]:
        state = State.BROKEN
    elif counts["errors"]:
        state = State.NOT_JUDGED
    elif counts["skipped"]:
        state = State.IN_PART if counts["passed"] else State.SKIPPED
    else:
        state = State.WORKS
    worst = next((kind for kind in ("failed", "errors", "skipped") if counts[kind]), None)
    said = [why if kind == "skipped" else f"{test}: {why}" for test, kind, why in tests if kind == worst]
    return Row(name=name, title=title, state=state, why=tuple(dict.fromkeys(said))[:3], **counts)


def conformance_table(found: Conformance, *, form: str = "simple") -> str:
    """The parts of the suite, then the features that QEMU was asked about; `form` as in tabulate ("github" for Markdown)."""
    head = f"QEMU {found.qemu}" + (f" -> {found.destination}" if found.destination != found.qemu else "")
    if found.kernel:
        head += f", guest kernel {found.kernel}"
    rows = [[r.name, str(r.state), str(r.passed), str(r.failed), str(r.errors), str(r.skipped), "; ".join(r.why)] for r in found.rows]
    table = tabulate(rows, headers=["part", "", "passed", "failed", "errors", "skipped", "why"], tablefmt=form, disable_numparse=True)
    tested = {row.name for row in found.rows}
    others = [[name, "no" if why else "yes", why or ""] for name, why in found.features.items() if name not in tested]
    more = tabulate(others, headers=["further features", "supported", "why not"], tablefmt=form, disable_numparse=True)
    return "\n\n".join([head, table, *([more] if others else [])])


def exit_code(found: Conformance) -> int:
    """1: something that this QEMU has is broken; 2: the testbed broke; 3: everything was skipped; 0: what it has works."""
    states = {row.state for row in found.rows}
    if State.BROKEN in states:
        return 1
    if State.NOT_JUDGED in states:
        return 2
    return 0 if states & {State.WORKS, State.IN_PART} else 3
