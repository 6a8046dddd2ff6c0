"""Replays: how often, what is concluded, what differs, what is asked; and the minimiser. Nothing here starts a QEMU."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_factory import IDENTITY, bundle_bytes, make_run
from fake_qemu import write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.builds import QemuInstall, QemuRecipe, _build, _rebuild, _toolchain, build, recipe_of
from harness.bundle import Observation, finding_of, make_bundle, open_bundle
from harness.bundle.minimise import Budget, ddmin, minimise
from harness.bundle.rule import ESCAPE, MOST_RUNS, SPARE, Conclusion, conclude, runs_needed
from harness.cli.replay import plan_text, replay_text
from harness.errors import EnvironmentLackError, TestbedError, UsageError
from harness.model.load import load_scenario
from harness.model.result import Outcome, Verdict
from harness.model.scenario import Direction, MigrationSection, Peer, Scenario, TimingSection, TrafficSection
from harness.replay import execute, plan_replay, provide, shrink
from harness.replay import plan as plan_module
from harness.replay.here import Here, look_here, with_here
from harness.vm.image import GuestImage

# -- the rule


def test_the_runs_needed_follow_from_what_was_seen():
    assert [runs_needed(times=t, runs=n) for t, n in ((1, 1), (10, 10), (1, 10), (5, 10))] == [3, 2, 17, 5]
    assert runs_needed(times=0, runs=1_000_000) == MOST_RUNS


@given(times=st.integers(0, 500), more=st.integers(0, 500))
def test_a_finding_of_the_rate_seen_escapes_in_one_replay_of_twenty_at_most(times, more):
    needed = runs_needed(times=times, runs=times + more)
    rate = (times + 1) / (times + more + 2)
    assert needed == MOST_RUNS or (1 - rate) ** needed <= ESCAPE
    assert needed == 1 or (1 - rate) ** (needed - 1) > ESCAPE


@pytest.mark.parametrize(
    ("answers", "lasting", "expected"),
    [
        ([], False, None), ([True], False, Conclusion.REPRODUCED), ([False, False], False, None),
        ([False, None, False, False], False, Conclusion.NOT_REPRODUCED), ([None] * (SPARE + 1), False, Conclusion.CANNOT_TELL),
        ([True], True, None), ([True, True, True], True, Conclusion.REPRODUCED), ([True, False], True, Conclusion.NOT_REPRODUCED),
        ([True, None, None, None, None], True, Conclusion.CANNOT_TELL),
    ],
)  # fmt: skip
def test_what_runs_come_to(answers, lasting, expected):
    assert conclude(answers, needed=3, lasting=lasting) is expected


@given(answers=st.lists(st.sampled_from([True, False, None]), min_size=3 + SPARE + 1, max_size=20), lasting=st.booleans())
def test_there_is_always_an_end(answers, lasting):
    assert conclude(answers, needed=3, lasting=lasting) is not None


# -- running it


class Runs:
    """Gives prepared observations instead of running anything."""

    def __init__(self, seen: Sequence[Observation | Exception]) -> None:
        self.seen, self.scenarios = list(seen), list[Scenario]()

    async def __call__(self, scenario: Scenario) -> tuple[Observation, Path]:
        self.scenarios.append(scenario)
        each = self.seen.pop(0)
        if isinstance(each, Exception):
            raise each
        return each, Path(f"run-{len(self.scenarios)}")


@pytest.fixture
def losing(tmp_path) -> Observation:
    return Observation.of_run(make_run(tmp_path / "losing"))


@pytest.fixture
def sound(losing) -> Observation:
    streams = tuple(
        msgspec.structs.replace(s, lost=0, delivered=s.sent, ledger=msgspec.structs.replace(s.ledger, stranded_at_source=0, delivered=s.sent))
        for s in losing.result.streams
    )
    return Observation(result=msgspec.structs.replace(losing.result, streams=streams, verdict=Verdict.PASS, expectations=()))


def replayed(seen: Sequence[Observation | Exception], original: Observation, *, needed: int = 3, timing: bool = False, repeat: int | None = None) -> Any:
    work = execute(
        original.result.scenario, finding_of(original), original=original.result, needed=needed, timing=timing, run=Runs(seen),
        repeat=repeat, progress=lambda _: None,
    )  # fmt: skip
    return asyncio.run(work)


def test_the_first_run_that_shows_it_ends_the_replay(losing, sound):
    done = replayed([sound, losing, sound], losing)
    assert (done.conclusion, done.answers) == (Conclusion.REPRODUCED, (False, True))
    text = replay_text(done, losing.result)
    assert text.startswith("REPRODUCED: seen in 1 of 2 sound runs")
    assert [line.split() for line in text.splitlines() if line.startswith("lost")] == [["lost", "20", "0", "20"]]


def test_it_is_not_reproduced_after_as_many_runs_as_it_would_have_taken(losing, sound):
    done = replayed([sound] * 3, losing)
    assert (done.conclusion, len(done.answers)) == (Conclusion.NOT_REPRODUCED, 3)


def test_a_run_that_could_not_be_made_tells_nothing_and_three_in_a_row_are_raised(losing, sound):
    broke = TestbedError("the guest was not ready")
    done = replayed([broke, sound, sound, broke, sound], losing)
    assert (done.conclusion, done.answers) == (Conclusion.NOT_REPRODUCED, (None, False, False, None, False))
    assert "2 told nothing" in replay_text(done, losing.result)
    with pytest.raises(TestbedError, match="not ready"):
        replayed([broke] * 3, losing)


def test_times_of_two_accelerators_are_never_compared(losing):
    fast = Observation(result=msgspec.structs.replace(losing.result, accelerator="kvm"))
    done = replayed([fast], losing, timing=True)
    assert done.conclusion is Conclusion.CANNOT_TELL
    assert "never compared" in done.reason


def test_repeat_runs_exactly_so_often(losing, sound):
    assert len(replayed([losing, sound, losing, sound, sound], losing, repeat=5).answers) == 5


def test_inconclusive_runs_cannot_tell(losing):
    unclear = Observation(result=msgspec.structs.replace(losing.result, outcome=Outcome.INCONCLUSIVE))
    done = replayed([unclear] * (SPARE + 1), losing)
    assert done.conclusion is Conclusion.CANNOT_TELL


# -- what would run


def qemu(name: str, version: str = "7.2.22", build_id: str = "0123456789abcdef") -> QemuInstall:
    return QemuInstall(name=name, argv_prefix=("q",), data_dirs=(), version=version, build_id=build_id, origin="x", path="q")


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "demo.tar.zst"
    path.write_bytes(bundle_bytes(tmp_path))
    with open_bundle(path) as bundle:
        yield bundle


def planned(opened, monkeypatch, tmp_path, here: dict[str, QemuInstall], **words: Any) -> Any:
    def resolve(name: str, _cache: Path) -> QemuInstall:
        if name not in here:
            raise EnvironmentLackError(f"no {name}")
        return here[name]

    monkeypatch.setattr(plan_module, "resolve_qemu", resolve)
    monkeypatch.setattr(plan_module, "fetch", lambda *_, **__: pytest.fail("fetched without being told to"))
    return plan_replay(opened, cache=tmp_path, **({"qemu": None, "kernel": None} | words))


def test_the_same_qemu_is_used_as_it_is(opened, monkeypatch, tmp_path):
    plan = planned(opened, monkeypatch, tmp_path, {"system": qemu("system")})
    assert {side.step for side in plan.sides.values()} == {"use"}
    assert "here: system 7.2.22, the same" in plan_text(opened, plan)
    assert plan.needed == 3


def test_another_series_of_the_system_is_fetched_when_told_to(opened, monkeypatch, tmp_path):
    plan = planned(opened, monkeypatch, tmp_path, {"system": qemu("system", "10.0.2", "f" * 16)})
    assert plan.fetches == ("7.2",)
    with pytest.raises(EnvironmentLackError, match=r"7\.2 is missing"):
        provide(plan, opened, fetch_missing=False, build=False, cache=tmp_path, progress=lambda _: None)


def test_another_build_of_the_same_series_is_used_and_said(opened, monkeypatch, tmp_path):
    plan = planned(opened, monkeypatch, tmp_path, {"system": qemu("system", "7.2.19", "f" * 16)})
    assert ("source's QEMU", "7.2.22 (the distribution's package)", "7.2.19 (another build)") in plan.differences
    assert "7.2.19 (another build)" in plan_text(opened, plan)


def test_a_qemu_and_a_kernel_of_ones_own_take_the_places(opened, monkeypatch, tmp_path):
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(b"x")
    plan = planned(opened, monkeypatch, tmp_path, {"mine": qemu("mine", "11.0.0", "a" * 16)}, qemu="mine", kernel=kernel)
    scenario = provide(plan, opened, fetch_missing=False, build=False, cache=tmp_path, progress=lambda _: None)
    assert (scenario.qemu.source, scenario.qemu.destination, scenario.guest.kernel) == ("mine", "mine", str(kernel))
    with pytest.raises(UsageError, match="no kernel"):
        planned(opened, monkeypatch, tmp_path, {"mine": qemu("mine")}, qemu="mine", kernel=tmp_path / "nothing")


def image(release: str, digest: str) -> GuestImage:
    here = Path("/nowhere")
    return GuestImage(directory=here, kernel=here, bzimage=here, initrd=here, digest=digest, kernel_release=release, ssh_key=here, host_key="", generator=here)


def test_another_accelerator_and_another_guest_are_said(opened, monkeypatch, tmp_path):
    plan = planned(opened, monkeypatch, tmp_path, {"system": qemu("system")})
    same = with_here(plan, opened, Here(accelerator="tcg", image=image("6.1.0-x", "c0ffee")))
    assert same == plan
    other = with_here(plan, opened, Here(accelerator="kvm", image=image("6.12.0", "c0ffee")))
    assert set(other.differences) - set(plan.differences) == {("accelerator", "tcg", "kvm"), ("guest kernel", "6.1.0-x", "6.12.0")}
    built = with_here(plan, opened, Here(accelerator="tcg", image=image("6.1.0-x", "decade")))
    assert set(built.differences) - set(plan.differences) == {("guest image", "c0ffee", "decade (the same kernel release)")}
    unknown = with_here(plan, opened, Here(problems=("KVM doesn't work here",)))
    assert unknown.differences == plan.differences
    assert [*plan.notes, "KVM doesn't work here"] == list(unknown.notes[:-1])
    assert "the guest image is not here yet" in plan_text(opened, unknown)


def test_a_look_at_this_host_builds_and_fetches_nothing(opened, monkeypatch, tmp_path):
    plan = planned(opened, monkeypatch, tmp_path, {})
    (tmp_path / "cache").mkdir()
    seen = asyncio.run(look_here(plan, cache=tmp_path / "cache"))
    assert seen == Here()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--build"], ["--json"]])
def test_nothing_runs_without_a_yes(tmp_path, words):
    path = tmp_path / "demo.tar.zst"
    path.write_bytes(bundle_bytes(tmp_path))
    command = [sys.executable, "-c", "from harness.cli import main; main()", "replay", str(path), "--results", str(tmp_path / "r"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert done.returncode == 5, done.stderr
    assert "nothing was run" in done.stderr
    assert "Scenario:" in (done.stderr if words == ["--json"] else done.stdout)
    assert not (tmp_path / "r").exists()


# -- building a stranger's code

EDIT = """\
From: Some Body <some@example.org>
Subject: [PATCH] net: say more

