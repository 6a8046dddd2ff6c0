"""The pytest plugin: a pair of guests, traffic, migrations and their ledgers as fixtures.

    def test_no_packet_is_lost(guest_pair, udp):
        with udp(rate_pps=1000, direction="to-guest") as stream:
            guest_pair.migrate(mechanism="tap-handover", hold_ms=150)
        assert stream.ledger.lost == 0

A failed assertion is a failed test, a testbed that broke is an error, an environment that lacks something is a skip with
the reason. Every worker of pytest-xdist has labs of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import EnvironmentLackError, SwitchoverError
from harness.migrate.mechanisms import MECHANISMS
from harness.plugin.loop import LoopThread
from harness.plugin.pair import GuestPair, Settings, TrafficFactory
from harness.plugin.pool import Pool
from harness.plugin.progress import shown_live
from harness.plugin.told import told

__all__ = ["guest_pair", "lab", "mechanism", "ping", "tcp", "udp"]

_OPTIONS = (
    ("--switchover-qemu", "QEMU", None, "QEMU of the source: a name of `switchover qemu list`, or a path (a test's own, else the host's)"),
    ("--switchover-qemu-destination", "QEMU", None, "QEMU of the destination (the source's unless given)"),
    ("--switchover-kernel", "FILE", None, "a bzImage for the guests (its modules folder beside it or in /lib/modules)"),
    ("--switchover-image", "FOLDER", None, "a guest image folder"),
    ("--switchover-accel", "NAME", "auto", "auto, kvm or tcg"),
    ("--switchover-results", "FOLDER", None, "where run directories go (a temporary folder unless given)"),
)
_PAIR = pytest.StashKey[GuestPair]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("switchover", "live migration and the network")
    for name, metavar, default, text in _OPTIONS:
        group.addoption(name, metavar=metavar, default=default, help=text)
    group.addoption("--switchover-repeat", metavar="N", type=int, default=1, help="run every test that uses guest_pair so often")
    group.addoption(
        "--switchover-keep", choices=["all", "failed"], default="all", help="which tests' run directories stay (failed: those of passed ones are removed)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "switchover(requires=[...], scope='function'|'module'|'session', peer='namespace'|'guest', cold=False, qemu=NAME, **lab settings): what"
        " the test's lab is, the features (names of `switchover features`) without which it is skipped, and which tests share a pair",
    )
    config.addinivalue_line("markers", "nightly: a long campaign, run by `make nightly` only")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Live progress."""
    with shown_live(session.config):
        return (yield)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    repeat = metafunc.config.getoption("--switchover-repeat")
    if repeat > 1 and "guest_pair" in metafunc.fixturenames:
        metafunc.fixturenames.append("_switchover_round")
        metafunc.parametrize("_switchover_round", range(1, repeat + 1), ids=lambda n: f"round{n}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long campaigns run only when they are asked for with -m."""
    if config.option.markexpr:
        return
    kept = [item for item in items if item.get_closest_marker("nightly") is None]
    dropped = [item for item in items if item.get_closest_marker("nightly") is not None]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the environment lacks is a skip; the harness's own errors are shown without its frames."""
    report = yield
    pair = item.stash.get(_PAIR, None)
    lacks = call.excinfo is not None and isinstance(call.excinfo.value, EnvironmentLackError)
    if call.when == "call" and call.excinfo is not None and report.failed and pair is not None and not lacks:
        _keep(report, pair, call.excinfo.value)
    if call.excinfo is not None and isinstance(call.excinfo.value, SwitchoverError):
        error = call.excinfo.value
        if isinstance(error, EnvironmentLackError):
            report.outcome = "skipped"
            path, line, _ = item.location
            report.longrepr = (path, (line or 0) + 1, f"Skipped: {error}")
        else:
            report.longrepr = f"{type(error).__name__}: {error}"
            # The testbed broke, whatever the phase: pytest calls that an error, and "call" a failure.
            report.sections.append(("switchover", "the testbed broke; this says nothing about the claim under test"))
    if pair is not None and call.when == "call":
        if report.failed and pair.directories:
            report.sections.append(("switchover: what became of the packets", told(pair.directories)))
        elif report.passed and item.config.getoption("--switchover-keep") == "failed":
            for directory in (*pair.directories, *pair.broken):
                shutil.rmtree(directory, ignore_errors=True)
    return report


def _keep(report: pytest.TestReport, pair: GuestPair, error: BaseException) -> None:
    """What is known of the pair when its test fails; a failure here must not take the place of the test's own."""
    try:
        kept = pair.keep(error)
    except (SwitchoverError, OSError) as failure:
        report.sections.append(("switchover: nothing could be kept", str(failure)))
        return
    pair.properties["kept"] = str(kept)
    if kept in pair.broken:
        report.sections.append(("switchover: the run broke off", f"what there is of it: {kept}"))


@pytest.fixture(scope="session")
def _switchover_loop() -> Iterator[LoopThread]:
    with LoopThread() as loop:
        yield loop


@pytest.fixture
def _switchover_results(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    given = request.config.getoption("--switchover-results")
    return Path(given) if given else tmp_path / "results"


@pytest.fixture(scope="session")
def _switchover_session_pool(_switchover_loop: LoopThread) -> Iterator[Pool]:
    pool = Pool(_switchover_loop)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def _switchover_module_pool(_switchover_loop: LoopThread) -> Iterator[Pool]:
    pool = Pool(_switchover_loop)
    yield pool
    pool.close()


@pytest.fixture
def guest_pair(
    request: pytest.FixtureRequest, _switchover_loop: LoopThread, _switchover_results: Path
) -> Iterator[GuestPair]:
    """A pair of guests in a lab of its own, started warm. Fresh and gone after the test, unless the marker's `scope` shares it: then it is
    used again as long as each test left it as it was."""
    marker = request.node.get_closest_marker("switchover")
    option = request.config.getoption
    settings = Settings(
        qemu=option("--switchover-qemu"), qemu_destination=option("--switchover-qemu-destination"),
        kernel=option("--switchover-kernel"), image=option("--switchover-image"), accel=option("--switchover-accel"),
        results=_switchover_results, name=request.node.name,
    ).with_marker(marker.kwargs if marker is not None else {})  # fmt: skip
    if settings.scope == "function":
        with GuestPair.open(settings, loop=_switchover_loop) as pair:
            yield from _lent(request.node, pair)
        return
    pool: Pool = request.getfixturevalue(f"_switchover_{settings.scope}_pool")
    pair = pool.take(settings)
    try:
        yield from _lent(request.node, pair)
    finally:
        pool.give_back(settings)


def _lent(item: pytest.Item, pair: GuestPair) -> Iterator[GuestPair]:
    item.stash[_PAIR] = pair
    yield pair
    item.user_properties += pair.properties.items()
    del item.stash[_PAIR]


@pytest.fixture(params=list(MECHANISMS))
def mechanism(request: pytest.FixtureRequest) -> str:
    """The name of each mechanism by turns; `guest_pair.migrate(mechanism=mechanism)` skips where QEMU lacks it."""
    return str(request.param)


@pytest.fixture
def lab(guest_pair: GuestPair) -> Any:
    """The lab behind `guest_pair`: warden, network, machines, timeline."""
    return guest_pair.lab


@pytest.fixture
def udp(guest_pair: GuestPair) -> TrafficFactory:
    """`with udp(rate_pps=..., direction=...) as stream:`; `stream.ledger` is there after the block."""
    return guest_pair.udp


@pytest.fixture
def tcp(guest_pair: GuestPair) -> TrafficFactory:
    """`with tcp(mode=..., direction=...) as stream:`, or `tcp(idle=True)`; `stream.connection` is there after the block."""
    return guest_pair.tcp


@pytest.fixture
def ping(guest_pair: GuestPair) -> TrafficFactory:
    """`with ping(rate_pps=...) as stream:`; `stream.witness` is there after the block."""
    return guest_pair.ping
