"""`--host-kernel`: the same command in a first-level guest, and here what it left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cache import cache_dir
from harness.cli.waiting import run_to_end
from harness.errors import TestbedError
from harness.model.scenario import Scenario

__all__ = ["HostKernel", "run_inside", "the_only"]

HostKernel = Annotated[
    str | None, typer.Option("--host-kernel", help='The whole lab in a guest with this host kernel: a bzImage, or "debian".', metavar="KERNEL")
]


def run_inside(
    words: Sequence[str], *, scenarios: Sequence[Scenario], host_kernel: str, results: Path, progress: Callable[[str], None],
    settings: Sequence[str] | None = None, into: Path | None = None,
) -> tuple[int, list[Path]]:
    """Run `switchover WORDS` with its `--set SETTINGS` inside: its exit status, and the folders that it left in `results`.

    `into`: the folder, where it goes on with one that is there. `TestbedError` where it left nothing; what it said stands in the
    console that the error names.
    """
    from harness.nested import run_nested

    arguments = [*words, *(word for each in settings or () for word in ("--set", each))]
    status, folders = run_to_end(
        run_nested(arguments, scenarios=scenarios, host_kernel=host_kernel, results=results, cache=cache_dir(), progress=progress)
    )
    if into is not None:
        return status, [into]
    if not folders:
        console = results / "nested-console.log"
        said = [line for line in console.read_text(errors="replace").splitlines() if line.startswith("switchover: ")] if console.is_file() else []
        what = said[-1].removeprefix("switchover: ") if said else f"it ended with {status}"
        raise TestbedError(f"nothing was run in the first-level guest: {what}", hint=f"its console is {console}")
    return status, folders


def the_only(folders: Sequence[Path], name: str) -> Path:
    """The folder with the file `name` among those that a command left."""
    found = [path for path in folders if (path / name).is_file()]
    if len(found) != 1:
        raise TestbedError(f"the first-level guest left {len(found)} folders with {name}", hint=f"look at {', '.join(map(str, folders))}")
    return found[0]
