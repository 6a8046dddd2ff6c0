"""Child processes of the builder: their output is kept, and none outlives the work it was started for."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from harness.errors import EnvironmentLackError, ProcessError

__all__ = ["CommandError", "Progress", "run", "silent"]

Progress = Callable[[str], None]

_TAIL_LINES = 15
_GRACE_S = 5.0


def silent(_message: str) -> None:
    """A progress callback that says nothing."""


class CommandError(ProcessError):
    """A child failed: its command line, how it ended and the tail of what it said; `output` is all it said."""

    def __init__(self, argv: Sequence[str], status: int, output: str, *, log: Path | None = None) -> None:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        tail = "\n".join(f"    {line}" for line in output.splitlines()[-_TAIL_LINES:])
        super().__init__(f"`{shlex.join(argv)}` {how}\n{tail}".rstrip(), hint=f"whole log: {log}" if log else None)
        self.status = status
        self.output = output

    @property
    def disk_full(self) -> bool:
        return os.strerror(errno.ENOSPC) in self.output or os.strerror(errno.EDQUOT) in self.output


@cache
def _dies_with_us() -> tuple[str, ...]:
    """Prefix that ends a child when its parent is killed outright (util-linux' setpriv; without it, nothing)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    each_line: Progress | None = None,
    keep_fds: Sequence[int] = (),
) -> str:
    """Run `argv` to its end and return all it printed (both streams, in order); locale C, nothing on its input.

    `env` is added to the environment, `log` gets a copy of the output, `each_line` sees every line, `keep_fds`
    stay open in the child (a lock that is held as long as any child lives). On any exception, an interrupt
    included, the child's whole process group is ended first. Raises `CommandError` for a failed child and
    `EnvironmentLackError` for a program that isn't there.
    """
    words = [str(word) for word in argv]
    output: list[str] = []
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("a")) if log else None
        if shutil.which(words[0]) is None:  # setpriv would be found, and fail later
            raise EnvironmentLackError(f"program not found: {words[0]}")
        process = None
        try:
            with _interrupted_later():
                process = stack.enter_context(
                    subprocess.Popen(
                        [*_dies_with_us(), *words], cwd=cwd, env={**os.environ, "LC_ALL": "C", **(env or {})},
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                        errors="replace", start_new_session=True, pass_fds=keep_fds,
                    )
                )
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                if sink:
                    sink.write(line)
                if each_line:
                    each_line(line.rstrip("\n"))
            status = process.wait()
        except BaseException as error:
            if process is not None:
                _end_group(process)
            elif isinstance(error, FileNotFoundError):
                raise EnvironmentLackError(f"program not found: {words[0]}") from error
            raise
    text = "".join(output)
    if status:
        raise CommandError(words, status, text, log=log)
    return text


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """An interrupt that comes while a child is being started comes right after it: the child is known by then, and can be ended."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:  # interrupts don't come here, or aren't Python's
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a child that leads its own session, and all its children: first asked, then made to."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
