"""Open a run, be it a folder or a bundle.

A bundle is read twice: once to hold every byte of it against the rules, and only then again to unpack it into a private
folder, which is gone afterwards. A bundle that is refused leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.bundle.archive import is_bundle, read_archive
from harness.bundle.finding import Finding, Observation, finding_of
from harness.bundle.format import SUFFIX, Manifest
from harness.bundle.trust import check_content, check_manifest, scenario_of
from harness.errors import BundleError, SwitchoverError
from harness.model.scenario import Scenario
from harness.store.rundir import RunDirectory

__all__ = ["OpenedBundle", "open_any", "open_bundle", "open_run"]

_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError, struct.error,
)  # fmt: skip
"""What an analysis may meet in data that no testbed wrote."""


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that was checked and unpacked. `run` lies in a folder that goes with the context."""

    label: str
    manifest: Manifest
    scenario: Scenario
    run: RunDirectory
    observation: Observation
    finding: Finding

    @property
    def patches(self) -> Path:
        """The folder with the patches, one file for each content."""
        return self.run.path / "patches"


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[OpenedBundle]:
    """Check a bundle, unpack it, and yield it. Raises `BundleError` (one line) for whatever isn't a sound one."""
    label = path.name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except OSError as error:
        raise BundleError(f"{label}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{label}: is no regular file")
    with os.fdopen(descriptor, "rb") as file, tempfile.TemporaryDirectory(prefix="switchover-bundle-") as scratch:
        found: list[Manifest] = []

        def manifest_first(manifest: Manifest) -> None:
            check_manifest(manifest, label=label)
            found.append(manifest)

        def check(name: str, data: bytes) -> None:
            check_content(name, data, manifest=found[-1], label=label)

        def unpack(name: str, data: bytes) -> None:
            check(name, data)  # the file may have been changed since
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                out.write(data)

        try:
            read_archive(file, label=label, sink=check, each_manifest=manifest_first)
            file.seek(0)
            folder = Path(scratch) / found[0].run_id
            manifest = read_archive(file, label=label, sink=unpack, each_manifest=manifest_first)
            scenario = scenario_of((folder / "scenario.toml").read_bytes(), label=label)
            run = RunDirectory(folder, manifest.run_id)
            for name, said in (("run.json", run.facts().scenario), ("result.json", run.result().scenario)):
                if said != scenario:  # what was checked is what is judged by
                    raise BundleError(f"{label}: the scenario in {name} is another than scenario.toml")
            seen = Observation.of_run(run)
            finding = finding_of(seen)
        except _DAMAGE as error:
            raise BundleError(f"{label}: is damaged: {type(error).__name__}: {error}") from error
        except BundleError:
            raise
        except SwitchoverError as error:
            raise BundleError(f"{label}: {_one_line(error, scratch)}") from error
        yield OpenedBundle(label=label, manifest=manifest, scenario=scenario, run=run, observation=seen, finding=finding)


@contextlib.contextmanager
def open_run(path: Path) -> Iterator[RunDirectory]:
    """The run in a folder or in a bundle, for reading; in a bundle, what the body can't make sense of is a `BundleError`.

    Keep to the body what reads the run; printing belongs behind it.
    """
    with open_any(path) as (run, _):
        yield run


@contextlib.contextmanager
def open_any(path: Path) -> Iterator[tuple[RunDirectory, OpenedBundle | None]]:
    """`open_run`, with the bundle where it is one."""
    if path.is_dir() or not (path.name.endswith(SUFFIX) or is_bundle(path)):
        yield RunDirectory.open(path), None
        return
    with open_bundle(path) as bundle:
        folder = str(bundle.run.path.parent)
        try:
            with np.errstate(over="raise", invalid="raise"):  # numbers that no testbed measured
                yield bundle.run, bundle
        except _DAMAGE as error:
            raise BundleError(f"{path.name}: can't be analysed: {type(error).__name__}: {error}") from error
        except OSError as error:
            if not str(error.filename).startswith(folder):
                raise
            raise BundleError(f"{path.name}: {Path(str(error.filename)).name} is not in it{_why(bundle, str(error.filename))}") from error
        except BundleError:
            raise
        except SwitchoverError as error:
            if folder not in error.message:
                raise
            raise BundleError(f"{path.name}: {_one_line(error, folder)}{_why(bundle, error.message)}") from error


def _one_line(error: SwitchoverError, folder: str) -> str:
    """An error's message without the folder that the reader never sees, in one line."""
    text = error.message
    while (at := text.find(folder)) >= 0:
        end = text.find("/", at + len(folder) + 1)
        text = text[:at] + (text[end + 1 :] if end > 0 else text[at + len(folder) :])
    return " ".join(text.split())


def _why(bundle: OpenedBundle, text: str) -> str:
    """The reason for which a file that the text names was left out."""
    left = next((each for each in bundle.manifest.left_out if text.find(each.name) >= 0), None)
    return f" (left out: {left.reason})" if left else ""
