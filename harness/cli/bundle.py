"""`switchover bundle`: one archive from a run, or the summary of it for a mail."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.bundle import Made, make_bundle
from harness.bundle.format import SUFFIX
from harness.bundle.mail import mail_text
from harness.bundle.scrub import Identity, identity_of_host
from harness.cache import cache_dir
from harness.cli.reporting import written
from harness.errors import UsageError
from harness.model.units import parse_size
from harness.resources import image_resources
from harness.store.rundir import RunDirectory

__all__ = ["bundle", "host_identity", "mail", "size_of"]


def host_identity(results: Path) -> Identity:
    """What is scrubbed on this host; `results` is the folder that holds the run."""
    places = [(cache_dir(), "<cache>"), (results.absolute(), "<results>"), (image_resources().parent, "<switchover>"), (Path(sys.prefix), "<venv>")]
    return identity_of_host(places)


def size_of(text: str | None) -> int | None:
    """Bytes of a `--max-size`."""
    if text is None:
        return None
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--max-size {text}: {error}") from error
    if size == 0:
        raise UsageError("--max-size 0: no bundle is that small")
    return size


def made_of(run: Path, *, others: Sequence[Path] = (), max_size: str | None = None, minimised_from: str = "") -> Made:
    """The bundle of a run directory."""
    directory = RunDirectory.open(run)
    return make_bundle(
        directory, identity=host_identity(run.absolute().parent), cache=cache_dir(), max_bytes=size_of(max_size),
        others=[RunDirectory.open(other) for other in others], minimised_from=minimised_from,
    )  # fmt: skip


def bundle(run: Path, *, others: Sequence[Path], output: Path | None, max_size: str | None, minimised_from: str = "") -> tuple[Made, Path]:
    """Write the bundle of a run; it appears whole or not at all. Returns it with its path."""
    made = made_of(run, others=others, max_size=max_size, minimised_from=minimised_from)
    target = output if output is not None else Path(f"{made.manifest.run_id}{SUFFIX}")
    if target.is_dir():
        target = target / f"{made.manifest.run_id}{SUFFIX}"
    written(made.data, target)
    return made, target


def report_of(made: Made, target: Path) -> str:
    """What was made, for the one who sends it."""
    manifest = made.manifest
    lines = [f"{target}: {len(made.data):,} bytes, {len(manifest.members)} files"]
    lines += [f"  finding: {line}" for line in made.finding.lines()]
    if manifest.scrubbed:
        lines.append("  scrubbed: " + ", ".join(f"{count} {kind}" for kind, count in manifest.scrubbed.items()))
    lines += [f"  left out: {each.name} ({each.size:,} bytes): {each.reason}" for each in manifest.left_out]
    lines += [f"  note: {note}" for note in made.notes]
    return "\n".join(lines)


def mail(run: Path, *, others: Sequence[Path]) -> str:
    """The plain text for a mailing list."""
    made = made_of(run, others=others)
    return re.sub(r"[ \t]+$", "", mail_text(made), flags=re.M)
