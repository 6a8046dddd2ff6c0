"""Quantities as people write them."""

from __future__ import annotations

import re

__all__ = ["NS_PER_MS", "NS_PER_S", "format_bytes", "ms", "parse_size"]

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

_SUFFIXES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([BKMGT]?)(?:iB)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as "256M" (binary multiples, as QEMU reads them); `ValueError` for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write a whole number with K, M or G, such as 256M")
    return int(match[1]) * _SUFFIXES[match[2].upper()]


def format_bytes(count: int) -> str:
    """A size with the largest suffix that leaves it whole."""
    for suffix in ("T", "G", "M", "K"):
        if count and count % _SUFFIXES[suffix] == 0:
            return f"{count // _SUFFIXES[suffix]}{suffix}"
    return str(count)


def ms(duration_ns: int | float) -> float:
    """Nanoseconds as milliseconds."""
    return duration_ns / NS_PER_MS
