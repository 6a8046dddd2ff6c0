"""What the tests of a mechanism say again and again."""

from __future__ import annotations

__all__ = ["account", "accounted", "exactly_once"]


def account(stream) -> tuple[int, int, int, int]:
    """Lost, duplicated, reordered and unexplained packets."""
    ledger = stream.ledger
    return (ledger.lost, ledger.duplicated, ledger.reordered, ledger.ledger.unexplained)


def accounted(stream) -> None:
    """Every packet has a fate, by evidence."""
    result = stream.result
    assert stream.ledger.ledger.unexplained == 0, (stream.ledger, result.notes)
    assert result.outcome != "inconclusive", result.notes


def exactly_once(stream, *, ordered: bool = False) -> None:
    """Nothing lost, doubled or unexplained; with `ordered`, nothing overtaken either."""
    accounted(stream)
    ledger = stream.ledger
    assert (ledger.lost, ledger.duplicated) == (0, 0), (ledger, stream.result.notes)
    if ordered:
        assert ledger.reordered == 0, ledger
