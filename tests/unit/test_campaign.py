"""Campaigns: the order of runs, what a failing run costs, what is kept, and what a comparison may claim."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.analysis.comparison import all_clear, compare_campaign
from harness.analysis.metrics import readings
from harness.analysis.significance import Looks
from harness.analysis.statistics import Change
from harness.campaign import CampaignPlan, plan_campaign, run_campaign
from harness.errors import FeatureLackError, TestbedError, UsageError
from harness.model.campaign import Arm, Campaign, Trial, label_arms, split_arm
from harness.model.example import make_result
from harness.model.result import Figure, RunResult, TcpResult
from harness.model.scenario import Scenario
from harness.report.comparison import comparison_table
from harness.run import RunOptions
from harness.store.campaigns import CampaignDirectory, campaign_of


def arm(label: str, results: Sequence[RunResult | None]) -> Arm:
    return Arm(label=label, trials=tuple(Trial(round=n, result=r, error=None if r else "broke") for n, r in enumerate(results)))


class Fake:
    """Runs nothing: keeps the order, writes a run directory's result, and fails where it is told to."""

    def __init__(self, *, failing: Sequence[int] = (), error: BaseException | None = None) -> None:
        self.ran: list[str] = []
        self.failing, self.error = failing, error or TestbedError("the guest was not ready")

    async def prepare(self, scenario: Scenario, *, options: RunOptions, progress: Any) -> None:
        self.ran.append(f"prepare {scenario.name}")

    async def run(self, scenario: Scenario, *, options: RunOptions, progress: Any) -> tuple[RunResult, Path]:
        number = sum(not entry.startswith("prepare") for entry in self.ran)
        self.ran.append(scenario.name)
        if number in self.failing:
            raise self.error
        path = options.results / f"run-{number}"
        path.mkdir(parents=True)
        found = make_result(scenario, lost=number, run_id=path.name)
        (path / "result.json").write_bytes(msgspec.json.encode(found))
        (path / "run.json").write_text("{}")
        return found, path


def planned(*names: str, repeat: int) -> CampaignPlan:
    return plan_campaign([split_arm(name) for name in names], labels=label_arms(names), repeat=repeat)


def options(tmp_path: Path) -> RunOptions:
    return RunOptions(results=tmp_path, cache=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("udp-none", ("udp-none", ())),
        ("./a:b.toml", ("./a:b.toml", ())),
        ("udp-netpass:qemu.source=reference", ("udp-netpass", ("qemu.source=reference",))),
        ("a:x=1,y.z=[1, 2],w=a:b", ("a", ("x=1", "y.z=[1, 2]", "w=a:b"))),
        ('a:expect."downtime.compute_ms"="< 3,4"', ("a", ('expect."downtime.compute_ms"="< 3,4"',))),
    ],
)
def test_an_arm_is_a_scenario_with_settings_of_its_own(text, expected):
    assert split_arm(text) == expected


def test_an_arm_without_a_scenario_is_refused():
    with pytest.raises(UsageError, match="names no scenario"):
        split_arm(":qemu.source=reference")


def test_arms_are_told_apart_also_when_they_are_the_same():
    assert label_arms(["a", "b", "a", "a"]) == ("a", "b", "a #2", "a #3")


def test_settings_of_all_come_before_those_of_one():
    plan = plan_campaign([split_arm("udp-none:migration.hold_ms=70"), split_arm("udp-none")], settings=["migration.hold_ms=90"], repeat=1)
    assert [each.scenario.migration.hold_ms for each in plan.arms] == [70, 90]


def test_runs_are_interleaved_and_checked_before_the_first(tmp_path):
    fake = Fake()
    asyncio.run(run_campaign(planned("udp-none", "null", repeat=2), options=options(tmp_path), progress=print, runner=fake))
    assert fake.ran == ["prepare udp-none", "prepare null", "udp-none", "null", "udp-none", "null"]


@pytest.mark.parametrize("error", [TestbedError("the guest was not ready"), ZeroDivisionError("a defect")])
def test_a_failing_run_costs_no_other(tmp_path, error):
    fake = Fake(failing=[1], error=error)
    directory = CampaignDirectory.create(tmp_path)
    work = run_campaign(
        planned("udp-none", "null", repeat=3), options=options(directory.path), progress=print, runner=fake, directory=directory
    )
    campaign = asyncio.run(work)
    assert [len(each.runs) for each in campaign.arms] == [3, 2]
    assert str(error) in campaign.arms[1].failures[0]
    assert list(campaign.arms[1].by_round()) == [1, 2]
    assert directory.load() == campaign_of([directory.path]) == campaign


