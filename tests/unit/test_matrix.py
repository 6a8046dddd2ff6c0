"""The matrix: its cells can be meant, each ends in a line, and no field of the table is empty."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from harness import matrix
from harness.errors import FeatureLackError, MigrationError, UsageError
from harness.host.deadline import Deadline
from harness.matrix import BETWEEN, EVERYTHING, plan_matrix, run_matrix
from harness.migrate.modes import CAPABILITIES, PARAMETERS
from harness.migrate.variety import FAILURES, VARIETY
from harness.model.expect import expectation_problems
from harness.model.load import dump_scenario, parse_scenario
from harness.model.matrix import Cell, CellResult, CellVerdict, MatrixFacts
from harness.model.scenario import Scenario
from harness.report.matrix import matrix_table
from harness.store.matrices import read_matrix, write_matrix
from harness.vm.discovery import Features, MachineType

ALL = (*EVERYTHING, *BETWEEN)


def features(version: str, *machines: str) -> Features:
    return Features(
        name=version, version=version, package="", build_id=version, kvm=False, capabilities=tuple(sorted(CAPABILITIES)),
        parameters=tuple(sorted(PARAMETERS)), parameter_values={}, migration_properties=(), commands=(), events=(), netdev_options={},
        device_properties={}, filter_properties={}, trace_events=(),
        machines=tuple(MachineType(name=name, alias="q35" if name == machines[0] else None) for name in machines),
    )  # fmt: skip


KNOWN = {
    "old": features("7.2.1", "pc-q35-7.2"),
    "new": features("11.1.0", "pc-q35-11.1", "pc-q35-7.2"),
    "bare": features("12.0.0", "pc-q35-12.0"),
}


@pytest.fixture(autouse=True)
def _qemus(monkeypatch):
    def resolve(name, cache):
        if name not in KNOWN:
            raise UsageError(f"{name} was not fetched")
        return name

    async def found(install, *, cache):
        return KNOWN[install]

    monkeypatch.setattr(matrix, "resolve_qemu", resolve)
    monkeypatch.setattr(matrix, "discover", found)


def planned(*qemus, only=(), cache=None):
    return asyncio.run(plan_matrix(qemus, cache=cache, only=only))


@pytest.mark.parametrize("trial", ALL, ids=lambda trial: f"{trial.group}-{trial.name}")
def test_every_cell_is_a_scenario_that_can_be_meant(trial):
    scenario = trial.scenario(source="old", destination="new", machine="pc-q35-7.2")
    assert parse_scenario(dump_scenario(scenario), label="x") == scenario
    assert expectation_problems(scenario) == []
    assert scenario.guest.machine == "pc-q35-7.2"


def test_cells_have_names_of_their_own():
    assert len({(trial.group, trial.name) for trial in ALL}) == len(ALL)


def test_every_pair_of_versions_is_tried_both_ways_on_the_older_ones_machine():
    cells = planned("old", "new", only=["versions"])
    assert len(cells) == 2 * len(BETWEEN)
    assert {cell.scenario.guest.machine for cell in cells} == {"pc-q35-7.2"}
    assert {(cell.scenario.qemu.source, cell.scenario.qemu.destination) for cell in cells} == {("old", "new"), ("new", "old")}
    assert not any(cell.skip for cell in cells)


def test_versions_without_a_common_machine_are_skipped_and_say_so():
    (cell,) = planned("new", "bare", only=["versions-postcopy"])[:1]
    assert cell.skip == "QEMU 12.0.0 has no machine type pc-q35-11.1, the newest q35 of 11.1.0"


def test_a_qemu_that_is_not_there_makes_skips_with_the_reason():
    cells = planned("absent", "old")
    mine = [cell for cell in cells if cell.scenario.qemu.source == "absent"]
    assert len(mine) == len(EVERYTHING) + len(BETWEEN)
    assert {cell.skip for cell in mine} == {"QEMU absent is not here: absent was not fetched"}


def test_a_word_that_names_no_cell_is_refused():
    with pytest.raises(UsageError, match="no cell is called nothing") as refusal:
        planned("old", only=["nothing"])
    assert "failure" in str(refusal.value.hint)


def test_what_goes_wrong_with_one_cell_is_its_own_affair():
    cells = planned("old", only=["transport"])
    cells[1] = msgspec.structs.replace(cells[1], skip="because")
    errors = iter([MigrationError("it broke"), FeatureLackError("it lacks"), ZeroDivisionError("ours"), MigrationError("a"), MigrationError("b")])
    asked: list[Scenario] = []
    saved: list[int] = []

    async def run(scenario):
        asked.append(scenario)
        raise next(errors)

    found = asyncio.run(
        run_matrix(cells, options=None, progress=lambda _: None, done=lambda results: saved.append(len(results)), run=run)  # type: ignore[arg-type]
    )
    assert [cell.verdict for cell in found[:4]] == [CellVerdict.BROKE, CellVerdict.SKIP, CellVerdict.SKIP, CellVerdict.BROKE]
    assert [cell.why for cell in found[:3]] == ["it broke", "because", "it lacks"]
    assert "ZeroDivisionError: ours" in found[3].why
    assert len(asked) == len(cells) - 1
    assert saved == list(range(1, len(cells) + 1))


def lacking(asked: list[str]):
    """A runner whose every cell lacks something, and says so."""

    async def run(scenario):
        asked.append(scenario.name)
        raise FeatureLackError("it lacks")

    return run


def test_a_matrix_goes_on_where_it_was_ended():
    cells = planned("old", only=["transport"])
    known = [CellResult(name=cells[2].name, group="transport", qemu=cells[2].qemu, verdict=CellVerdict.PASS)]
    asked: list[str] = []
    saved: list[list[str]] = []
    found = asyncio.run(
        run_matrix(
            cells, options=None, progress=lambda _: None, done=lambda r: saved.append([c.name for c in r]), run=lacking(asked),  # type: ignore[arg-type]
            known=known,
        )
    )  # fmt: skip
    names = [cell.name for cell in cells]
    assert asked == names[:2] + names[3:]
    assert [cell.name for cell in found] == names
    assert found[2] is known[0]
    assert saved[0] == [names[0], names[2]]
    assert saved[-1] == names


def test_no_cell_is_begun_after_the_time_given():
    asked: list[str] = []
    cells = planned("old", only=["transport"])
    found = asyncio.run(
        run_matrix(cells, options=None, progress=lambda _: None, done=lambda _: None, run=lacking(asked), until=Deadline(0))  # type: ignore[arg-type]
    )
    assert (found, asked) == ([], [])


def test_a_cell_that_hangs_is_ended_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(matrix, "_LONGEST_CELL_S", 0.01)
    cells = planned("old", only=["transport"])

    async def run(scenario):
        if scenario.name != cells[0].scenario.name:
            raise FeatureLackError("it lacks")
        await asyncio.Event().wait()

    found = asyncio.run(run_matrix(cells, options=None, progress=lambda _: None, done=lambda _: None, run=run))  # type: ignore[arg-type]
    assert [cell.verdict for cell in found] == [CellVerdict.BROKE] + [CellVerdict.SKIP] * (len(cells) - 1)
    assert "waiting for the end of transport-unix" in found[0].why


def test_what_was_written_is_read_again_and_what_is_not_there_is_refused(tmp_path):
    cell = CellResult(name="a-b", group="a", qemu="7.2", verdict=CellVerdict.SKIP, why="because")
    facts = MatrixFacts(planned=3, seconds=1.5, cells=(cell,), qemus=("old", "new"), only=("a",))
    write_matrix(tmp_path, facts)
    assert read_matrix(tmp_path) == facts
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]
    with pytest.raises(UsageError, match="has no matrix to go on with"):
        read_matrix(tmp_path / "elsewhere")
    (tmp_path / "matrix.json").write_text("{}")
    with pytest.raises(UsageError, match="can't be read"):
        read_matrix(tmp_path)


def test_an_interrupt_is_not_swallowed():
    async def run(scenario):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run_matrix(planned("old")[:1], options=None, progress=print, done=print, run=run))  # type: ignore[arg-type]


def test_no_field_of_the_table_is_empty():
    cell = Cell(name="a-b", group="a", qemu="7.2", scenario=Scenario(name="x"))
    cells = (
        CellResult(name=cell.name, group="a", qemu="7.2", verdict=CellVerdict.PASS, lost_to_guest=3, lost_from_guest=0, unexplained=0,
                   compute_ms=12.34, network_ms=15.0, reported_ms=9.0, seconds=3.21, run="r"),
        CellResult(name="a-c", group="a", qemu="7.2 -> 10.0", verdict=CellVerdict.SKIP, why="x" * 300 + "\nmore"),
    )  # fmt: skip
    text = matrix_table(MatrixFacts(planned=3, seconds=120.0, cells=cells))
    rows = text.splitlines()[2:4]
    assert rows[0].split() == ["a-b", "7.2", "pass", "3", "0", "12.3", "15.0", "9.0", "3.2", "-"]
    assert rows[1].split()[:5] == ["a-c", "7.2", "->", "10.0", "skip"]
    assert rows[1].endswith("xxx...")
    assert text.splitlines()[-1] == "2 cells in 2.0 min: 1 pass, 1 skip, 1 not reached; packets unexplained: 0"


def test_failures_and_variety_say_what_they_must_come_to():
    assert all(trial.expect for trial in FAILURES if trial.name != "link-cut-and-recovered")
    assert {trial.group for trial in VARIETY} == {"guest", "network", "announce"}
