"""Cells of the matrix, each run as `switchover matrix` runs it: guests, networks, failures, versions. Its expectations are the test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, TestbedError, UsageError
from harness.matrix import BETWEEN, plan_matrix
from harness.migrate.mechanisms import MECHANISMS
from harness.migrate.mechanisms.none import NoMechanism
from harness.migrate.trials import Trial
from harness.migrate.variety import FAILURES, VARIETY
from harness.model.load import load_scenario
from harness.pingpong import ping_pong
from harness.run import RunOptions, run_scenario
from harness.store.rundir import RunDirectory

SMOKE = (
    "cancel-at-50-percent", "cancel-at-switchover", "never-converges", "destination-dies-in-precopy", "source-dies-at-the-stop", "other-memory",
    "missing-device", "disk-full", "wrong-tls-identity", "two-bridges", "ipv6-handover", "announce-5-rounds",
)  # fmt: skip
"""One of each kind; the others are for the nightly run. None of them needs a guest to be booted that other tests don't."""


def marked(name: str, value: object):
    marks = [] if name in SMOKE else [pytest.mark.nightly]
    return pytest.param(value, id=f"smoke-{name}" if name in SMOKE else name, marks=marks)


def pytest_generate_tests(metafunc):
    """`--switchover-repeat` holds for cells too."""
    repeat = metafunc.config.getoption("--switchover-repeat")
    if repeat > 1 and "options" in metafunc.fixturenames:
        metafunc.fixturenames.append("_round")
        metafunc.parametrize("_round", range(1, repeat + 1), ids=lambda n: f"round{n}")


@pytest.fixture
def options(request, tmp_path) -> RunOptions:
    given = request.config.getoption("--switchover-results")
    return RunOptions(results=Path(given) if given else tmp_path, cache=cache_dir(), cold=False)


def passes(scenario, options) -> Path:
    try:
        result, path = asyncio.run(run_scenario(scenario, options=options, progress=lambda _: None))
    except EnvironmentLackError as lack:
        pytest.skip(str(lack))
    assert result.verdict == "pass", (path.name, result.expectations, result.notes)
    return path


@pytest.fixture
def qemu(request) -> str:
    marker = request.node.get_closest_marker("switchover")
    return request.config.getoption("--switchover-qemu") or (marker.kwargs.get("qemu") if marker is not None else None) or "system"


@pytest.mark.parametrize("trial", [marked(trial.name, trial) for trial in (*VARIETY, *FAILURES)])
def test_the_cell_comes_to_what_it_must(qemu, options, trial):
    passes(trial.scenario(source=qemu), options)


def test_smoke_of_several_queues_each_has_its_account(options):
    """The TAP spreads flows over the queues by a hash: of so many each queue gets some. What QEMU took from either is told too."""
    trial = Trial(
        name="two-queues", group="network", guest={"vcpus": 2}, network={"queues": 2}, migration={"hold_ms": 150},
        traffic={"direction": "to-guest", "rate_pps": 50}, expect={"lost": "> 0"},
    )  # fmt: skip
    scenario = trial.scenario(source="reference")
    path = passes(msgspec.structs.replace(scenario, traffic=scenario.traffic * 20), options)
    queues = RunDirectory.open(path).facts().migrations[0].queues
    assert len(queues) == 2
    assert all(queue.undelivered >= queue.waiting > 0 for queue in queues)


PAIRS = [("system", "reference"), ("reference", "system"), ("system", "11.1"), ("11.1", "system"), ("10.0", "11.1"), ("11.1", "10.0")]
REFUSED = {("10.0", "11.1"): "vring.num 1024 exceeds allocated max"}
"""Pairs that can't work, and QEMU's words (docs/decisions/0005-qemu-notes.md); one that comes to work is found out."""
SMOKE_PAIRS = [("reference", "system", "postcopy")]


@pytest.mark.parametrize(
    ("source", "destination", "name"),
    [
        pytest.param(
            *pair, trial.name, id=("smoke-" if (*pair, trial.name) in SMOKE_PAIRS else "") + "-".join((*pair, trial.name)),
            marks=pytest.mark.nightly,
        )
        for pair in PAIRS for trial in BETWEEN
    ],
)  # fmt: skip
def test_from_version_to_version(options, source, destination, name):
    try:
        cells = asyncio.run(plan_matrix([source, destination], cache=cache_dir(), only=[f"versions-{name}"]))
    except UsageError as error:
        pytest.skip(str(error))
    cell = next(cell for cell in cells if (cell.scenario.qemu.source, cell.scenario.qemu.destination) == (source, destination))
    if cell.skip:
        pytest.skip(cell.skip)
    if (source, destination) in REFUSED:
        # Nobody has the guest any more after postcopy, and what it noted ended with it.
        accounted = {} if name == "postcopy" else {"ledger.unexplained": 0, "duplicated": 0}
        refused = msgspec.structs.replace(cell.scenario, expect={"outcome": "failed", **accounted})
        path = passes(refused, options)
        assert REFUSED[source, destination] in (RunDirectory.open(path).facts().failure or "")
    else:
        passes(cell.scenario, options)


@pytest.mark.parametrize("times", [pytest.param(4, id="smoke-4", marks=pytest.mark.nightly), pytest.param(50, id="50", marks=pytest.mark.nightly)])
def test_there_and_back_again(qemu, tmp_path, times):
    found = asyncio.run(
        ping_pong(
            load_scenario("ping-pong", settings=[f"qemu.{side}={qemu}" for side in ("source", "destination")]),
            times=times, options=RunOptions(results=tmp_path, cache=cache_dir(), cold=False), progress=lambda _: None,
        )
    )  # fmt: skip
    assert [each.number for each in found.rounds] == list(range(1, times + 1))
    assert [problem for problem in found.problems() if times > 5 or "grew" not in problem] == []


@pytest.mark.nightly
def test_smoke_a_monitor_that_is_lost_is_named_at_once(guest_pair):
    """The source goes on migrating, and nobody hears how it ends: no wait lasts to its deadline, and the lab is torn down all the same."""
    source = guest_pair.lab.mobile

    class Loses(NoMechanism):
        async def prepare(self, context):
            asyncio.get_running_loop().call_later(0.5, asyncio.ensure_future, source.qmp.detach())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MECHANISMS, "none", Loses)
        with pytest.raises(TestbedError, match="the source's monitor was lost in the migration"):
            guest_pair.migrate(parameters={"max-bandwidth": 1 << 20})
    assert source.process.returncode is None


@pytest.mark.nightly
def test_four_pairs_at_once(options):
    """Labs see nothing of one another, on however few processors: every packet of each is accounted for."""

    async def together():
        scenario = load_scenario("ping-pong", settings=["mechanism=tap-handover"])
        return await asyncio.gather(*(run_scenario(scenario, options=options, progress=lambda _: None) for _ in range(4)))

    results = [result for result, _ in asyncio.run(together())]
    assert [(result.verdict, sum(stream.lost for stream in result.streams)) for result in results] == [("pass", 0)] * 4
    assert len({result.run_id for result in results}) == 4
