"""Run directories: written atomically, read back offline, turned into a result by pure analysis."""
