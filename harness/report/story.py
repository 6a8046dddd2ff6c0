"""One packet's story as text."""

from __future__ import annotations

from harness.analysis.ledger import Story

__all__ = ["story_text"]


def story_text(story: Story, *, start_ns: int) -> str:
    """What is known of a packet, line by line; host times in milliseconds since the traffic began."""
    lines = [f"{story.stream} packet {story.seq}: {story.fate}", f"  because: {story.reason}"]
    for line in story.lines:
        when = "            -" if line.time_ns is None else f"{(line.time_ns - start_ns) / 1e6:10.3f} ms"
        clock = "" if line.clock == "host" else f" (clock of {line.clock})"
        lines.append(f"  {when}  {line.place}: {line.text}{clock}")
    return "\n".join(lines)
