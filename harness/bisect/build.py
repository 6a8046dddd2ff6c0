"""From a commit to the settings that put it under test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from harness.bisect.facts import BisectFacts, BisectFolder
from harness.builds import build, forget_qemu
from harness.errors import BuildError
from harness.run import RunOptions

__all__ = ["ROLES", "Candidate", "forget", "prepare"]

Progress = Callable[[str], None]
Candidate = Callable[[BisectFacts, BisectFolder, str, str, RunOptions, Progress], tuple[str, ...]]

ROLES = ("good", "bad", "step")
_TAIL_LINES = 15


def prepare(
    facts: BisectFacts, folder: BisectFolder, commit: str, role: str, options: RunOptions, progress: Progress
) -> tuple[str, ...]:
    """Build `commit`; the settings (KEY=VALUE) of a scenario that runs it. `BuildError` where it can't be built.

    A QEMU is built as `switchover qemu build` does, incrementally. A kernel is built by the user's command in the private clone, and its
    image is copied, so that the next commit doesn't overwrite it.
    """
    if facts.build is None or facts.kernel is None:
        name = folder.build_name(role)
        build(name, source=f"{facts.tree}#{commit}", cache=options.cache, progress=progress)
        return (f'qemu.source="{name}"', f'qemu.destination="{name}"')
    repository = folder.repository
    _run(["git", "checkout", "--quiet", "--detach", commit], folder)
    progress(f"building {commit[:12]}: {facts.build}")
    _run(["sh", "-c", facts.build], folder)
    product = repository / facts.kernel
    if not product.is_file():
        raise BuildError(f"the command left no {facts.kernel}", hint=f"it ran as: {facts.build}")
    kept = folder.path / "kernels" / role
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy2(product, kept / product.name)
    return (f'guest.kernel="{kept / product.name}"',)


def forget(folder: BisectFolder, options: RunOptions) -> None:
    """Take the names away that builds had in this bisection."""
    for role in ROLES:
        forget_qemu(folder.build_name(role), options.cache)


def _run(argv: list[str], folder: BisectFolder) -> None:
    done = subprocess.run(
        argv, cwd=folder.repository, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    with (folder.path / "build.log").open("a") as log:
        log.write(f"$ {argv[-1]}\n{done.stdout}")
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-_TAIL_LINES:])
        raise BuildError(f"`{argv[-1]}` ended with status {done.returncode}\n{tail}".rstrip(), hint=f"the whole log is {folder.path}/build.log")
