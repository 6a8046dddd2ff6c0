"""Baselines and trends: what is called a regression, what is not comparable, and the commands' exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from harness.analysis.metrics import readings
from harness.analysis.regression import against_baseline, trend
from harness.analysis.statistics import Change
from harness.cli.app import app
from harness.errors import UsageError
from harness.model.example import make_result
from harness.model.result import Outcome, RunResult, Verdict
from harness.store.baselines import BaselineFolder, grouped, make_baseline
from harness.store.identity import run_key


def runs(compute_ms: float, *, count: int = 10, seed: int = 1, lost: int = 0, **more: object) -> list[RunResult]:
    random = np.random.default_rng(seed)
    return [
        make_result(run_id=f"r{n}", compute_ms=float(random.normal(compute_ms, 2)), lost=lost + n % 2, **more)  # type: ignore[arg-type]
        for n in range(count)
    ]


def check(before: list[RunResult], now: list[RunResult], **more: float):
    return against_baseline(make_baseline(before), [readings(run) for run in now], **more)


def test_a_regression_is_found_and_named():
    found = check(runs(60), runs(68, seed=2))
    assert found.verdict is Verdict.REGRESSED
    assert "compute_ms" in found.why
    assert {f.metric.name: f.change for f in found.findings}["compute_ms"] is Change.REGRESSED


def test_what_differs_less_than_the_tolerance_is_no_regression():
    assert check(runs(60), runs(62, seed=2), tolerance=0.05).verdict is Verdict.INCONCLUSIVE
    assert check(runs(60), runs(62, seed=2), tolerance=0.1).verdict is Verdict.UNCHANGED
    assert check(runs(60), runs(64, seed=2), tolerance=0.0).verdict is Verdict.REGRESSED


def test_better_same_and_too_few():
    assert check(runs(60), runs(50, seed=2)).verdict is Verdict.IMPROVED
    assert check(runs(60), runs(60, seed=2)).verdict is Verdict.UNCHANGED
    few = check(runs(60), runs(90, seed=2, count=2))
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "10 and 2 runs" in few.why


def test_lost_packets_have_no_tolerance():
    found = check(runs(60), runs(60, seed=2, lost=3))
    assert found.verdict is Verdict.REGRESSED
    assert found.why.endswith("lost")


def test_a_device_that_loads_slower_is_a_regression():
    def costly(us: float, seed: int) -> list[RunResult]:
        random = np.random.default_rng(seed)
        return [
            msgspec.structs.replace(run, figures={"virtio_net_load_us": float(random.normal(us, 50)), "ready_s": 3.0})
            for run in runs(60, seed=seed)
        ]

    found = check(costly(1000, 1), costly(6000, 2))
    assert found.verdict is Verdict.REGRESSED
    assert "figures.virtio_net_load_us" in found.why
    assert "ready_s" not in str(found.findings)


def test_a_file_holds_the_whole_baseline(tmp_path):
    folder = BaselineFolder(tmp_path / "b")
    made = make_baseline(runs(60), note="before the series")
    folder.save(made)
    folder.save(made)
    assert folder.all() == [made]
    assert [p.name for p in (tmp_path / "b").iterdir()] == [f"{made.key.scenario}-{made.key.digest()}.json"]
    assert folder.find(run_key(make_result())) == (made, "")


def test_only_what_is_comparable_is_compared(tmp_path):
    folder = BaselineFolder(tmp_path)
    kvm = run_key(make_result(accelerator="kvm"))
    assert folder.find(kvm)[0] is None
    folder.save(make_baseline(runs(60)))
    found, why = folder.find(kvm)
    assert found is None
    assert "differs in accelerator" in why
    found, why = folder.find(kvm, across=["accelerator"])
    assert found is not None
    assert "accelerator: tcg / kvm" in why
    with pytest.raises(UsageError, match="no part 'quemu'"):
        folder.find(kvm, across=["quemu"])


def test_a_damaged_baseline_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match=r"x\.json is no baseline"):
        BaselineFolder(tmp_path).all()


def test_runs_are_grouped_by_key():
    both = [*runs(60, count=2), *runs(60, count=3, accelerator="kvm")]
    assert [len(group) for group in grouped(both).values()] == [2, 3]


# -- trends


def nights(values: list[float], *, runs_each: int = 3) -> list[tuple[str, float]]:
    random = np.random.default_rng(5)
    return [
        (f"2026-01-{night + 1:02d}", float(value + random.normal(0, 0.5))) for night, value in enumerate(values) for _ in range(runs_each)
    ]


def test_a_step_is_found_on_its_night():
    found = trend(nights([100.0] * 9 + [110.0] * 7))
    assert found.stepped
    assert found.step_day == "2026-01-10"
    assert found.step == pytest.approx(10, abs=1)
    assert [night.value.count for night in found.nights] == [3] * 16


def test_without_a_step_there_is_none():
    alarms = 0
    for seed in range(30):
        values = np.random.default_rng(seed).normal(100, 3, 12)
        alarms += trend([(f"2026-01-{n + 1:02d}", float(v)) for n, v in enumerate(values)]).stepped
    assert alarms <= 3


def test_a_slope_is_seen():
    found = trend(nights([100.0 + 2 * n for n in range(12)]))
    assert found.slope == pytest.approx(2, abs=0.2)
    assert found.slope_p is not None
    assert found.slope_p < 0.001


def test_three_nights_are_no_trend():
    found = trend(nights([1.0, 2.0, 3.0]))
    assert (found.slope, found.step_p, len(found.nights)) == (None, None, 3)


# -- the commands


def store(results: Path, found: list[RunResult], *, day: int) -> list[str]:
    paths = []
    for number, run in enumerate(found):
        path = results / f"202601{day:02d}T0000{number:02d}Z-udp-none-{number:06x}"
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
        (path / "result.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(run, run_id=path.name)))
        paths.append(str(path))
    return paths


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout


def test_from_the_first_night_to_a_regression(tmp_path):
    where = ["--results", str(tmp_path)]
    first = store(tmp_path, runs(60), day=1)
    code, text = command("baseline", "check", *first, *where)
    assert (code, "NO-BASELINE" in text) == (3, True)
    assert command("baseline", "check", "--or-set", *first, *where)[0] == 0
    same = store(tmp_path, runs(60, seed=3, build="b2"), day=2)
    code, text = command("baseline", "check", *same, *where)
    assert (code, "UNCHANGED" in text, "build b2" in text) == (0, True, True)
    worse = store(tmp_path, runs(75, seed=4), day=3)
    code, text = command("baseline", "check", *worse, *where)
    assert (code, "REGRESSED" in text) == (1, True)
    code, text = command("baseline", "check", "--json", *worse, *where)
    (found,) = json.loads(text)
    assert (code, found["check"]["verdict"]) == (1, "regressed")
    code, text = command("baseline", "set", "--note", "accepted", *worse, *where)
    assert (code, "baseline of 10 runs" in text) == (0, True)
    assert command("baseline", "check", *worse, *where)[0] == 0


def test_runs_that_are_not_sound_make_no_baseline(tmp_path):
    paths = store(tmp_path, [make_result(outcome=Outcome.INCONCLUSIVE), make_result(notes=("another run was under way on this host",))], day=1)
    done = CliRunner().invoke(app, ["baseline", "set", *paths, "--results", str(tmp_path)])
    assert isinstance(done.exception, UsageError)


def test_list_and_trend_show_what_is_there(tmp_path):
    for day in range(1, 6):
        store(tmp_path, runs(60, seed=day, count=2), day=day)
    code, text = command("list", "--results", str(tmp_path), "--scenario", "udp-*", "--latest", "3")
    assert code == 0
    assert text.count("20260105T") == 2
    assert text.count("20260104T") == 1
    _, text = command("list", "--results", str(tmp_path), "--json", "--since", "2026-01-05")
    assert [each["readings"]["lost"] for each in json.loads(text)] == [0, 1]
    code, text = command("baseline", "trend", "compute_ms", "--results", str(tmp_path))
    assert code == 0
    assert "2026-01-05" in text
    assert "no clear step" in text
    done = CliRunner().invoke(app, ["baseline", "trend", "nonsense", "--results", str(tmp_path)])
    assert isinstance(done.exception, UsageError)


def test_the_page_of_many_nights_shows_the_step_and_what_always_was_0_not(tmp_path):
    for day in range(1, 15):
        store(tmp_path, runs(60 if day < 9 else 75, seed=day, count=3), day=day)
    page = tmp_path / "trends.html"
    code, said = command("baseline", "trend", "--html", str(page), "--results", str(tmp_path))
    assert (code, said.strip()) == (0, str(page))
    text = page.read_text()
    assert "2 of 3 figures stepped." in text  # compute and network, which are the same here; what was lost is not
    assert re.search(r"Compute downtime, ms: \+1[45][.\d]* on 2026-01-09", text)
    assert "Duplicated" not in text
    assert "14 nights, 2026-01-01 to 2026-01-14" in text
    assert f"switchover baseline trend lost --scenario udp-none --results {tmp_path}" in text
    assert [len(re.findall(f'class="{kind}"', text)) for kind in ("dots", "curve to-guest", "mark lost")] == [3, 3, 2]
    assert 'aria-label="Compute downtime, ms, udp-none-' in text
    assert "<link" not in text
    assert "http" not in text.replace("http-equiv", "")
    code, _ = command("baseline", "trend", "compute_ms", "--html", str(page), "--since", "2026-01-12", "--results", str(tmp_path))
    assert code == 0
    assert "There are too few nights for a trend" in page.read_text()
