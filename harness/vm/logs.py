"""What is said to the machines of a lab, and by them: QMP and agent transcripts, consoles, command lines.

They go to a folder, or to unnamed files that are gone with the lab, unless somebody wants them first: `write` copies them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

from harness.vm.machine import MachineLogs

__all__ = ["LabLogs"]


class LabLogs:
    """The records of a lab's machines, `qmp-NAME.jsonl`, `agent-NAME.jsonl`, `console-NAME.log` and `argv-NAME.json`, in `folder` or in none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files: dict[str, IO[Any]] = {}

    def of(self, machine: str) -> MachineLogs:
        """The records of one more machine."""
        self._files = {name: file for name, file in self._files.items() if not file.closed}
        return MachineLogs(
            qmp=self._open(f"qmp-{machine}.jsonl", "w"), agent=self._open(f"agent-{machine}.jsonl", "w"),
            console=self._open(f"console-{machine}.log", "wb"), argv=self._open(f"argv-{machine}.json", "w"),
        )  # fmt: skip

    def _open(self, name: str, mode: str) -> IO[Any]:
        self._files[name] = tempfile.TemporaryFile(mode) if self._folder is None else (self._folder / name).open(mode)  # noqa: SIM115 `close` does it
        return self._files[name]

    def write(self, folder: Path) -> None:
        """Everything there is so far, into `folder`; of machines that are forgotten there is nothing any more. `OSError` where it can't be written."""
        for name, file in self._files.items():
            if file.closed:
                continue
            file.flush()
            if folder != self._folder:
                with Path(f"/proc/self/fd/{file.fileno()}").open("rb") as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
