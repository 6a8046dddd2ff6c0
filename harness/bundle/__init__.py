"""Bundles: one archive from a run, safe to open, from which anyone can run it again.

`make_bundle` writes one; `open_run` reads a run directory or a bundle alike; `finding_of` says what a run showed. A bundle that
is read is untrusted: see `archive` (what the file may be), `trust` (what may be in it) and docs/bug-reports.md.
"""

from __future__ import annotations

from harness.bundle.finding import Finding, Observation, finding_of
from harness.bundle.format import Manifest
from harness.bundle.opening import OpenedBundle, open_any, open_bundle, open_run
from harness.bundle.write import Made, make_bundle

__all__ = ["Finding", "Made", "Manifest", "Observation", "OpenedBundle", "finding_of", "make_bundle", "open_any", "open_bundle", "open_run"]
