"""Tables of results for a terminal or a mail."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tabulate import tabulate

from harness.model.costs import AckResult, DevicesResult, LoadGroups
from harness.model.result import Figure, RunResult, StreamResult
from harness.report.connections import connection_tables

__all__ = ["campaign_table", "device_table", "run_table"]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _figure(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:.{1 if figure.resolution_ms < 1 else 0}f} ms (± {figure.resolution_ms:g})"


def run_table(result: RunResult) -> str:
    """One run: its verdict, three downtimes, and a line for each stream."""
    head = f"{result.scenario.name}: {result.verdict.upper()} ({result.outcome}), {result.mechanism}, {result.accelerator}"
    qemu = result.qemu.source.version
    if result.qemu.destination != result.qemu.source:
        qemu += f" -> {result.qemu.destination.version}"
    lines = [head, f"  QEMU {qemu}, guest kernel {result.guest.kernel}, run {result.run_id}"]
    downtime = result.downtime
    if downtime.compute_ms.value is not None:
        lines.append(
            f"  downtime: compute {_figure(downtime.compute_ms)}, network {_figure(downtime.network_ms)},"
            f" reported {_figure(downtime.reported_ms)}"
        )
    if result.switchover_ack is not None:
        lines.append(f"  {_ack_line(result.switchover_ack)}")
    lines += _split_lines(result)
    lines += [f"  failed: {line}" for line in result.expectations]
    lines += [f"  note: {note}" for note in result.notes]
    rows = [_stream_row(stream) for stream in result.streams]
    headers = ["stream", "sent", "delivered", "lost", "passed", "late", "dup", "reord", "gap ms", "p50 ms", "max ms", "lost where"]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * 10, "left"])
    tables = [table] if rows else []
    tables += connection_tables(result)
    if result.devices is not None:
        tables.append(device_table(result.devices))
    return "\n".join([*lines, *(line for text in tables for line in ("", *("  " + row for row in text.splitlines())))])


def _ack_line(ack: AckResult) -> str:
    if ack.before_stop_ms is None:
        return f"switchover-ack: {ack.order}"
    asked = "" if ack.asked is None else f", {ack.asked} device{'' if ack.asked == 1 else 's'} asked"
    return f"switchover-ack: {ack.order}, {ack.before_stop_ms:.3f} ms before the stop{asked}"


def device_table(result: DevicesResult, *, most: int = 5) -> str:
    """The most expensive devices of a switchover; one line where there is nothing to show."""
    if not result.devices:
        return f"devices: {result.reason}"
    # What a feature under test changed is shown, however little it costs.
    shown = [*result.devices[:most], *(cost for cost in result.devices[most:] if cost.setup_load_us is not None)]
    rest = [cost for cost in result.devices if cost not in shown]
    columns: dict[str, list[str]] = {
        "device": [c.name + (f" ({c.nic})" if c.nic else "") + (f" #{c.instance}" if c.instance else "") for c in shown],
        "iterable": ["yes" if c.iterable else "no" for c in shown],
        "save us": [_us(c.save_us) for c in shown],
        "load us": [_us(c.load_us) for c in shown],
        "of the stop": [_percent(c.load_share) for c in shown],
        "queues / backend / rest us": ["" if c.groups is None else _groups(c.groups) for c in shown],
        "start us": ["" if c.start_us is None else _us(c.start_us) for c in shown],
        "setup load us": ["" if c.setup_load_us is None else _us(c.setup_load_us) for c in shown],
        "load in all us": ["" if c.setup_load_us is None else _us(c.all_load_us) for c in shown],
        "sent again": [c.sent or "" for c in shown],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if rest:
        sums = [sum(getattr(cost, field) or 0.0 for cost in rest) for field in ("save_us", "load_us", "load_share")]
        last = [f"{len(rest)} others", "", _us(sums[0]), _us(sums[1]), _percent(sums[2])]
        for number, cells in enumerate(columns.values()):
            cells.append(last[number] if number < len(last) else "")
    align = ["left", "left", *["right"] * (len(columns) - 2)]
    table = str(tabulate(columns, headers="keys", tablefmt="simple", disable_numparse=True, colalign=align))
    held = f"; held for {result.held_us / 1000:.1f} ms more" if result.held_us else ""
    worked_ms = ((result.stop_us or 0.0) - result.held_us) / 1000
    start = f"; RESUME to the end of the start: {result.to_start_us / 1000:.1f} ms" if result.to_start_us is not None else ""
    return f"{table}\nof a stop of {worked_ms:.1f} ms{held}{start}" + (f"; {result.reason}" if result.reason else "")


def _groups(groups: LoadGroups) -> str:
    return f"{groups.virtqueues_us:.0f} / {groups.backend_us:.0f} / {groups.rest_us:.0f}"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _split_lines(result: RunResult) -> list[str]:
    """Where the first stream's network downtime went."""
    split = result.streams[0].network_split if result.streams else {}
    if not split:
        return []
    parts = ", ".join(f"{name} {length:.1f}" for name, length in split.items())
    return [f"  of {result.streams[0].name}'s network downtime and one interval, ms: {parts}"]


def _stream_row(stream: StreamResult) -> list[str]:
    latency = stream.latency_ms
    classes = stream.ledger
    places = {
        "stranded": classes.stranded_at_source, "host": classes.dropped_by_host, "QEMU": classes.lost_in_qemu,
        "guest": classes.dropped_by_guest, "return": classes.lost_on_return, "UNEXPLAINED": classes.unexplained,
    }
    where = ", ".join(f"{count} {place}" for place, count in places.items() if count)
    return [
        stream.name, str(stream.sent), str(stream.delivered), str(stream.lost), str(stream.passed), str(stream.late),
        str(stream.duplicated), str(stream.reordered), _ms(stream.longest_gap_ms), _ms(latency.p50 if latency else None),
        _ms(latency.max if latency else None), where,
    ]  # fmt: skip


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f}" if known else "-"


def _span(values: Sequence[int]) -> str:
    """A count over several runs: one number where all agree, else the median and the extremes."""
    if len(set(values)) <= 1:
        return str(values[0]) if values else "-"
    return f"{statistics.median(values):g} ({min(values)}..{max(values)})"


def campaign_table(results: Sequence[RunResult]) -> str:
    """Runs side by side, grouped by scenario: the streams to the guest, where a switchover loses packets."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.scenario.name, []).append(result)
    rows = []
    for name, runs in groups.items():
        streams = [[s for s in run.streams if s.direction != "from-guest"] for run in runs]

        def total(field: str, streams: list[list[StreamResult]] = streams) -> str:
            return _span([sum(getattr(s, field) for s in mine) for mine in streams])

        verdicts = {run.verdict for run in runs}
        rows.append(
            [
                name, runs[0].mechanism, str(len(runs)), total("sent"), total("lost"), total("duplicated"),
                total("reordered"), total("passed"), _median([r.downtime.compute_ms.value for r in runs]),
                _median([r.downtime.network_ms.value for r in runs]), _median([r.downtime.reported_ms.value for r in runs]),
                _span([sum(s.ledger.unexplained for s in r.streams) for r in runs]),
                verdicts.pop() if len(verdicts) == 1 else "mixed",
            ]
        )  # fmt: skip
    headers = [
        "scenario", "mechanism", "n", "sent to guest", "lost", "dup", "reord", "passed",
        "compute ms", "network ms", "reported ms", "unexplained", "verdict",
    ]  # fmt: skip
    align = ["left", "left", *["right"] * 10, "left"]
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))
