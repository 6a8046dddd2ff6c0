"""When the destination acknowledged the switchover, against the moment at which the guest stopped.

The source's return path is read by a thread of its own: an ACK and a stop are ordered by the source's own events alone, which
share one clock. The destination's events give the time on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.model.costs import AckOrder, AckResult
from harness.model.events import Event

__all__ = ["acknowledgement"]

_ACKED = "trace:source_return_path_thread_switchover_acked"
_NEEDED = "trace:loadvm_state_switchover_ack_needed"
_APPROVED = "trace:loadvm_approve_switchover"
_WAITED = "trace:slow_migration_waited"
_LEAVES_RUNNING = re.compile(r"current_run_state \d+ \(running\) new_state ")
_NUMBER = re.compile(r"-?\d+")


def acknowledgement(
    source: Iterable[Event], destination: Iterable[Event], *, begin_ns: int, end_ns: int, stop_ns: int | None, source_version: str = "",
) -> AckResult:
    """The order of ACK and stop, from the trace events of both machines between `begin_ns` and `end_ns`.

    `stop_ns` is the source's STOP event. Without the ACK's event the order is not "no-ack" by guess: `reason` says what was missing.
    """
    theirs = [e for e in destination if begin_ns <= e.t_ns <= end_ns]
    ours = [e for e in source if begin_ns <= e.t_ns <= end_ns]
    acks = [e.t_ns for e in ours if e.name == _ACKED]
    stopped, stop_from = _stop(ours, stop_ns)
    approvals = [e for e in theirs if e.name == _APPROVED]
    needed = [_number(e) for e in theirs if e.name == _NEEDED]
    waited = [_number(e) for e in theirs if e.name == _WAITED]
    received = acks[0] if acks else None
    before_ms = (stopped - received) / 1e6 if stopped is not None and received is not None else None
    reason = ""
    if received is None:
        order = AckOrder.NO_ACK
    elif before_ms is None:
        order = AckOrder.NO_STOP
    else:
        order = AckOrder.ACK_FIRST if before_ms > 0 else AckOrder.STOP_FIRST
    if received is None:
        reason = "no ACK was traced at the source" + (f" (QEMU {source_version})" if source_version else "")
    elif before_ms == 0:
        reason = "ACK and stop fall into the same microsecond: their order can't be told"
    return AckResult(
        asked=needed[0] if needed else None, approved_ns=tuple(e.t_ns for e in approvals),
        sent_ns=next((e.t_ns for e in approvals if _number(e) == 0), None), received_ns=received, received=len(acks),
        stop_ns=stopped, stop_from=stop_from, before_stop_ms=before_ms, order=order, waited_us=waited[0] if waited else None,
        reason=reason,
    )  # fmt: skip


def _stop(source: list[Event], stop_ns: int | None) -> tuple[int | None, str]:
    """The guest's stop: when the run state left "running", where that is traced, else the STOP event."""
    for event in source:
        if event.name == "trace:runstate_set" and _LEAVES_RUNNING.match(event.data.get("text", "")):
            return event.t_ns, "runstate_set"
    return stop_ns, "STOP" if stop_ns is not None else ""


def _number(event: Event) -> int | None:
    match = _NUMBER.search(event.data.get("text", ""))
    return int(match[0]) if match else None