---
diff --git a/net/net.c b/net/net.c
index 1111111..2222222 100644
--- a/net/net.c
+++ b/net/net.c
@@ -1,6 +1,6 @@
 /* one */
 /* two */
 /* three */
-const char *net_words = "stock";
+const char *net_words = "patched";
 /* five */
 /* six */
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A build with a patch, its recipe, and a folder with the patch as a bundle has it."""
    monkeypatch.setattr(_toolchain, "require", lambda **_: None)
    tools = _toolchain.Toolchain(sys.executable, "0", str(Path(sys.executable).with_name("ninja")), "gcc")
    if not Path(tools.ninja).exists():
        import shutil

        found = shutil.which("ninja")
        if found is None:
            pytest.skip("needs ninja")
        tools = _toolchain.Toolchain(sys.executable, "0", found, "gcc")
    monkeypatch.setattr(_toolchain, "prepare", lambda *_, **__: tools)
    monkeypatch.setattr(_build, "_NEED_BYTES", 0)
    tree = write_tree(tmp_path / "qemu")
    patch = tmp_path / "0001-say.patch"
    patch.write_text(EDIT)
    install = build("mine", source=str(tree), series=[patch], cache=tmp_path / "cache")
    recipe = recipe_of(name="mine", version=install.version, build=install.build_id, cache=tmp_path / "cache")
    monkeypatch.setattr(_rebuild, "source_of", lambda _: str(tree))
    monkeypatch.setattr(QemuRecipe, "portable", property(lambda recipe: recipe.complete))
    folder = tmp_path / "patches"
    folder.mkdir()
    for each in recipe.patches:
        (folder / f"{each.sha256}.patch").write_text(EDIT)
    return tree, recipe, folder


def test_a_recipe_holds_the_patches_themselves_even_when_the_series_is_gone(built, tmp_path):
    _, recipe, _ = built
    (tmp_path / "0001-say.patch").unlink()
    again = recipe_of(name="mine", version="x", build=recipe.build, cache=tmp_path / "cache")
    assert again.complete
    assert [patch.label for patch in again.patches] == ["0001-say.patch"]


def test_a_recipe_is_followed_in_another_cache_and_found_the_next_time(built, tmp_path):
    _, recipe, folder = built
    said: list[str] = []
    install = _rebuild.rebuild(recipe, patches=folder, cache=tmp_path / "other", progress=said.append)
    assert install.build_id == recipe.build
    assert b"patched" in Path(install.path).read_bytes()
    assert not list((tmp_path / "other/qemu/slots").iterdir())
    assert _rebuild.rebuild(recipe, patches=folder, cache=tmp_path / "other").build_id == recipe.build


ESCAPES = {
    # what succeeds has escaped; a file may be made in the sandbox's own /tmp, and must not be there afterwards
    "the network": "exec 3<>/dev/tcp/127.0.0.1/{port}",
    "a file beside the build folder": "touch {outside}/escaped; false",
    "the source": "touch $(dirname $0)/escaped; false",
    "the cache": "touch {cache}/escaped; false",
    "the home": "ls {home}/secret",
    "the environment": 'test -n "$SECRET_TOKEN"',
}


@pytest.mark.parametrize("way", ESCAPES)
def test_what_a_strangers_configure_reaches_for_is_not_there(built, tmp_path, monkeypatch, way):
    tree, recipe, folder = built
    monkeypatch.setenv("SECRET_TOKEN", "x")
    (tmp_path / "secret").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = ESCAPES[way].format(port=server.getsockname()[1], outside=tmp_path, cache=tmp_path / "other", home=tmp_path)
        configure = tree / "configure"
        body = configure.read_text().removeprefix("#!/bin/sh\n")
        configure.write_text(f"#!/bin/bash\nif ({reach}) 2>/dev/null; then echo ESCAPED; exit 1; fi\n{body}")
        install = _rebuild.rebuild(recipe, patches=folder, cache=tmp_path / "other")
    assert Path(install.path).is_file()
    assert "ESCAPED" not in (Path(install.path).parent / "build.log").read_text()
    assert not list(tmp_path.rglob("escaped"))


def test_a_patch_that_is_not_the_recipes_is_refused_before_anything_runs(built, tmp_path):
    _, recipe, folder = built
    (folder / f"{recipe.patches[0].sha256}.patch").write_text(EDIT + "\n")
    with pytest.raises(UsageError, match="is not what the recipe names"):
        _rebuild.rebuild(recipe, patches=folder, cache=tmp_path / "other")
    assert not (tmp_path / "other/qemu/slots").exists()


def test_a_build_is_not_made_without_being_asked_for(built, tmp_path, opened):
    _, recipe, _ = built
    plan = plan_module.ReplayPlan(
        scenario=opened.scenario, sides={"source": plan_module.Side(wanted=recipe, step="build")}, differences=(), needed=1, timing=False,
    )  # fmt: skip
    with pytest.raises(EnvironmentLackError, match="built from 1 patches"):
        provide(plan, opened, fetch_missing=True, build=False, cache=tmp_path / "other", progress=lambda _: None)
    assert "0001-say.patch" in plan_text(opened, plan)


# -- making it smaller


@given(items=st.lists(st.integers(), unique=True, max_size=12), data=st.data())
def test_ddmin_keeps_exactly_what_is_needed(items, data):
    needed = set(data.draw(st.lists(st.sampled_from(items), unique=True))) if items else set()

    async def holds(chosen: list[int]) -> bool:
        return needed <= set(chosen)

    kept = asyncio.run(ddmin(items, holds))
    assert kept == [item for item in items if item in needed]


@given(items=st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=10), data=st.data())
def test_no_single_item_can_be_left_out_whatever_the_question(items, data):
    sets = st.sets(st.sampled_from(items), min_size=1)
    alternatives = data.draw(st.lists(sets, min_size=1, max_size=4))  # any one of them is enough

    async def holds(chosen: list[int]) -> bool:
        return any(each <= set(chosen) for each in alternatives)

    kept = asyncio.run(ddmin(items, holds))
    assert asyncio.run(holds(kept))
    assert not any(asyncio.run(holds([other for other in kept if other != item])) for item in kept)


CAPABILITIES = ("auto-converge", "xbzrle", "zero-blocks")


def wide(**more: Any) -> Scenario:
    values: dict[str, Any] = {
        "name": "wide", "migration": MigrationSection(capabilities=CAPABILITIES, parameters={"downtime-limit": 300, "announce-rounds": 9}, hold_ms=80),
        "traffic": (
            TrafficSection(name="a", direction=Direction.FROM_GUEST), TrafficSection(name="b", direction=Direction.TO_GUEST, size=1200, rate_pps=800.0),
            TrafficSection(name="c", direction=Direction.ECHO, rate_pps=50.0), TrafficSection(name="d", direction=Direction.BOTH),
        ),
        "timing": TimingSection(settle_s=2.0, tail_s=3.0), "expect": {"duplicated": 0},
    }  # fmt: skip
    return Scenario(**(values | more))


def shrunk(scenario: Scenario, stays: Any, *, most: int = 1000) -> tuple[Scenario, Budget]:
    async def asked(candidate: Scenario) -> bool:
        return bool(stays(candidate))

    budget = Budget(asked, most=most)
    return asyncio.run(minimise(scenario, budget)), budget


def test_a_scenario_is_reduced_to_the_stream_the_capability_and_the_numbers_that_matter():
    def stays(s: Scenario) -> bool:
        return "xbzrle" in s.migration.capabilities and any((t.size or 0) >= 500 and t.direction == "to-guest" for t in s.traffic)

    small, budget = shrunk(wide(), stays)
    assert small.migration.capabilities == ("xbzrle",)
    assert [section.name for section in small.traffic] == ["b"]
    assert small.migration.parameters == {}
    assert small.migration.hold_ms == 0
    assert 500 <= (small.traffic[0].size or 0) < 800
    assert small.traffic[0].rate_pps == 20
    assert (small.timing.settle_s, small.timing.tail_s) == (0.3, 0.3)
    assert small.expect == {"duplicated": 0}
    assert budget.asked < 60


def test_the_scenario_of_the_planted_bug_comes_down_to_one_of_each():
    planted = load_scenario(str(Path(__file__).parents[1] / "data" / "planted-bug" / "scenario.toml"))
    assert (len(planted.traffic), len(planted.migration.capabilities), planted.guest.management) == (4, 3, True)

    def stays(s: Scenario) -> bool:
        return "xbzrle" in s.migration.capabilities and any((t.size or 0) >= 500 for t in s.traffic)

    small, budget = shrunk(planted, stays, most=80)
    assert [(section.name, section.direction) for section in small.traffic] == [("large", "to-guest")]
    assert small.migration.capabilities == ("xbzrle",)
    assert not small.guest.management
    assert not budget.spent


@given(stream=st.sampled_from("abcd"), capability=st.sampled_from(CAPABILITIES), parameter=st.sampled_from(["downtime-limit", "announce-rounds"]))
@settings(max_examples=24, deadline=None)
def test_whichever_one_of_each_is_needed_is_what_is_kept(stream, capability, parameter):
    def stays(s: Scenario) -> bool:
        return stream in [t.name for t in s.traffic] and capability in s.migration.capabilities and parameter in s.migration.parameters

    small, _ = shrunk(wide(), stays)
    assert [section.name for section in small.traffic] == [stream]
    assert small.migration.capabilities == (capability,)
    assert list(small.migration.parameters) == [parameter]


@pytest.mark.parametrize("nic", [True, False])
@pytest.mark.parametrize("peer", list(Peer))
def test_the_second_guest_and_the_second_nic_go_unless_they_are_needed(nic, peer):
    small, _ = shrunk(wide(), lambda s: s.guest.management >= nic and (s.network.peer is peer or peer is Peer.NAMESPACE))
    assert (small.guest.management, small.network.peer) == (nic, peer)


def test_what_the_rules_refuse_is_never_asked_about():
    def stays(s: Scenario) -> bool:
        assert s.traffic  # an expectation of lost packets needs a stream
        return True

    small, _ = shrunk(wide(expect={"lost": 0}), stays)
    assert len(small.traffic) == 1


def test_the_budget_is_an_end_and_what_is_known_is_not_asked_again():
    asked: list[Scenario] = []
    small, budget = shrunk(wide(), lambda s: asked.append(s) is None and len(s.traffic) >= 2, most=5)
    assert budget.asked == len(asked) == 5
    assert len(small.traffic) >= 2
    asked.clear()
    shrunk(wide(), lambda s: asked.append(s) is None and len(s.traffic) >= 2)
    assert len(asked) == len({msgspec.json.encode(s) for s in asked})


def test_shrinking_runs_candidates_and_keeps_the_smallest_that_showed_the_finding(tmp_path, losing):
    original = losing.result.scenario
    ran: list[Scenario] = []

    async def run(scenario: Scenario) -> tuple[Observation, Path]:
        ran.append(scenario)
        result = msgspec.structs.replace(losing.result, scenario=scenario)
        return Observation(result=result), Path(f"run-{len(ran)}")

    done = asyncio.run(shrink(losing, run=run, most=50, progress=lambda _: None))
    assert done.run is not None
    assert ran[int(done.run.name.removeprefix("run-")) - 1] == done.scenario
    assert done.scenario.migration.hold_ms == 0
    assert done.scenario.timing.settle_s < original.timing.settle_s
    assert done.scenario.expect == {"lost": 0}


def test_a_finding_that_does_not_show_itself_again_is_not_made_smaller(losing, sound):
    runs = Runs([sound] * 10)
    with pytest.raises(UsageError, match="did not show itself again in 3 runs"):
        asyncio.run(shrink(losing, run=runs, most=5, progress=lambda _: None))


def test_a_scenario_that_can_no_longer_be_run_is_not_made_smaller(losing):
    async def refuse(_scenario: Scenario) -> tuple[Observation, Path]:
        raise UsageError("capability zero-blocks needs a disk")

    with pytest.raises(UsageError, match="needs a disk"):
        asyncio.run(shrink(losing, run=refuse, most=5, progress=lambda _: None))


def test_a_candidate_that_cannot_be_run_is_said_and_passed_over(losing):
    said: list[str] = []

    async def run(scenario: Scenario) -> tuple[Observation, Path]:
        if not scenario.guest.management:
            raise UsageError("this needs the second NIC\nand more")
        return Observation(result=msgspec.structs.replace(losing.result, scenario=scenario)), Path("r")

    done = asyncio.run(shrink(losing, run=run, most=50, progress=said.append))
    assert done.scenario.guest.management
    assert any(line.endswith("can't be run: this needs the second NIC") for line in said)
    assert any(line.endswith("the finding stays") for line in said)


def test_the_runs_of_the_smallest_scenario_that_did_not_show_it_are_told(losing, sound):
    made: list[tuple[Scenario, bool]] = []

    async def run(scenario: Scenario) -> tuple[Observation, Path]:
        shows = sum(each == scenario for each, _ in made) > 0 or scenario == losing.result.scenario  # others in their second run only
        made.append((scenario, shows))
        seen = losing if shows else sound
        return Observation(result=msgspec.structs.replace(seen.result, scenario=scenario)), Path(f"run-{len(made)}")

    done = asyncio.run(shrink(losing, run=run, most=50, progress=lambda _: None))
    assert done.run == Path(f"run-{max(n for n, each in enumerate(made, 1) if each == (done.scenario, True))}")
    assert done.others == tuple(Path(f"run-{n}") for n, each in enumerate(made, 1) if each == (done.scenario, False))
    assert len(done.others) == 1


def test_a_run_that_shows_nothing_bad_is_not_made_smaller(sound):
    with pytest.raises(UsageError, match="nothing bad"):
        asyncio.run(shrink(sound, run=Runs([]), most=5, progress=lambda _: None))


def test_a_bundle_says_how_often_its_finding_was_seen(tmp_path):
    runs = [make_run(tmp_path, run_id=f"20260102T03040{n}Z-demo-abcdef") for n in range(3)]
    made = make_bundle(runs[0], identity=IDENTITY, cache=tmp_path, others=[runs[1], runs[2], runs[2], runs[0]])
    assert (made.manifest.seen_times, made.manifest.seen_runs) == (3, 3)
