"""Put patches on a source tree, all inside git's object store: no working tree is touched until all of them fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.builds._process import CommandError, run
from harness.builds._series import Patch, Series
from harness.errors import UsageError

__all__ = ["IDENTITY", "apply"]

#: Fixed, so that the same source and series give the same commits, and independent of the user's git settings.
IDENTITY = {
    "GIT_AUTHOR_NAME": "switchover", "GIT_AUTHOR_EMAIL": "switchover@localhost",
    "GIT_COMMITTER_NAME": "switchover", "GIT_COMMITTER_EMAIL": "switchover@localhost",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}
_REJECTED = re.compile(r"^Rejected hunk #(\d+)\.", re.MULTILINE)
_APPLYING = re.compile(r"^(?:Applying patch|Checking patch) (.+?)(?: with .*|\.\.\.)$")
_HUNK = re.compile(r"^@@ .* @@.*$", re.MULTILINE)


def apply(series: Sequence[Series], *, repository: Path, tree: str, scratch: Path) -> str:
    """The tree (object id) that `tree` becomes with all `series` in order, written to `repository`'s objects.

    Raises `UsageError` that names the series' patch, the file and the hunk that don't fit.
    """
    work = scratch / "am"
    env = {**IDENTITY, "GIT_OBJECT_DIRECTORY": str(repository / "objects")}
    run(["git", "init", "--quiet", work], env=IDENTITY)
    base = run(["git", "commit-tree", "-m", "base", tree], cwd=work, env=env).strip()
    run(["git", "update-ref", "HEAD", base], cwd=work, env=env)
    # only the index is filled: git apply checks out what a patch touches, a few files out of ten thousand
    run(["git", "read-tree", "HEAD"], cwd=work, env=env)
    for patch in (patch for each in series for patch in each.patches):
        try:
            run(["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "am", "--quiet",
                 patch.path.absolute()], cwd=work, env=env)
        except CommandError as error:
            if error.disk_full:
                raise
            raise _misfit(patch, work, env, error) from error
    return run(["git", "rev-parse", "HEAD^{tree}"], cwd=work, env=env).strip()


def _misfit(patch: Patch, work: Path, env: dict[str, str], error: CommandError) -> UsageError:
    state = work / ".git" / "rebase-apply"
    diff = state / "patch"
    name = patch.label
    if not diff.is_file() or not diff.stat().st_size:
        return UsageError(f"{name} can't be read as a patch: {error.output.strip()}")
    subject = _line(state / "final-commit")
    number, last = _line(state / "next"), _line(state / "last")
    if last not in ("", "1"):
        name = f"{name}, message {number} of {last}"
    where = _where(diff, work, env)
    return UsageError(f"{name} ({subject}) does not apply: {where}",
                      hint="rebase the series on this source, or name the series that it needs before it")


def _where(diff: Path, work: Path, env: dict[str, str]) -> str:
    """Which file and hunk of `diff` don't fit: found by applying what fits, which says what doesn't."""
    try:
        run(["git", "apply", "--index", "--check", "-v", diff], cwd=work, env=env)
    except CommandError as error:
        complaints = [line.removeprefix("error: ") for line in error.output.splitlines() if line.startswith("error: ")]
    else:
        return "git am refused it, though its diff fits"
    try:
        run(["git", "apply", "--reject", "-v", diff], cwd=work, env=env)
        rejects = ""
    except CommandError as error:
        rejects = error.output
    found: list[str] = []
    file = ""
    headers: Iterator[str] | None = None
    for line in rejects.splitlines():
        if match := _APPLYING.match(line):
            if match.group(1) != file:
                file, headers = match.group(1), None
        elif match := _REJECTED.match(line):
            headers = headers or _hunks(work / f"{file}.rej")
            found.append(f"{file}, hunk #{match.group(1)} ({next(headers, '')})")
    return "; ".join(found or complaints)


def _hunks(rejects: Path) -> Iterator[str]:
    """The lines that say where the hunks in a file of rejects belong."""
    text = rejects.read_text(errors="replace") if rejects.is_file() else ""
    return iter(_HUNK.findall(text))


def _line(path: Path) -> str:
    """The first line of a small file, or nothing."""
    return (path.read_text(errors="replace").splitlines() or [""])[0].strip() if path.is_file() else ""
