"""The finding: what a run showed that another run can show again, or not.

It is a set of signs, taken from the result (for a failure, from the timeline too):

- the migration `failed`: by the first line that a QEMU put on its error output then, since what the source reports of a dead
  destination differs from run to run; else by the source's message (numbers, addresses and paths don't count);
- an entry of `[expect]` was not met;
- probes were `lost`, most of them in one class of the ledger; `duplicated`; `reordered`. These count where the run failed by
  nothing else, or where an expectation about them is what failed: else a minor loss would stand beside the finding for ever.

A finding with a bad sign is seen when all its signs are seen in one run. A run without any (all expectations met, nothing lost)
claims that nothing happens: every run has to show that, so the finding is `lasting`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from harness.model.events import Event
from harness.model.expect import expectation_answers
from harness.model.result import Outcome, RunResult, Verdict
from harness.store.rundir import RunDirectory

__all__ = ["Finding", "Observation", "Sign", "SignKind", "class_text", "finding_of", "holds", "needs_timing"]


def class_text(name: str) -> str:
    """A class of the ledger for people."""
    return name.replace("_", " ").replace("qemu", "QEMU")


class SignKind(StrEnum):
    FAILURE = "failure"
    EXPECTATION = "expectation"
    LOST = "lost"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"


class Sign(msgspec.Struct, frozen=True):
    """One statement about a run. `key`: the expectation, the class of the ledger, or the message as it is compared."""

    kind: SignKind
    key: Annotated[str, msgspec.Meta(max_length=500)] = ""

    def text(self) -> str:
        match self.kind:
            case SignKind.FAILURE:
                return f"the migration failed: {self.key}"
            case SignKind.EXPECTATION:
                return f"expectation not met: {self.key}"
            case SignKind.LOST:
                return f"packets lost, most of them {class_text(self.key)}"
        return f"packets {self.kind}"


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one run came to. `said`: what a QEMU said first when the migration failed, where the run's timeline has it."""

    result: RunResult
    failure: str | None = None
    said: str | None = None

    @classmethod
    def of_run(cls, run: RunDirectory) -> Observation:
        """Of a run directory (or an opened bundle), as its result.json says."""
        result, said = run.result(), None
        if result.outcome is Outcome.FAILED and (run.path / "events.jsonl").is_file():
            said = _first_words(run.events())
        return cls(result=result, failure=run.facts().failure, said=said)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`outcome` and `verdict` of the run it was taken from, and its signs."""

    outcome: Outcome
    verdict: Verdict
    signs: tuple[Sign, ...]

    @property
    def lasting(self) -> bool:
        """Whether every run must show it: it claims that nothing bad happens."""
        return not self.signs

    def lines(self) -> tuple[str, ...]:
        """For people: a sign a line."""
        if self.signs:
            return tuple(sign.text() for sign in self.signs)
        if self.outcome is Outcome.INCONCLUSIVE:
            return ("the run was inconclusive: it shows nothing",)
        return (f"nothing went wrong: {self.outcome}, verdict {self.verdict}, nothing lost, duplicated or reordered",)


_ABOUT = {
    SignKind.LOST: ("lost", "delivered", "ledger", "network_downtime", "outages"),
    SignKind.DUPLICATED: ("duplicated",),
    SignKind.REORDERED: ("reordered",),
}


def finding_of(seen: Observation) -> Finding:
    """The finding of a run."""
    result = seen.result
    signs: list[Sign] = []
    if result.outcome is Outcome.FAILED:
        signs.append(Sign(SignKind.FAILURE, _messages(seen)[0]))
    answers = expectation_answers(result)
    failed = [key for key, met in answers.items() if met is False]
    signs += [Sign(SignKind.EXPECTATION, key) for key in failed]
    alone = not signs

    def counts(kind: SignKind) -> bool:
        return alone or any(word in key for key in failed for word in _ABOUT[kind])

    classes = _lost_classes(result)
    if classes and counts(SignKind.LOST):
        signs.append(Sign(SignKind.LOST, max(classes, key=lambda name: classes[name])))
    if sum(s.duplicated for s in result.streams) and counts(SignKind.DUPLICATED):
        signs.append(Sign(SignKind.DUPLICATED))
    if sum(s.reordered for s in result.streams) and counts(SignKind.REORDERED):
        signs.append(Sign(SignKind.REORDERED))
    return Finding(outcome=result.outcome, verdict=result.verdict, signs=tuple(signs))


def holds(finding: Finding, seen: Observation) -> bool | None:
    """Whether a run shows the finding; None when the run tells nothing (it was inconclusive, or a value lacks)."""
    result = seen.result
    if result.outcome is Outcome.INCONCLUSIVE or finding.outcome is Outcome.INCONCLUSIVE:
        return None
    if finding.lasting:
        if result.verdict is Verdict.INCONCLUSIVE:
            return None
        return result.outcome is finding.outcome and result.verdict is finding.verdict and finding_of(seen).lasting
    answers = expectation_answers(result)
    told = [_shows(sign, seen, answers) for sign in finding.signs]
    if False in told:
        return False
    return None if None in told else True


def needs_timing(finding: Finding) -> bool:
    """Whether a sign rests on a time, which runs under two accelerators don't share."""
    return any(sign.kind is SignKind.EXPECTATION and re.search(r"_ms\b|downtime|figures\.", sign.key) for sign in finding.signs)


