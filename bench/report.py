"""A report of 20 runs: how long it takes to write, how big it is, and how long a headless Chromium takes to show it.

    python -m bench.report [RUN...]     # 20 of these runs, again and again if they are fewer; small made-up ones without
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "tests" / "browser")]

from bundle_factory import make_run
from devtools import chromium, find_chromium

from harness.cli.report_app import html_report

RUNS, MOST_BYTES, MOST_MS = 20, 5_000_000, 2000


def main() -> int:
    given = [Path(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for number in range(RUNS):
            if given:
                target = Path(folder) / f"{given[number % len(given)].name}-{number:02d}"
                shutil.copytree(given[number % len(given)], target)
                runs.append(target)
            else:
                runs.append(make_run(Path(folder), run_id=f"20260102T0304{number:02d}Z-demo-abcd{number:02d}").path)
        output = Path(folder) / "report.html"
        began = time.perf_counter()
        html_report(runs, output=output)
        print(f"{RUNS} runs: written in {time.perf_counter() - began:.1f} s, {output.stat().st_size / 1e6:.2f} MB (bar: {MOST_BYTES / 1e6:g})")
        program = find_chromium()
        if program is None:
            print("Chromium is not installed: `make browser` brings it")
            return int(output.stat().st_size >= MOST_BYTES)
        with chromium(program) as page:
            page.open(output)
            took = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventStart")
            drawn = "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.getEntriesByType('paint')[0]?.startTime ?? 0), 50)))"
            painted = page.evaluate(drawn)
        print(f"first paint after {painted:.0f} ms, loaded after {took:.0f} ms (bar: {MOST_MS}); console: {page.console or 'empty'}; requests: {len(page.requests)}")
        return int(took >= MOST_MS or output.stat().st_size >= MOST_BYTES or bool(page.console) or len(page.requests) != 1)


if __name__ == "__main__":
    sys.exit(main())
