"""`switchover suite`: the migration suite on a user's own QEMU."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, TestbedError, UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(suite)


def suite(
    qemu: Annotated[str, typer.Option("--qemu", help="A path, or a name of `switchover qemu list`.")] = "system",
    destination: Annotated[str | None, typer.Option("--qemu-destination", help="The destination's, if it is another.", metavar="QEMU")] = None,
    kernel: Annotated[Path | None, typer.Option("--kernel", help="A bzImage of your own for the guests.", metavar="FILE")] = None,
    accel: Annotated[str, typer.Option("--accel", help="auto, kvm or tcg")] = "auto",
    only: Annotated[list[str] | None, typer.Option("--only", help="A part of the suite, such as none or netpass; repeatable.", metavar="PART")] = None,
    tests: Annotated[Path | None, typer.Option("--tests", help="A folder of your own tests instead of the suite's.", metavar="FOLDER")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Run each test so often.")] = 1,
    results: Annotated[Path | None, typer.Option("--results", help="Where the runs go.", envvar="SWITCHOVER_RESULTS")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Run the migration suite on a QEMU: feature by feature what it supports, what works, what is broken, and why the rest was skipped.

    Exit 1: broken; 2: the testbed broke; 3: nothing could be tested.
    """
    from harness.builds import resolve_qemu
    from harness.report.conformance import conformance, conformance_table, exit_code
    from harness.resources import suite_resources
    from harness.store.folders import fresh_folder, fresh_name
    from harness.vm.discovery import FEATURES, discover

    if importlib.util.find_spec("pytest") is None:
        raise EnvironmentLackError("the suite needs pytest", hint="pip install 'switchover[test]'")
    folder = (tests or suite_resources()).resolve()
    parts = _parts(folder)
    for name in only or []:
        if name not in parts:
            raise UsageError(f"the suite has no part {name!r}", hint=f"it has: {', '.join(parts)}")
    cache = cache_dir()
    sides = [resolve_qemu(qemu, cache), resolve_qemu(destination or qemu, cache)]
    found = asyncio.run(discover(sides[0], cache=cache))
    where = fresh_folder(results or Path("results"), fresh_name("suite"))
    (where / "pytest.ini").write_text("[pytest]\n")  # a setting of the user's own project must not reach the suite
    words = [sys.executable, "-m", "pytest", "-c", str(where / "pytest.ini"), f"--rootdir={folder}", "-p", "no:cacheprovider", "-ra"]
    words += [f"--junitxml={where / 'junit.xml'}", f"--switchover-results={where.resolve()}", f"--switchover-qemu={_full(qemu)}"]
    words += [f"--switchover-accel={accel}", f"--switchover-repeat={repeat}"]
    words += [f"--switchover-qemu-destination={_full(destination)}"] if destination else []
    words += [f"--switchover-kernel={kernel.resolve()}"] if kernel else []
    words += [str(folder / f"test_{name.replace('-', '_')}.py") for name in only] if only else [str(folder)]
    _pytest(words)
    table = conformance(
        where / "junit.xml", titles=parts, qemu=f"{sides[0].version} ({sides[0].name}, build {sides[0].build_id})",
        destination=f"{sides[1].version} ({sides[1].name}, build {sides[1].build_id})", kernel=None if kernel is None else str(kernel),
        features={name: next(iter(found.lacking([name])), None) for name in FEATURES},
    )  # fmt: skip
    (where / "conformance.md").write_text(conformance_table(table, form="github") + "\n", encoding="utf-8")
    plain = msgspec.json.format(msgspec.json.encode(table), indent=2)
    (where / "conformance.json").write_bytes(plain + b"\n")
    if json:
        sys.stdout.buffer.write(plain + b"\n")
    else:
        print(conformance_table(table))
        print(f"\n{where}")
    raise typer.Exit(exit_code(table))


def _parts(folder: Path) -> dict[str, str]:
    """The suite's parts and what each is about: the first line of its module's text."""
    modules = sorted(folder.glob("test_*.py"))
    if not modules:
        raise UsageError(f"{folder} has no tests", hint="files called test_*.py")
    found = {}
    for path in modules:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.removeprefix("test_").replace("_", "-")] = said.partition("\n")[0]
    first = [name for name in ("none",) if name in found]
    return {name: found[name] for name in (*first, *(name for name in found if name not in first))}


def _full(qemu: str) -> str:
    """A path as pytest needs it, which runs elsewhere; a name as it is."""
    return str(Path(qemu).expanduser().resolve()) if "/" in qemu else qemu


def _pytest(words: list[str]) -> None:
    """pytest in a process of its own; what it prints goes to standard error. An interrupt waits until its labs are gone."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment, process_group=0)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if status not in (0, 1):
        raise TestbedError(f"pytest ended with status {status}", hint="what it said stands above")