def test_an_arm_that_always_fails_is_given_up(tmp_path):
    fake = Fake(failing=range(0, 20, 2))
    campaign = asyncio.run(run_campaign(planned("udp-none", "null", repeat=10), options=options(tmp_path), progress=print, runner=fake))
    assert len(campaign.arms[0].failures) == 3
    assert len(campaign.arms[1].trials) == 10


def test_the_failure_of_a_single_run_is_raised_as_it_is(tmp_path):
    fake = Fake(failing=[0], error=FeatureLackError("no netpass"))
    with pytest.raises(FeatureLackError):
        asyncio.run(run_campaign(planned("null", repeat=1), options=options(tmp_path), progress=print, runner=fake))


def test_a_campaign_that_was_cut_short_is_read_as_what_was_done(tmp_path):
    fake = Fake(failing=[3], error=asyncio.CancelledError())
    directory = CampaignDirectory.create(tmp_path)
    plan = planned("udp-none", "null", repeat=3)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run_campaign(plan, options=options(directory.path), progress=print, runner=fake, directory=directory))
    assert [len(each.runs) for each in directory.load().arms] == [2, 1]


def test_finished_runs_are_grouped_by_what_was_run(tmp_path):
    fake = Fake()
    names = ("udp-none", "udp-none:migration.hold_ms=70", "udp-none")
    campaign = asyncio.run(run_campaign(planned(*names, repeat=2), options=options(tmp_path), progress=print, runner=fake))
    paths = [Path(trial.directory or "") for each in campaign.arms for trial in each.trials]
    found = campaign_of(paths)
    assert [(each.label, len(each.runs)) for each in found.arms] == [("udp-none", 4), ("udp-none #2", 2)]
    assert not found.interleaved


def part_of(tmp_path: Path, *names: str, repeat: int) -> Path:
    directory = CampaignDirectory.create(tmp_path)
    plan = planned(*names, repeat=repeat)
    asyncio.run(run_campaign(plan, options=options(directory.path), progress=print, runner=Fake(), directory=directory))
    return directory.path


def test_campaigns_of_the_same_arms_are_parts_of_one(tmp_path):
    parts = [part_of(tmp_path, "udp-none", "null", repeat=repeat) for repeat in (2, 1, 3)]
    found = campaign_of(parts)
    assert found.interleaved
    assert [each.label for each in found.arms] == ["udp-none", "null"]
    assert [[trial.round for trial in each.trials] for each in found.arms] == [list(range(6))] * 2
    assert [trial.directory for trial in found.arms[0].trials[2:3]] == [
        trial.directory for trial in CampaignDirectory(parts[1]).load().arms[0].trials
    ]


@pytest.mark.parametrize("others", [("null", "udp-none"), ("udp-none", "null", "udp-netpass"), ("udp-none:migration.hold_ms=70", "null")])
def test_campaigns_of_other_arms_are_not(tmp_path, others):
    parts = [part_of(tmp_path, "udp-none", "null", repeat=1), part_of(tmp_path, *others, repeat=1)]
    assert not campaign_of(parts).interleaved


@pytest.mark.parametrize(
    ("content", "complaint"),
    [('{"schema_version": 2}', "schema version 2"), ("{", "damaged"), ('{"schema_version": 1}', "damaged"), ("[]", "damaged")],
)
def test_a_newer_or_damaged_campaign_is_refused(tmp_path, content, complaint):
    (tmp_path / "campaign.json").write_text(content)
    with pytest.raises(UsageError, match=complaint):
        campaign_of([tmp_path])


# -- what is claimed


def differences(campaign: Campaign, **more: Any) -> dict[str, Change]:
    return {each.metric: each.change for each in compare_campaign(campaign, **more).differences}


