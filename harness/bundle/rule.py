"""How often a replay runs, and what it may conclude: pure.

What is known beforehand is that the finding was seen in `times` of `runs` runs. By the rule of succession the next run shows it with
probability (times + 1) / (runs + 2): two thirds after a single run. A replay without a sighting says "not reproduced" after as
many sound runs as make a finding of that probability escape in at most one replay of twenty.

- A bad sign: one run that shows it settles it, `reproduced`; `runs_needed` sound runs without it, `not reproduced`.
- A lasting finding (nothing bad happens): one run without it settles it, `not reproduced`; `runs_needed` sound runs with it, `reproduced`.
- Runs that tell nothing (inconclusive) are made up for, `SPARE` times at most; then `cannot tell`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

__all__ = ["ESCAPE", "MOST_RUNS", "SPARE", "Conclusion", "conclude", "runs_needed"]

ESCAPE = 0.05
"""The probability with which a finding that is there may escape."""
MOST_RUNS = 60
SPARE = 3


class Conclusion(StrEnum):
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CANNOT_TELL = "cannot tell"


def runs_needed(*, times: int, runs: int) -> int:
    """Sound runs after which a finding seen in `times` of `runs` would have shown itself; 1 to `MOST_RUNS`."""
    probability = (times + 1) / (runs + 2)
    if probability >= 1 - ESCAPE:
        return 1
    return min(MOST_RUNS, math.ceil(math.log(ESCAPE) / math.log(1 - probability)))


def conclude(answers: Sequence[bool | None], *, needed: int, lasting: bool) -> Conclusion | None:
    """What the runs so far come to (None: a run told nothing); None as long as another run may tell more."""
    decisive = not lasting
    if decisive in answers:
        return Conclusion.REPRODUCED if decisive else Conclusion.NOT_REPRODUCED
    if sum(answer is not None for answer in answers) >= needed:
        return Conclusion.REPRODUCED if lasting else Conclusion.NOT_REPRODUCED
    if sum(answer is None for answer in answers) > SPARE:
        return Conclusion.CANNOT_TELL
    return None
