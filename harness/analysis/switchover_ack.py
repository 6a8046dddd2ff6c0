"""When the destination acknowledged the switchover, against the moment at which the guest stopped.

The source's return path is read by a thread of its own: an ACK and a stop are ordered by the source's own events alone, which
share one clock. The destination's events give the time on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.model.costs import AckOrder, AckResult
from harness.model.events import Event

__all__ = ["COUNTED", "PER_DEVICE", "acknowledgement"]

COUNTED, PER_DEVICE = "counted", "per-device"

_ACKED = "trace:source_return_path_thread_switchover_acked"
_WAITED = "trace:slow_migration_waited"
# The counted protocol: QEMU up to 11.0, and later ones with a machine type of that time ("_legacy").
_NEEDED = "trace:loadvm_state_switchover_ack_needed"
_REQUESTED = "trace:migration_request_switchover_ack_legacy"
_NO_USERS = "trace:loadvm_switchover_ack_no_users_legacy"
_APPROVED = ("trace:loadvm_approve_switchover", "trace:loadvm_approve_switchover_legacy")
# The protocol per device: the source asks its devices each time it asks what is left to send.
_QUERIED = "trace:qemu_savevm_query_pending"
_COLLECTED = re.compile(r"collected switchover ack pending=(\d+)")

_LEAVES_RUNNING = re.compile(r"current_run_state \d+ \(running\) new_state ")
_LAST_NUMBER = re.compile(r"(-?\d+)(?: us)?\s*$")


def acknowledgement(
    source: Iterable[Event], destination: Iterable[Event], *, begin_ns: int, end_ns: int, stop_ns: int | None, source_version: str = "",
) -> AckResult:
    """The order of ACK and stop, from the trace events of both machines between `begin_ns` and `end_ns`.

    `stop_ns` is the source's STOP event. Without the ACK's event the order is not "no-ack" by guess: `reason` says what was missing.
    """
    theirs = [e for e in destination if begin_ns <= e.t_ns <= end_ns]
    ours = [e for e in source if begin_ns <= e.t_ns <= end_ns]
    protocol, asked = _asked(ours, theirs)
    stopped, stop_from = _stop(ours, stop_ns)
    acks = [e for e in ours if e.name == _ACKED]
    received = _last_that_was_missing(ours, stopped, per_device=protocol == PER_DEVICE)
    before_ms = (stopped - received) / 1e6 if stopped is not None and received is not None else None
    reason = ""
    if received is None and protocol == PER_DEVICE and asked == 0:
        order = AckOrder.NOT_ASKED
    elif received is None:
        order = AckOrder.NO_ACK
        reason = "no ACK was traced at the source" + (f" (QEMU {source_version})" if source_version else "")
    elif before_ms is None:
        order = AckOrder.NO_STOP
    else:
        order = AckOrder.ACK_FIRST if before_ms > 0 else AckOrder.STOP_FIRST
    if before_ms == 0:
        reason = "ACK and stop fall into the same microsecond: their order can't be told"
    approvals = [e for e in theirs if e.name in _APPROVED]
    waited = [_number(e) for e in theirs if e.name == _WAITED]
    sent_ns = next((e.t_ns for e in approvals if _number(e) == 0), None)
    if protocol == PER_DEVICE and approvals:
        sent_ns = approvals[-1].t_ns
    return AckResult(
        protocol=protocol, asked=asked, approved_ns=tuple(e.t_ns for e in approvals), sent_ns=sent_ns, received_ns=received,
        received=len(acks), stop_ns=stopped, stop_from=stop_from, before_stop_ms=before_ms, order=order,
        waited_us=waited[0] if waited else None, reason=reason,
    )  # fmt: skip


def _asked(source: list[Event], destination: list[Event]) -> tuple[str, int | None]:
    """The protocol, and how many devices were asked."""
    for event in destination:
        if event.name == _NEEDED:
            return COUNTED, _number(event)
        if event.name == _NO_USERS:
            return COUNTED, 0
    if requests := [_number(e) or 0 for e in destination if e.name == _REQUESTED]:
        return COUNTED, max(requests)
    # In the other protocol an ACK answers a request; one that nobody asked for belongs to this one.
    collected = [int(match[1]) for e in source if e.name == _QUERIED and (match := _COLLECTED.search(e.data.get("text", "")))]
    if not collected:
        return "", None
    if sum(collected) == 0 and any(e.name == _ACKED for e in source):
        return COUNTED, 0
    return PER_DEVICE, sum(collected)


def _last_that_was_missing(source: list[Event], stopped_ns: int | None, *, per_device: bool) -> int | None:
    """The ACK after which none was missing: the last such one before the stop, else the first one after it.

    In the counted protocol there is one. In that per device a device may ask again after it was answered.
    """
    acks = [e for e in source if e.name == _ACKED]
    if not per_device:
        return acks[0].t_ns if acks else None
    complete = [e.t_ns for e in acks if not _number(e)]
    if stopped_ns is None:
        return complete[-1] if complete else None
    missing = [e.t_ns for e in source if e.name in (_ACKED, _QUERIED) and _number(e) and e.t_ns < stopped_ns]
    before = [t_ns for t_ns in complete if t_ns < stopped_ns]
    if before and (not missing or missing[-1] <= before[-1]):
        return before[-1]
    return next((t_ns for t_ns in complete if t_ns >= stopped_ns), None)


def _stop(source: list[Event], stop_ns: int | None) -> tuple[int | None, str]:
    """The guest's stop: when the run state left "running", where that is traced, else the STOP event."""
    for event in source:
        if event.name == "trace:runstate_set" and _LEAVES_RUNNING.match(event.data.get("text", "")):
            return event.t_ns, "runstate_set"
    return stop_ns, "STOP" if stop_ns is not None else ""


def _number(event: Event) -> int | None:
    """What stands at the end: before it there may be a device's name with digits of its own."""
    match = _LAST_NUMBER.search(event.data.get("text", ""))
    return int(match[1]) if match else None
