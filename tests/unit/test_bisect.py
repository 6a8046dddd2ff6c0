"""Bisection: when a commit's side is clear, and real git bisections over a tree whose commits say what they cost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bisect_fakes import CostRunner, candidate, silent

from harness.analysis.sequential import ERROR, Boundary, Side, between, decide
from harness.bisect import BisectFolder, begin, bisection_text, close, measure_ends, narrow, no_difference_text, resume
from harness.bisect.build import prepare
from harness.bisect.step import git
from harness.cli import main
from harness.errors import BuildError, TestbedError, UsageError
from harness.run import RunOptions

METRIC = "figures.virtio_net_load_us"
FAKES = Path(__file__).with_name("bisect_fakes.py")


# -- the rule


def test_ends_that_never_overlap_need_a_lead_of_three():
    found = between([1, 2, 1, 2, 1, 2], [9, 8, 9, 8, 9, 8])
    assert found == Boundary(threshold=5.0, wrong=1 / 8, lead=3)
    assert decide([1, 2], found) is None
    assert decide([1, 2, 1], found) is Side.GOOD
    assert decide([1, 9, 9, 9, 9], found) is Side.BAD


def test_what_was_decided_stays_whatever_comes_after():
    found = Boundary(threshold=5, wrong=0.1, lead=3)
    assert decide([9, 9, 9, 1, 1, 1, 1, 1, 1, 1], found) is Side.BAD


def test_ends_that_overlap_need_more_and_those_that_overlap_much_are_none():
    some = between([1, 2, 1, 9, 1, 2, 1, 2], [9, 8, 9, 1, 9, 8, 9, 9])
    assert some is not None
    assert some.lead > 3
    assert between([1, 9, 1, 9], [9, 1, 9, 1]) is None


def test_a_threshold_of_ones_own_is_taken():
    found = between([1.0] * 6, [9.0] * 6, threshold=3.0)
    assert found is not None
    assert found.threshold == 3.0


def test_an_end_without_values_is_an_error():
    with pytest.raises(ValueError, match="both ends"):
        between([], [1.0])


@pytest.mark.parametrize("wrong", [0.05, 0.125, 0.3])
def test_one_commit_is_called_wrong_as_seldom_as_stated(wrong):
    random = np.random.default_rng(7)
    boundary = Boundary(threshold=0.5, wrong=wrong, lead=int(np.ceil(np.log((1 - ERROR) / ERROR) / np.log((1 - wrong) / wrong))))
    answers = [decide((random.random(200) < wrong).astype(float).tolist(), boundary) for _ in range(3000)]
    assert answers.count(None) == 0
    # 3 standard deviations of 3000 draws at 1 %
    assert answers.count(Side.BAD) <= 3000 * ERROR + 3 * (3000 * ERROR) ** 0.5


# -- real bisections


@pytest.fixture
def tree(tmp_path):
    """Makes a git tree of commits, each with what it costs; returns it."""

    def make(*costs: str) -> Path:
        folder = tmp_path / "tree"
        folder.mkdir()
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        for name in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{name}_NAME": "x", f"GIT_{name}_EMAIL": "x@localhost"}
        subprocess.run(["git", "init", "-q", folder], check=True)
        for number, cost in enumerate(costs):
            (folder / "cost").write_text(cost)
            (folder / "number").write_text(str(number))
            subprocess.run(["git", "add", "."], cwd=folder, check=True)
            subprocess.run(["git", "commit", "-qm", f"change {number}"], cwd=folder, env=env, check=True)
            subprocess.run(["git", "tag", f"c{number}"], cwd=folder, check=True)
        return folder

    return make


def bisect(tree: Path, results: Path, *, good: str = "c0", bad: str = "HEAD"):
    """The whole of it, as the command does it, with runs that cost nothing."""
    folder, facts = begin(tree, results=results, good=good, bad=bad, scenario="udp-none", metric=METRIC)
    options = RunOptions(results=folder.path, cache=results)
    try:
        facts, finding = asyncio.run(measure_ends(folder, facts, options=options, progress=silent, candidate=candidate, runner=CostRunner()))
        if facts.boundary is not None:
            facts = narrow(folder, facts, step=[sys.executable, str(FAKES), str(folder.path)])
    finally:
        close(folder, options=options)
    return folder, facts, finding


@pytest.mark.parametrize("culprit", [4])
def test_the_commit_that_costs_more_is_found(tree, tmp_path, culprit):
    repository = tree(*("1000" if n < culprit else "6000" for n in range(6)))
    before = git(repository, "for-each-ref")
    folder, facts, _ = bisect(repository, tmp_path / "results")
    assert facts.culprits == (git(repository, "rev-parse", f"c{culprit}"),)
    assert f"first bad commit: {facts.culprits[0]} change {culprit}" in bisection_text(folder, facts)
    # The tree was only read, and nothing of the bisection is left but its folder's record.
    assert git(repository, "for-each-ref") == before
    assert git(repository, "status", "--porcelain") == ""
    assert not folder.repository.exists()
    assert "first bad commit" in folder.log.read_text()
    assert BisectFolder(folder.path).load() == facts
    # three runs for each commit but the ends
    assert {len(each.values) for each in facts.commits[2:]} == {3}


def test_one_that_was_cut_short_goes_on_without_judging_a_commit_twice(tree, tmp_path):
    repository = tree(*("1000" if n < 6 else "6000" for n in range(9)))
    whole, found, _ = bisect(repository, tmp_path / "results")
    # as a kill leaves it: no answer, the last commit unknown, the clone there in whatever state
    cut = msgspec.structs.replace(found, culprits=(), commits=found.commits[:-1], error="the disk is full")
    whole.save(cut)
    whole.repository.mkdir()
    (whole.repository / "half").write_text("")
    folder, facts = resume(whole.path)
    assert (folder.path, facts.error) == (whole.path, "")
    facts = narrow(folder, facts, step=[sys.executable, str(FAKES), str(folder.path)])
    assert facts.culprits == found.culprits
    assert [each.commit for each in facts.commits] == [each.commit for each in found.commits]
    assert facts.commits[:-1] == cut.commits
    close(folder, options=RunOptions(results=folder.path, cache=tmp_path))
    with pytest.raises(UsageError, match="is done"):
        resume(folder.path)


def test_what_can_not_be_gone_on_with_is_refused(tree, tmp_path, monkeypatch, capsys):
    repository = tree("1000", "6000")
    folder, _ = begin(repository, results=tmp_path / "results", good="c0", bad="HEAD", scenario="udp-none", metric=METRIC)
    repository.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="is gone"):
        resume(folder.path)
    with pytest.raises(UsageError, match="can't be read"):
        resume(tmp_path)
    for words, said in ((["--resume", str(folder.path), "--good", "c0"], "leave TREE and --good out"), ([], "needs a tree and a good commit")):
        monkeypatch.setattr(sys, "argv", ["switchover", "bisect", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 4
        assert said in capsys.readouterr().err


def test_commits_that_do_not_compile_or_crash_are_skipped(tree, tmp_path):
    repository = tree("1000", "1000", "crashes", "broken", "1000", "6000", "6000")
    _, facts, _ = bisect(repository, tmp_path / "results")
    assert facts.culprits == (git(repository, "rev-parse", "c5"),)
    skipped = {each.subject: each.why for each in facts.commits if each.answer == "skip"}
    assert skipped.get("change 3") == "net.c: error: expected ';'"
    assert "SIGSEGV" in skipped.get("change 2", "SIGSEGV")


def test_where_the_first_bad_one_cannot_be_judged_all_that_may_be_it_are_named(tree, tmp_path):
    repository = tree("1000", "1000", "broken", "either", "6000")
    folder, facts, _ = bisect(repository, tmp_path / "results")
    assert set(facts.culprits) == {git(repository, "rev-parse", f"c{n}") for n in (2, 3, 4)}
    text = bisection_text(folder, facts)
    assert "one of these 3 commits" in text
    assert "stay on both sides" in text


def test_ends_that_do_not_differ_are_not_bisected(tree, tmp_path):
    repository = tree("1000", "1000", "1000")
    folder, facts, finding = bisect(repository, tmp_path / "results")
    assert facts.boundary is None
    assert not facts.culprits
    assert len(facts.commits) == 2
    assert "not clearly worse" in no_difference_text(facts, finding)
    assert not folder.repository.exists()


def test_what_keeps_any_commit_from_being_judged_ends_it(tree, tmp_path):
    repository = tree("1000", "1000", "no disk", "6000", "6000")
    with pytest.raises(TestbedError, match="the disk is full"):
        bisect(repository, tmp_path / "results")


def test_an_end_that_lacks_what_any_run_needs_is_raised(tree, tmp_path):
    with pytest.raises(TestbedError, match=r"good end could be made: the disk is full"):
        bisect(tree("no disk", "6000"), tmp_path / "results")


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [("nowhere", "HEAD", "no commit 'nowhere'"), ("c2", "c0", "does not come before"), ("c1", "c1", "does not come before")],
)
def test_ends_that_can_not_be_meant_are_refused(tree, tmp_path, good, bad, words):
    with pytest.raises(UsageError, match=words):
        bisect(tree("1", "1", "1"), tmp_path / "results", good=good, bad=bad)


def test_a_folder_that_is_no_tree_is_refused(tmp_path):
    with pytest.raises(UsageError, match="git rev-parse"):
        begin(tmp_path, results=tmp_path, good="a", bad="b", scenario="udp-none", metric=METRIC)


def test_an_unknown_metric_names_those_there_are(tree, tmp_path):
    folder, facts = begin(tree("1", "2"), results=tmp_path, good="c0", bad="c1", scenario="udp-none", metric="loss")
    options = RunOptions(results=folder.path, cache=tmp_path)
    with pytest.raises(UsageError, match=r"no run has the reading 'loss'.*\n.*lost"):
        asyncio.run(measure_ends(folder, facts, options=options, progress=silent, candidate=candidate, runner=CostRunner()))


# -- kernels


def kernel_tree(tree, tmp_path, *, command: str):
    repository = tree("a", "b")
    folder, facts = begin(
        repository, results=tmp_path / "results", good="c0", bad="c1", scenario="udp-none", metric=METRIC, build=command, kernel="out/bzImage"
    )
    return repository, folder, facts, RunOptions(results=folder.path, cache=tmp_path)


def test_a_kernel_is_built_in_the_clone_and_kept_by_its_role(tree, tmp_path):
    repository, folder, facts, options = kernel_tree(tree, tmp_path, command="mkdir -p out && cp cost out/bzImage")
    for role, commit in (("good", facts.good), ("bad", facts.bad)):
        (setting,) = prepare(facts, folder, commit, role, options, silent)
        assert setting == f'guest.kernel="{folder.path}/kernels/{role}/bzImage"'
    assert [(folder.path / "kernels" / role / "bzImage").read_text() for role in ("good", "bad")] == ["a", "b"]
    assert not (repository / "out").exists()
    close(folder, options=options)
    assert sorted(path.name for path in folder.path.iterdir()) == ["bisect.json", "build.log"]


@pytest.mark.parametrize(("command", "words"), [("echo no rule; exit 2", r"status 2\n    no rule"), ("true", "left no out/bzImage")])
def test_a_kernel_that_is_not_built_is_a_build_error(tree, tmp_path, command, words):
    _, folder, facts, options = kernel_tree(tree, tmp_path, command=command)
    with pytest.raises(BuildError, match=words):
        prepare(facts, folder, facts.good, "good", options, silent)


def test_half_of_a_kernels_build_is_refused(tree, tmp_path):
    with pytest.raises(UsageError, match="a kernel tree needs both"):
        begin(tree("1", "2"), results=tmp_path, good="c0", bad="c1", scenario="udp-none", metric=METRIC, build="make")
