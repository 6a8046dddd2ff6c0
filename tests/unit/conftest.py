"""Property tests draw the same examples on every machine and every day: a failure is one of the change under test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None)
settings.load_profile("deterministic")
