"""Expectations: what they mean, and the verdicts they make."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ScenarioError
from harness.model.example import make_result, make_stream
from harness.model.expect import check_expectations, expectation_problems
from harness.model.result import CaptureResult, Downtimes, Figure, Outcome, RunResult, Verdict
from harness.model.scenario import MigrationSection, Scenario, TrafficSection

TRAFFIC = (TrafficSection(), TrafficSection(name="a.b", direction="echo"))


def result(expect: dict[str, Any], **more: Any) -> RunResult:
    values: dict[str, Any] = {
        "downtime": Downtimes(
            compute_ms=Figure(value=150.25, resolution_ms=0.5), network_ms=Figure(value=None, resolution_ms=1.0),
            reported_ms=Figure(value=149, resolution_ms=1.0),
        ),
        "streams": (make_stream("udp-to-guest", lost=2, unexplained=1), make_stream("udp-from-guest"), make_stream("a.b", lost=1)),
        "captures": {"peer": CaptureResult(packets=10, dropped=0)}, "figures": {"handover.frames": 7.0},
    }  # fmt: skip
    scenario = more.pop("scenario", Scenario(name="x", traffic=TRAFFIC, expect=expect))
    return make_result(scenario, **(values | more))


MET = [
    ("lost", 3), ("lost", "3"), ("lost", "= 3"), ("lost", "==3"), ("lost", "!= 0"), ("lost", "< 4"), ("lost", "<= 3"), ("lost", "> 2"),
    ("lost", ">= 3"), ("lost", "3 .. 3"), ("lost", "2..4"), ("lost", " 1 .. 3.5 "), ("lost", "< 1e2"),
    ("ledger.unexplained", 1), ("ledger.stranded_at_source", 2), ("streams.udp-to-guest.lost", 2), ("streams.a.b.lost", 1),
    ("streams.udp-to-guest.ledger.unexplained", 1), ("streams.udp-to-guest.longest_gap_ms", "5 .. 6"),
    ("streams.udp-to-guest.lost_by_phase.stopped", 2), ("streams.udp-to-guest.outages", 0), ("streams", 3),
    ("downtime.compute_ms", "< 300"), ("downtime.compute_ms", 150), ("downtime.compute_ms.value", 150.25),
    ("captures.peer.dropped", 0), ("figures.handover.frames", 7), ("outcome", "completed"), ("accelerator", "tcg"),
    ("qemu.source.version", "7.2.22"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "wanted"), MET)
def test_met(key: str, wanted: Any) -> None:
    assert check_expectations(result({key: wanted})) == (Verdict.PASS, ())


NOT_MET = [
    ("lost", 0, "lost = 3, expected 0"),
    ("lost", "< 3", "lost = 3, expected < 3"),
    ("lost", "> 3", "lost = 3, expected > 3"),
    ("lost", "<= 2", "lost = 3, expected <= 2"),
    ("lost", ">= 4", "lost = 3, expected >= 4"),
    ("lost", "!= 3", "lost = 3, expected != 3"),
    ("lost", "4 .. 9", "lost = 3, expected 4 .. 9"),
    ("streams.a.b.lost", 0, "streams.a.b.lost = 1, expected 0"),
    ("downtime.compute_ms", "< 100", "downtime.compute_ms = 150.25, expected < 100"),
    ("downtime.compute_ms", 151, "downtime.compute_ms = 150.25, expected 151"),
    ("accelerator", "kvm", "accelerator = tcg, expected kvm"),
    ("outcome", "failed", "outcome = completed, expected failed"),
]


@pytest.mark.parametrize(("key", "wanted", "line"), NOT_MET)
def test_not_met(key: str, wanted: Any, line: str) -> None:
    assert check_expectations(result({key: wanted, "duplicated": 0})) == (Verdict.FAIL, (line,))


UNTOLD = [
    ("downtime.network_ms", "< 9", "downtime.network_ms was not measured, expected < 9"),
    ("streams.a.b.latency_ms.p99", "< 9", "streams.a.b.latency_ms.p99 was not measured, expected < 9"),
    ("figures.none", 1, "figures.none was not measured, expected 1"),
    ("migration.total_ms", "> 1", "migration.total_ms was not measured, expected > 1"),
    ("downtime.compute_ms", "< 150.5",
     "downtime.compute_ms = 150.25, expected < 150.5: too near to tell with a resolution of 0.5"),
    ("downtime.compute_ms", "150 .. 151",
     "downtime.compute_ms = 150.25, expected 150 .. 151: too near to tell with a resolution of 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "wanted", "line"), UNTOLD)
def test_what_cannot_be_told_is_inconclusive_unless_something_else_failed(key: str, wanted: Any, line: str) -> None:
    assert check_expectations(result({key: wanted, "lost": 3})) == (Verdict.INCONCLUSIVE, (line,))
    assert check_expectations(result({key: wanted, "lost": 0})) == (Verdict.FAIL, (line, "lost = 3, expected 0"))


def test_without_expectations() -> None:
    assert check_expectations(result({})) == (Verdict.NO_BASELINE, ())
    assert check_expectations(result({}, outcome=Outcome.INCONCLUSIVE)) == (Verdict.INCONCLUSIVE, ())


def test_an_inconclusive_run_stays_so() -> None:
    run = result({"lost": 0, "duplicated": 0}, outcome=Outcome.INCONCLUSIVE)
    assert check_expectations(run) == (Verdict.INCONCLUSIVE, ("lost = 3, expected 0",))


def test_a_migration_that_ended_otherwise_than_planned_fails() -> None:
    assert check_expectations(result({"lost": 3}, outcome=Outcome.FAILED)) == (
        Verdict.FAIL, ("outcome = failed, expected completed",),
    )  # fmt: skip
    assert check_expectations(result({"outcome": "failed"}, outcome=Outcome.FAILED)) == (Verdict.PASS, ())
    cancelling = Scenario(name="x", traffic=TRAFFIC, migration=MigrationSection(cancel_at_switchover=True), expect={"lost": 3})
    assert check_expectations(result({}, scenario=cancelling, outcome=Outcome.CANCELLED)) == (Verdict.PASS, ())
    assert check_expectations(result({}, scenario=cancelling)) == (
        Verdict.FAIL, ("outcome = completed, expected cancelled",),
    )  # fmt: skip


REFUSED = [
    ("lots", 0, "a result has no such field", "did you mean 'lost'?"),
    ("verdict", "pass", "a result has no such field", "known: sent, "),
    ("lost.x", 0, "lost has no fields", "write lost"),
    ("longest_gap_ms", 1, "is not summed over the streams", "write streams.NAME.longest_gap_ms"),
    ("ledger", 1, "is a group of values", "write one of them, such as ledger.delivered"),
    ("ledger.lost", 1, "ledger has no field 'lost'", "known: delivered, stranded_at_source, "),
    ("downtime", 1, "is a group of values", "write one of them, such as downtime.compute_ms"),
    ("downtime.compute", 1, "downtime has no field 'compute'", "did you mean 'compute_ms'?"),
    ("figures", 1, "is a group of values", "write one of them: figures.NAME"),
    ("migration.parameters", 1, "can't be compared", "write the key of a number or of a word"),
    ("streams.udp.lost", 0, "there is no such stream", "known: udp-to-guest, udp-from-guest, a.b"),
    ("streams.udp-to-gest.lost", 0, "there is no such stream", "did you mean 'udp-to-guest'?"),
    ("streams.a.b", 0, "is a whole stream", "write a field of it, such as streams.a.b.lost"),
    ("streams.a.b.loss", 0, "a stream has no such field", "did you mean 'lost'?"),
    ("outcome", "canceled", "there is no such word", "did you mean 'cancelled'?"),
    ("outcome", 1, "must be a word", "known: completed, failed, cancelled, inconclusive"),
    ("lost", True, "must be a number or a comparison", "write a number, "),
    ("lost", "=> 3", "is no comparison", "write a number, "),
    ("lost", "< 300ms", "is no comparison", "write a number, "),
    ("lost", "few", "is no comparison", "write a number, "),
    ("lost", "< " + "9" * 5000, "is no comparison", "write a number, "),
    ("lost", "20 .. 10", "is a range that holds nothing", 'write "10 .. 20"'),
    ("lost", -1, "no count can be that", "a count is 0 or more"),
    ("lost", "< 0", "no count can be that", "a count is 0 or more"),
    ("lost", "<= -1", "no count can be that", "a count is 0 or more"),
    ("lost", "-5 .. -1", "no count can be that", "a count is 0 or more"),
]


@pytest.mark.parametrize(("key", "wanted", "wrong", "mend"), REFUSED)
def test_refused_at_load_and_at_judgement_alike(key: str, wanted: Any, wrong: str, mend: str) -> None:
    (problem,) = expectation_problems(Scenario(name="x", traffic=TRAFFIC, expect={key: wanted}))
    assert (problem.key, problem.wrong) == (("expect", key), wrong)
    assert problem.mend is not None
    assert problem.mend.startswith(mend)
    with pytest.raises(ScenarioError) as caught:
        check_expectations(result({key: wanted}))
    assert caught.value.hint == problem.mend
    assert str(caught.value).startswith(f"expect: {key} = {wanted!r}: {wrong}")


def test_a_stream_whose_records_ended_with_its_guest_was_not_measured() -> None:
    left = (make_stream("udp-to-guest"),)
    assert check_expectations(result({"streams.a.b.lost": 0}, streams=left)) == (
        Verdict.INCONCLUSIVE, ("streams.a.b.lost was not measured, expected 0",)
    )
    assert check_expectations(result({"streams.a.b.lost": 0}, streams=left, outcome=Outcome.FAILED))[0] is Verdict.FAIL


def test_counts_need_something_to_count() -> None:
    problems = expectation_problems(Scenario(name="x", expect={"lost": 0, "streams.udp.lost": 0}))
    assert [(problem.wrong, problem.mend) for problem in problems] == [
        ("there is no stream to count", "add a [[traffic]]"), ("there is no stream", "add a [[traffic]]"),
    ]  # fmt: skip


@given(lost=st.integers(0, 100), limit=st.integers(0, 100), width=st.integers(0, 50))
def test_comparisons_are_those_of_arithmetic(lost: int, limit: int, width: int) -> None:
    run = result({}, streams=(make_stream("udp-to-guest", lost=lost),))
    truths = {
        f"< {limit}": lost < limit, f"<= {limit}": lost <= limit, f"> {limit}": lost > limit, f">= {limit}": lost >= limit,
        f"!= {limit}": lost != limit, limit: lost == limit, f"{limit} .. {limit + width}": limit <= lost <= limit + width,
    }  # fmt: skip
    for wanted, truth in truths.items():
        if wanted == "< 0":
            continue  # refused: no count is below 0
        scenario = msgspec.structs.replace(run.scenario, expect={"lost": wanted})
        verdict, lines = check_expectations(msgspec.structs.replace(run, scenario=scenario))
        assert (verdict is Verdict.PASS, len(lines)) == (truth, 0 if truth else 1)


@given(value=st.floats(0, 1000), limit=st.integers(1, 1000), resolution=st.floats(0, 50))
def test_nothing_is_claimed_below_the_resolution(value: float, limit: int, resolution: float) -> None:
    figure = Figure(value=value, resolution_ms=resolution)
    verdict, _ = check_expectations(
        result({"downtime.compute_ms": f"< {limit}"}, downtime=Downtimes(compute_ms=figure, network_ms=figure, reported_ms=figure))
    )
    if verdict is Verdict.PASS:
        assert value + resolution < limit
    elif verdict is Verdict.FAIL:
        assert value - resolution >= limit
    else:
        assert value - resolution < limit <= value + resolution
