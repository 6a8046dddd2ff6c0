"""The postcopy table: page waits from QEMU's own distribution, packets by phase, medians; dashes where there is no figure."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from harness.model.example import make_result
from harness.model.result import Latency, MigrationResult
from harness.model.scenario import Scenario, TrafficSection
from harness.report.postcopy import fault_tail_us, postcopy_table

SCENARIO = Scenario(name="x", traffic=(TrafficSection(),))


@pytest.mark.parametrize(("counts", "bound"), [([], None), ([0, 0], None), ([1], 2.0), ([99, 1, 0], 2.0), ([98, 1, 1], 4.0), ([50, 0, 0, 50], 16.0)])
def test_the_bound_holds_99_percent_of_the_waits(counts, bound):
    assert fault_tail_us(counts) == bound
    if bound is not None:
        within = sum(count for bucket, count in enumerate(counts) if 2 ** (bucket + 1) <= bound)
        assert within >= 0.99 * np.sum(counts)


def postcopy(run, **told):
    migration = MigrationResult(
        mode="postcopy", capabilities=(), parameters={}, status="completed", total_ms=500.0, setup_ms=1.0, ram={"postcopy-requests": 7},
        statuses=(), destination=told,
    )  # fmt: skip
    streams = tuple(
        msgspec.structs.replace(stream, latency_by_phase={"postcopy-tail": Latency(p50=1.0, p99=20.5, max=31.25)}) for stream in run.streams
    )
    return msgspec.structs.replace(run, migration=migration, streams=streams)


def test_a_line_for_each_run_and_their_medians():
    run = make_result(SCENARIO, run_id="r1")
    runs = [postcopy(run, **{"postcopy-blocktime": 12, "postcopy-latency": 1500, "postcopy-latency-dist": [0, 90, 10]}), postcopy(run)]
    lines = postcopy_table([*runs, run]).splitlines()
    first, second, median = (line.split() for line in lines[3:6])
    assert first[-9:] == ["500", "12", "100", "1.5", "8", "1", "20.5", "31.2", "-"]
    assert second[-9:] == ["500", "-", "7", "-", "-", "1", "20.5", "31.2", "-"]
    assert (median[0], median[-8], len(lines)) == ("median", "12", 6)


def test_nothing_to_show_without_postcopy():
    assert postcopy_table([make_result(SCENARIO, run_id="r1")]) == ""
