"""A bisection for a terminal or a mail."""

from __future__ import annotations

import statistics

from tabulate import tabulate

from harness.analysis.significance import Finding
from harness.bisect.facts import BisectFacts, BisectFolder, CommitFacts

__all__ = ["bisection_text", "no_difference_text"]


def bisection_text(folder: BisectFolder, facts: BisectFacts) -> str:
    """The commit first, then what every commit came to, oldest first."""
    lines = []
    if len(facts.culprits) == 1:
        found = facts.commit(facts.culprits[0])
        lines.append(f"first bad commit: {facts.culprits[0]}" + (f" {found.subject}" if found else ""))
    else:
        lines.append(f"one of these {len(facts.culprits)} commits is the first bad one; those between could not be judged:")
        for commit in facts.culprits:
            known = facts.commit(commit)
            lines.append(f"  {commit} {known.subject if known else ''}")
    if facts.boundary is not None:
        lines.append(
            f"  {facts.metric} above {facts.boundary.threshold:g} {facts.unit} is bad; a lead of {facts.boundary.lead} readings decides"
        )
    rows = [_row(each) for each in facts.commits]
    table = tabulate(rows, headers=["commit", "", "runs", facts.metric, "subject"], tablefmt="simple", disable_numparse=True)
    lines += ["", *("  " + line for line in table.splitlines()), "", f"{folder.path}"]
    return "\n".join(lines)


def _row(each: CommitFacts) -> list[str]:
    values = ", ".join(f"{value:.4g}" for value in each.values[:6]) + (", ..." if len(each.values) > 6 else "")
    if len(each.values) > 2:
        values = f"{statistics.median(each.values):.4g} ({values})"
    said = "; ".join(text for text in (values, each.why) if text)
    return [each.commit[:12], each.answer, str(len(each.values)), said, each.subject]


def no_difference_text(facts: BisectFacts, finding: Finding) -> str:
    """Why there was nothing to bisect."""
    said = ", ".join(
        f"{each.answer} end: " + (f"{statistics.median(each.values):.4g} {facts.unit} in {len(each.values)} runs" if each.values else "no run")
        for each in facts.commits
    )  # fmt: skip
    why = finding.why if facts.boundary is None and finding.change != "regressed" else "single runs of the ends can't be told apart"
    return f"the bad end is not clearly worse in {facts.metric}: {finding.change} ({said}); {why}"
