"""Several scenarios, several times, interleaved: A B A B, so that a change of the host's load meets all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.cache import cache_dir
from harness.model.load import load_scenario
from harness.model.result import RunResult
from harness.run import RunOptions, prepare, run_scenario

__all__ = ["run_scenarios"]


async def run_scenarios(
    names: Sequence[str], *, settings: Sequence[str], repeat: int, cold: bool, results: Path, progress: Callable[[str], None]
) -> list[tuple[RunResult, Path]]:
    """Run every scenario `repeat` times. All are loaded and checked before the first one boots."""
    scenarios = [load_scenario(name, settings=settings) for name in names]
    options = RunOptions(results=results, cache=cache_dir(), cold=cold)
    for scenario in scenarios:
        await prepare(scenario, options=options, progress=progress)
    done: list[tuple[RunResult, Path]] = []
    total = repeat * len(scenarios)
    for _ in range(repeat):
        for scenario in scenarios:
            prefix = f"{scenario.name} ({len(done) + 1} of {total}): "

            def say(text: str, prefix: str = prefix) -> None:
                progress(prefix + text)

            done.append(await run_scenario(scenario, options=options, progress=say))
    return done
