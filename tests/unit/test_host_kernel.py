"""`--host-kernel`: what is run inside, which states are saved before, and what is shown of what was left. The guest itself is for the nightly run."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest
from test_pingpong import rounds

import harness.nested
from harness.cli import main
from harness.model.matrix import CellResult, CellVerdict, MatrixFacts
from harness.model.pingpong import PingPong
from harness.pingpong import PINGPONG_FILE
from harness.store.matrices import write_matrix


class Inside:
    """Stands for the first-level guest: notes what it was asked for, and leaves `leave` in a folder."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.scenarios: list[str] = []
        self.leave = None

    async def __call__(self, arguments, *, scenarios, host_kernel, results, cache, progress):
        assert host_kernel == "debian"
        self.arguments, self.scenarios = list(arguments), [scenario.name for scenario in scenarios]
        results.mkdir(exist_ok=True)
        (results / "nested-console.log").write_text("[ 1.5 s] trying\nswitchover: no room left\n")
        if self.leave is None:
            return 2, []
        folder = results / "20260101T000000Z-x"
        folder.mkdir(exist_ok=True)
        self.leave(folder)
        return 0, [folder]


@pytest.fixture
def inside(monkeypatch):
    fake = Inside()
    monkeypatch.setattr(harness.nested, "run_nested", fake)
    return fake


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`switchover WORDS --host-kernel debian`: its exit code, and its two outputs."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["switchover", *words, "--host-kernel", "debian"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    monkeypatch.setenv("SWITCHOVER_RESULTS", str(tmp_path / "results"))
    return run


def test_ping_pong_shows_what_the_migrations_inside_came_to(call, inside):
    found = PingPong(scenario="vhost-tap-handover", planned=2, rounds=rounds(2))
    inside.leave = lambda folder: (folder / PINGPONG_FILE).write_bytes(msgspec.json.encode(found))
    status, out, _ = call("ping-pong", "vhost-tap-handover", "--times", "2", "--set", "migration.hold_ms=100", "--json")
    assert inside.arguments == ["ping-pong", "vhost-tap-handover", "--times", "2", "--set", "migration.hold_ms=100"]
    assert inside.scenarios == ["vhost-tap-handover"]
    assert (status, msgspec.json.decode(out, type=PingPong)) == (0, found)
    inside.leave = lambda folder: (folder / PINGPONG_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(found, planned=3)))
    status, out, _ = call("ping-pong", "vhost-tap-handover", "--times", "3")
    assert (status, "only 2 of 3" in out) == (1, True)


def test_a_matrix_inside_goes_on_where_it_was(call, inside, tmp_path):
    cell = CellResult(name="modes-precopy", group="modes", qemu="0", verdict=CellVerdict.PASS)
    facts = MatrixFacts(planned=2, seconds=1.0, cells=(cell,), qemus=("/no/qemu",), only=("*precopy",))
    inside.leave = lambda folder: write_matrix(folder, facts)
    status, out, _ = call("matrix", "*precopy", "--qemu", "/no/qemu", "--minutes", "90", "--json")
    assert inside.arguments == ["matrix", "*precopy", "--qemu", "/no/qemu", "--minutes", "90"]
    assert inside.scenarios == [], "a cell that is skipped needs no state"
    assert (status, json.loads(out)["planned"]) == (5, 2)
    folder = tmp_path / "results/20260101T000000Z-x"
    inside.leave = None  # no new folder: it goes on in that one
    status, out, _ = call("matrix", "--resume", str(folder), "--again")
    assert inside.arguments == ["matrix", "--resume", str(folder), "--again"]
    assert (status, str(folder) in out) == (5, True)


def test_compare_runs_inside_with_every_option(call, inside):
    status, _, err = call("compare", "vhost-none", "vhost-tap-handover", "--repeat", "3", "--no-calibrate", "--set", "network.mtu=1400")
    assert inside.arguments == ["compare", "vhost-none", "vhost-tap-handover", "--repeat", "3", "--no-calibrate", "--set", "network.mtu=1400"]
    assert inside.scenarios == ["vhost-none", "vhost-tap-handover"]
    assert status == 2
    assert "nothing was run in the first-level guest: no room left" in err
    call("compare", "udp-none", "udp-none", "--stop-early", "--cold")
    assert inside.arguments == ["compare", "udp-none", "udp-none", "--repeat", "10", "--stop-early", "--cold", "--calibrate"]
    assert inside.scenarios == []


def test_finished_runs_are_compared_here(call, inside):
    status, _, err = call("compare", "--runs", "results/a", "results/b")
    assert (status, inside.arguments) == (4, [])
    assert "--host-kernel changes what is run, and --runs runs nothing" in err


def test_a_command_that_left_something_else_is_no_result(call, inside):
    inside.leave = lambda folder: (folder / "result.txt").touch()
    status, _, err = call("ping-pong", "vhost-tap-handover")
    assert (status, f"left 0 folders with {PINGPONG_FILE}" in err) == (2, True)



def test_a_folder_with_a_broken_account_is_named(call, inside):
    inside.leave = lambda folder: (folder / PINGPONG_FILE).write_text("{")
    status, _, err = call("ping-pong", "vhost-tap-handover")
    assert (status, PINGPONG_FILE in err) == (4, True)