def test_a_difference_is_claimed_when_its_interval_leaves_the_resolution_behind():
    first, second = (arm(n, [make_result(lost=k, compute_ms=ms) for k in range(200, 210)]) for n, ms in (("a", 150.0), ("b", 150.2)))
    worse = arm("c", [make_result(lost=0, compute_ms=160.0 + n / 10) for n in range(10)])
    assert differences(Campaign(arms=(first, second)))["compute_ms"] is Change.UNCHANGED
    found = differences(Campaign(arms=(first, worse)))
    assert found["compute_ms"] is Change.REGRESSED
    assert found["lost"] is Change.IMPROVED


def test_nothing_is_claimed_below_what_the_calibration_showed():
    first, second = (arm(n, [make_result(compute_ms=ms)] * 10) for n, ms in (("a", 150.0), ("b", 153.0)))
    campaign = Campaign(arms=(first, second))
    assert differences(campaign)["network_ms"] is Change.REGRESSED
    calibrated = differences(campaign, resolutions={"network_ms": 3.5})
    assert calibrated["network_ms"] is calibrated["streams.udp-to-guest.network_ms"] is Change.UNCHANGED


def test_few_runs_are_inconclusive_and_say_so():
    first, second = (arm(n, [make_result(lost=k)] * 4) for n, k in (("a", 0), ("b", 99)))
    (lost,) = [each for each in compare_campaign(Campaign(arms=(first, second))).differences if each.metric == "lost"]
    assert (lost.change, lost.why) == (Change.INCONCLUSIVE, "4 runs each are too few to show any difference")


def test_a_run_that_failed_takes_its_round_out_of_the_pairs():
    first = arm("a", [make_result(lost=k) for k in (10, 20, 30, 40, 50, 60)])
    second = arm("b", [make_result(lost=11), None, *(make_result(lost=k) for k in (31, 41, 51, 61))])
    comparison = compare_campaign(Campaign(arms=(first, second)))
    (lost,) = [each for each in comparison.differences if each.metric == "lost"]
    assert (lost.difference.median, lost.difference.count, lost.paired) == (1, 5, True)
    assert comparison.notes == ("b: broke",)
    assert "1 failed" in comparison_table(comparison)


def test_timings_of_two_accelerators_are_never_compared():
    campaign = Campaign(arms=(arm("a", [make_result()] * 6), arm("b", [make_result(accelerator="kvm", lost=5)] * 6)))
    found = differences(campaign)
    assert found["lost"] is Change.REGRESSED
    assert not [name for name in found if name.endswith("_ms")]


def test_many_metrics_are_judged_together():
    # One of 8 rounds against: 0.0156 for `lost` alone, too much for one of three figures.
    first = arm("a", [make_result(lost=50, compute_ms=150.0 + n % 3) for n in range(8)])
    second = arm("b", [make_result(lost=49 if n == 0 else 52 + n, compute_ms=150.0 + (n + 1) % 3) for n in range(8)])
    (lost,) = [each for each in compare_campaign(Campaign(arms=(first, second))).differences if each.metric == "lost"]
    assert lost.p_value == pytest.approx(4 / 256)
    assert lost.p_adjusted == pytest.approx(3 * 4 / 256)
    assert lost.change is Change.INCONCLUSIVE


def test_runs_that_were_not_made_by_turns_are_compared_as_two_groups():
    groups = tuple(arm(n, [make_result(lost=k) for k in ks]) for n, ks in (("a", range(200, 212)), ("b", range(9))))
    (lost,) = [e for e in compare_campaign(Campaign(arms=groups, interleaved=False)).differences if e.metric == "lost"]
    assert (lost.change, lost.paired, lost.effect) == (Change.IMPROVED, False, -1)


class Scripted(Fake):
    """Runs whose losses are given, by scenario and round."""

    def __init__(self, lost: dict[str, list[int]]) -> None:
        super().__init__()
        self.lost = lost

    async def run(self, scenario: Scenario, *, options: RunOptions, progress: Any) -> tuple[RunResult, Path]:
        number = self.ran.count(scenario.name)
        self.ran.append(scenario.name)
        path = options.results / f"{scenario.name}-{number}"
        path.mkdir(parents=True)
        mine = self.lost[scenario.name][number]
        found = make_result(scenario, lost=mine, compute_ms=float(mine), run_id=path.name)
        (path / "result.json").write_bytes(msgspec.json.encode(found))
        (path / "run.json").write_text("{}")
        return found, path


