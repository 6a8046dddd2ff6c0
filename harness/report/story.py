"""One packet's story as text."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.ledger import Story
from harness.model.result import MarkResult, PhaseResult

__all__ = ["story_text"]


def story_text(story: Story, *, start_ns: int, phases: Sequence[PhaseResult] = (), marks: Sequence[MarkResult] = ()) -> str:
    """What is known of a packet, line by line; host times in milliseconds since the traffic began.

    With the run's phases and marks it also says when within the switchover the packet was sent.
    """
    lines = [f"{story.stream} packet {story.seq}: {story.fate}", f"  because: {story.reason}"]
    for line in story.lines:
        when = "            -" if line.time_ns is None else f"{(line.time_ns - start_ns) / 1e6:10.3f} ms"
        clock = "" if line.clock == "host" else f" (clock of {line.clock})"
        lines.append(f"  {when}  {line.place}: {line.text}{clock}")
    sent_ns = next((line.time_ns for line in story.lines if line.clock == "host" and line.time_ns is not None), None)
    if sent_ns is not None:
        lines += _when(sent_ns, phases, marks)
    return "\n".join(lines)


def _when(sent_ns: int, phases: Sequence[PhaseResult], marks: Sequence[MarkResult]) -> list[str]:
    """The phase of the time a capture first saw the packet, and the boundaries of the switchover around it."""
    within = [phase.name for phase in phases if phase.start_ns <= sent_ns < phase.end_ns]
    lines = [f"  sent in: {', '.join(within)}"] if within else []
    ordered = sorted(marks, key=lambda mark: mark.t_ns)
    before = [mark for mark in ordered if mark.t_ns <= sent_ns][-1:]
    after = [mark for mark in ordered if mark.t_ns > sent_ns][:1]
    for mark, side in (*((mark, "after") for mark in before), *((mark, "before") for mark in after)):
        lines.append(f"    {abs(mark.t_ns - sent_ns) / 1e6:.3f} ms {side} {mark.name!r} ({mark.evidence})")
    return lines
