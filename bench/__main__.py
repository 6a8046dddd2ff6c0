"""Run the benchmarks named on the command line, or all."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

BENCHMARKS = ("capture", "analysis", "index", "report")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all if none is given"
    )
    names = parser.parse_args().names or BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {unknown[0]}")
    failed = 0
    for name in names:
        command = [sys.executable, "-m", f"bench.{name}"]
        if name == "capture":
            # Interfaces of its own: nothing of this host is touched, and no root is needed where user namespaces are
            # allowed.
            command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), *command]
        failed |= subprocess.run(command).returncode
    return 1 if failed else 0


sys.exit(main())
