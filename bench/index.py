"""10,000 results: listed, filtered and compared through the index, against reading every result.json."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from harness.analysis.significance import Kind, Metric, Sample, judge
from harness.model.example import make_result
from harness.model.result import RunResult
from harness.store.index import Index

RUNS = 10_000


def fill(results: Path) -> None:
    """Run directories of eight scenarios over a hundred nights."""
    random = np.random.default_rng(1)
    for number in range(RUNS):
        day, scenario = number // 100, f"udp-{number % 8}"
        stamp = f"2026{day // 28 + 1:02d}{day % 28 + 1:02d}T{number % 100 // 5:02d}{number % 5 * 10:02d}00Z"
        run = results / f"{stamp}-{scenario}-{number:06x}"
        run.mkdir()
        found = make_result(scenario, run_id=run.name, lost=int(random.poisson(200)), compute_ms=float(random.normal(150, 5)))
        (run / "result.json").write_bytes(msgspec.json.encode(found))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        fill(results)
        began = time.perf_counter()
        with Index(results) as index:
            print(f"made anew from {index.sync()} results: {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        with Index(results) as index:
            index.sync()
            found = index.entries(where={"scenario": "udp-[01]"})
            every = index.entries()
            values = {name: index.values("compute_ms", where={"scenario": name}) for name in ("udp-0", "udp-1")}
        metric = Metric(name="compute_ms", unit="ms", kind=Kind.TIME, resolution=0.5)
        series = [tuple(value for _, value in each if value is not None) for each in values.values()]
        judge([(metric, Sample(a=series[0], b=series[1], paired=False))])
        indexed_s = time.perf_counter() - began
        began = time.perf_counter()
        read = [msgspec.json.decode((run / "result.json").read_bytes(), type=RunResult) for run in results.glob("*-udp-*")]
        read_s = time.perf_counter() - began
    print(f"index: {len(every)} listed, {len(found)} filtered, 2 x {len(series[0])} compared: {indexed_s:.2f} s")
    print(f"reading {len(read)} results: {read_s:.2f} s, {read_s / indexed_s:.1f} times as long")
    return 0 if indexed_s < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