def test_a_campaign_ends_at_the_look_that_finds_the_answer(tmp_path):
    plan = msgspec.structs.replace(planned("udp-none", "udp-tap-handover", repeat=20), looks=Looks.up_to(20).at)
    runner = Scripted({"udp-none": [90 + n % 5 for n in range(20)], "udp-tap-handover": [n % 2 for n in range(20)]})
    directory = CampaignDirectory.create(tmp_path)
    asked: list[int] = []

    def clear(campaign: Campaign) -> bool:
        asked.append(len(campaign.arms[0].trials))
        return all_clear(compare_campaign(campaign))

    where = RunOptions(results=directory.path, cache=tmp_path)
    done = asyncio.run(
        run_campaign(plan, options=where, progress=lambda _: None, directory=directory, runner=runner, clear=clear)
    )
    assert plan.looks == (6, 9, 12, 14, 17, 20)
    assert asked == [6, 9, 12]
    assert [len(each.trials) for each in done.arms] == [12, 12]
    again = campaign_of([directory.path])
    assert again.looks == plan.looks
    comparison = compare_campaign(again)
    found = {each.metric: each for each in comparison.differences}
    assert found["lost"].change is found["network_ms"].change is Change.IMPROVED
    assert found["lost"].p_adjusted is None
    assert any("ended after 12" in note for note in comparison.notes)
    assert "(0.00049)" in comparison_table(comparison)


def test_a_campaign_without_an_answer_goes_on_to_its_end(tmp_path):
    plan = msgspec.structs.replace(planned("udp-none", "udp-netpass", repeat=8), looks=Looks.up_to(8).at)
    runner = Scripted({"udp-none": [3, 1, 2, 5, 4, 3, 2, 1], "udp-netpass": [1, 2, 3, 4, 5, 1, 3, 2]})
    done = asyncio.run(
        run_campaign(
            plan, options=options(tmp_path), progress=lambda _: None, runner=runner,
            clear=lambda so_far: all_clear(compare_campaign(so_far)),
        )
    )  # fmt: skip
    assert [len(each.trials) for each in done.arms] == [8, 8]


def connection(name: str, stall_ms: float | None) -> TcpResult:
    return TcpResult(
        name=name, kind="tcp", direction="to-guest", client="peer", server="mobile", survived=True, bytes=1,
        longest_stall_ms=Figure(value=stall_ms, resolution_ms=2.5), longest_unacknowledged_ms=9.0, recovery_ms=None, segments=1,
        retransmitted_segments=0, retransmitted_bytes=0, fast_retransmits=0, rto_events=0, tail_loss_probes=0, spurious_retransmits=0,
        duplicate_sacks=0, sack_recoveries=0,
    )  # fmt: skip


def test_the_longest_tcp_stall_is_read_and_a_figure_that_is_missing_is_none():
    found = readings(make_result(compute_ms=None, tcp=(connection("a", 201.5), connection("b", 7.0), connection("idle", None))))
    assert (found["tcp_stall_ms"].value, found["tcp_stall_ms"].resolution) == (201.5, 2.5)
    assert found["compute_ms"].value is None
    assert readings(make_result())["tcp_stall_ms"].value is None


def test_the_table_shows_counts_as_counts_and_no_figure_that_nobody_has():
    table = comparison_table(compare_campaign(Campaign(arms=(arm("a", [make_result(lost=k) for k in (3, 1, 2)]),))))
    assert "2 (1..3)" in table
    assert "reported" not in table


def test_figures_in_microseconds_are_readings_and_are_shown_when_asked_for():
    runs = [make_result(figures={"virtio_net_load_us": 700.0 + k, "ready_s": 1.5}) for k in range(6)]
    comparison = compare_campaign(Campaign(arms=(arm("a", runs), arm("b", runs))))
    assert "figures.ready_s" not in comparison.arms[0].metrics
    table = comparison_table(comparison, metrics=["figures.virtio_*"])
    assert "virtio net load us" in table
    assert "70" in table
    assert "compute" not in table
    with pytest.raises(UsageError, match=r"virtio_net_lod_us") as caught:
        comparison_table(comparison, metrics=["figures.virtio_net_lod_us"])
    assert "virtio_net_load_us" in (caught.value.hint or "")
