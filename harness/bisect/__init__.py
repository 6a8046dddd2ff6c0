"""Bisection: which commit of a QEMU or kernel tree made a figure worse, by `git bisect run` with a statistical verdict.

`drive` measures both ends by turns and lets git choose the commits; git calls `step` for each of them, in a process of its own. What is
known lies in `bisect.json` in between.
"""

from __future__ import annotations

from harness.bisect.drive import begin, close, measure_ends, narrow, resume
from harness.bisect.facts import BisectFacts, BisectFolder, CommitFacts
from harness.bisect.step import ABORT, examine, step
from harness.bisect.text import bisection_text, no_difference_text

__all__ = ["ABORT", "BisectFacts", "BisectFolder", "CommitFacts", "begin", "bisection_text", "close", "examine", "measure_ends", "narrow", "no_difference_text", "resume", "step"]
