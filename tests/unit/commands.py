"""Finds `switchover` commands in texts and asks the program whether it would take them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import typer.main

from harness.cli.app import app

__all__ = ["commands_in", "refusal"]

_SYNOPSIS = re.compile(r"\[[A-Z-]|\[--|\.\.\.(?!/)|\b\w+\|\w+\b")
"""A line that says what may be written, not what is."""


def commands_in(text: str) -> Iterator[str]:
    """The commands of a text's indented lines, without the program's name and what a comment says."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.startswith(("    ", "\t")) or _SYNOPSIS.search(line.partition(" #")[0]):
            continue
        match = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?switchover (.+)", line.strip())
        if match:
            words = match.group(1).partition(" #")[0].partition(";")[0].strip().replace(" SEQ", " 1")
            # a synopsis puts an explanation behind three blanks or more
            yield re.split(r" {3,}", words)[0]


def refusal(command: str) -> str | None:
    """Why the program would not take a command's options and arguments, or None."""
    words = shlex.split(command)
    group = typer.main.get_command(app)
    try:
        context = group.make_context("switchover", words[:1] if words[0].startswith("-") else [words[0]], resilient_parsing=True)
        while hasattr(group, "commands"):
            if not words or words[0].startswith("-"):
                return None
            if words[0] not in group.commands:
                return f"no command {words[0]!r}"
            group, words = group.commands[words[0]], words[1:]
        group.make_context("switchover", words, parent=context)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