def _shows(sign: Sign, seen: Observation, answers: dict[str, bool | None]) -> bool | None:
    result = seen.result
    match sign.kind:
        case SignKind.FAILURE:
            return result.outcome is Outcome.FAILED and sign.key in _messages(seen)
        case SignKind.EXPECTATION:
            met = answers.get(sign.key)
            return None if met is None else not met
        case SignKind.LOST:
            return _lost_classes(result).get(sign.key, 0) > 0
        case SignKind.DUPLICATED:
            return sum(s.duplicated for s in result.streams) > 0
        case SignKind.REORDERED:
            return sum(s.reordered for s in result.streams) > 0


def _lost_classes(result: RunResult) -> dict[str, int]:
    """Lost packets by class of the ledger, over all streams; empty when none was lost."""
    totals: dict[str, int] = {}
    for stream in result.streams:
        for name, count in msgspec.structs.asdict(stream.ledger).items():
            if name != "delivered" and count > 0:
                totals[name] = totals.get(name, 0) + int(count)
    return totals


_QEMU_SAYS = re.compile(r"-[\w.+-]*: (?!.*\bwarning: )(.+)")
"""An error line of QEMU's, as the timeline has it beside the trace points (`trace:qemu`)."""
_GONE = re.compile(
    r"(?:Unable to (?:write to|read from) socket: |Channel error: )?"
    r"(?:Broken pipe|Connection reset by peer|Transport endpoint is not connected|Input/output error)"
)
"""A peer that ends is seen by whichever call comes first: which one that is tells nothing."""


def _first_words(events: Sequence[Event]) -> str | None:
    """The first error that a QEMU reported after the order to migrate."""
    orders = [event.t_ns for event in events if (event.source, event.name) == ("harness", "migrate")]
    words = [
        (event.t_ns, match[1])
        for event in events
        if event.name == "trace:qemu" and orders and event.t_ns >= orders[-1] and (match := _QEMU_SAYS.fullmatch(str(event.data.get("text", ""))))
    ]
    return min(words)[1] if words else None


def _messages(seen: Observation) -> list[str]:
    """What a failure is compared by, the most telling first."""
    return [_plain(text) for text in (seen.said, seen.failure) if text] or ["no message"]


def _plain(text: str) -> str:
    """A message's first line without what differs from run to run."""
    line = re.sub(r"(?:<[a-z]+>|(?<![\w<]))(?:/[\w.+-]+)+", "PATH", text.splitlines()[0])
    line = _GONE.sub("the other side went away", line)
    return re.sub(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)*", "N", line)[:300]
