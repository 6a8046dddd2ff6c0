"""`python -m harness.cli`: the command, by the interpreter that runs it."""

from __future__ import annotations

from harness.cli.app import main

main()
