"""Tables of TCP connections and of witnesses."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from harness.model.result import RunResult, TcpResult, WitnessResult

__all__ = ["connection_tables"]

_CONNECTION = ("connection", "KiB", "answered", "stall ms", "silent ms", "clock lost ms", "waited ms", "recovered ms", "sent again", "RTO", "TLP", "spurious", "survived")
_WITNESS = ("witness", "figure", "it says", "the capture")


def connection_tables(result: RunResult) -> list[str]:
    """A table of the connections and one of the witnesses, where a run has any."""
    rows = [row for witness in result.witnesses for row in _witness_rows(witness)]
    tables = []
    if result.tcp:
        tables.append(_table([_tcp_row(connection) for connection in result.tcp], _CONNECTION, ["left", *["right"] * 11, "left"]))
    if rows:
        tables.append(_table(rows, _WITNESS, ["left", "left", "right", "right"]))
    return tables


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], align: Sequence[str]) -> str:
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _tcp_row(connection: TcpResult) -> list[str]:
    answered = "-" if connection.requests is None else f"{connection.answered}/{connection.requests}"
    survived = "yes" if connection.survived else "NO" + (f": {connection.error}" if connection.error else "")
    if connection.resets:
        survived += f" (reset by {', '.join(dict.fromkeys(connection.resets))})"
    return [
        connection.name, str(connection.bytes >> 10), answered, _ms(connection.longest_stall_ms.value),
        _ms(connection.silent_ms.value), _ms(connection.clock_lost_ms.value), _ms(connection.longest_unacknowledged_ms), _ms(connection.recovery_ms), str(connection.retransmitted_segments),
        str(connection.rto_events), str(connection.tail_loss_probes), str(connection.spurious_retransmits), survived,
    ]  # fmt: skip


def _witness_rows(witness: WitnessResult) -> list[list[str]]:
    def shown(figures: dict[str, float], name: str) -> str:
        return f"{figures[name]:.10g}" if isinstance(figures.get(name), int) else f"{figures[name]:.1f}" if name in figures else ""

    names = dict.fromkeys((*witness.figures, *witness.capture))
    rows = [[witness.name, name, shown(witness.figures, name), shown(witness.capture, name)] for name in names]
    return rows or [[witness.name, witness.error, "", ""]]
