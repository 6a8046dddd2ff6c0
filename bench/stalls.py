"""Stalls of TCP connections by `stop` and `cont`: what each estimator makes of them beside the STOP and RESUME events.

    switchover run tcp-known-outage --repeat 10 --results FOLDER
    python -m bench.stalls FOLDER...

Every run with a known outage in these folders is analysed again from its captures. Errors are in milliseconds, too long is positive.
The truth is STOP to RESUME. QEMU sends STOP after it has stopped; where its run state's change is traced, "STOP late" says how long after,
and "traced" counts the errors against that: from the run state's change to RESUME.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from harness.model.result import Outcome
from harness.model.scenario import MigrationMode
from harness.model.units import NS_PER_MS
from harness.store.analyze import analyze
from harness.store.rundir import RunDirectory

BAR_MS = 2.0
ESTIMATORS = ("longest_stall_ms", "silent_ms", "clock_lost_ms")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stalls")
    parser.add_argument("results", nargs="+", type=Path, help="folders with run directories")
    folders = parser.parse_args().results
    rows: list[list[str]] = []
    errors: dict[tuple[str, str], list[float]] = {(name, truth): [] for name in ESTIMATORS for truth in ("STOP to RESUME", "traced")}
    connections = 0
    for path in sorted({path.parent for folder in folders for path in folder.glob("**/run.json")}):
        run = RunDirectory.open(path)
        if run.facts().scenario.migration.mode is not MigrationMode.STOP_CONT:
            continue
        result = analyze(run)
        truth = result.downtime.compute_ms.value
        if truth is None or result.outcome is not Outcome.COMPLETED:
            print(f"{path.name} is left out: {result.outcome}; {'; '.join(result.notes)}")
            continue
        traced = {mark.name: mark.t_ns for mark in result.marks if mark.evidence in ("trace runstate_set", "RESUME")}
        late = None if len(traced) < 2 else (traced["running"] - traced["stopped"]) / NS_PER_MS - truth
        for connection in result.tcp:
            connections += 1
            row = [path.name[-6:], connection.name, f"{truth:.3f}", "-" if late is None else f"{late:.3f}"]
            for name in ESTIMATORS:
                figure = getattr(connection, name)
                if figure.value is None:
                    row += ["-", "-"]
                    continue
                error = figure.value - truth
                errors[name, "STOP to RESUME"].append(error)
                if late is not None:
                    errors[name, "traced"].append(error - late)
                row += [f"{error:+.3f}", f"{figure.resolution_ms:.2f}"]
            rows.append(row)
    if not rows:
        print("no run with a known outage and a TCP connection is among them", file=sys.stderr)
        return 4
    names = [word for name in ESTIMATORS for word in (name.removesuffix("_ms"), "resolution")]
    heads = ["run", "connection", "truth ms", "STOP late", *names]
    print(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
    for (name, truth_of), found in errors.items():
        found.sort(key=abs)
        good = sum(abs(error) <= BAR_MS for error in found)
        worst = f", worst {found[-1]:+.3f} ms" if found else ""
        print(f"{name.removesuffix('_ms')}, {truth_of}: {good} of {connections} within {BAR_MS:g} ms{worst}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
