"""What is said where a QEMU is known to lose what its guest writes in a migration."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from harness.cli.doctor import _memory_check
from harness.host.facts import Status
from harness.model.defects import loses_writes, lost_writes_note


@pytest.mark.parametrize(
    ("version", "accelerator", "loses"),
    [("7.2.22", "tcg", True), ("8.2.0", "tcg", True), ("9.0.0", "tcg", False), ("10.0.13", "tcg", False), ("7.2.22", "kvm", False)],
)
def test_it_is_under_tcg_and_before_9_0(version, accelerator, loses):
    assert loses_writes(version, accelerator=accelerator) is loses


@dataclass
class Facts:
    source: str = "7.2.22"
    destination: str = "10.0.13"
    accelerator: str = "tcg"
    failure: str | None = None
    moves: list[bool] = field(default_factory=lambda: [True])

    @property
    def qemu(self):
        return SimpleNamespace(source=SimpleNamespace(version=self.source), destination=SimpleNamespace(version=self.destination))

    @property
    def migrations(self):
        return [SimpleNamespace(moved=moved) for moved in self.moves]


def test_unexplained_packets_and_a_panic_have_it_beside_them():
    assert "QEMU 7.2.22 under TCG" in lost_writes_note(Facts(), unexplained=1)
    assert "QEMU 7.2.22 under TCG" in lost_writes_note(Facts(failure="the guest's kernel panicked in m1: Oops"), unexplained=0)


@pytest.mark.parametrize(
    ("facts", "unexplained"),
    [
        (Facts(), 0),
        (Facts(failure="the destination refused"), 0),
        (Facts(accelerator="kvm"), 3),
        (Facts(source="10.0.13", destination="7.2.22"), 3),  # the source keeps the dirty log
        (Facts(moves=[]), 3),
        (Facts(moves=[False]), 3),
    ],
)
def test_otherwise_nothing_is_said(facts, unexplained):
    assert lost_writes_note(facts, unexplained=unexplained) is None


def test_of_several_migrations_the_destination_was_a_source_too():
    facts = Facts(source="10.0.13", destination="7.2.22", moves=[True, True])
    assert "QEMU 7.2.22 under TCG" in lost_writes_note(facts, unexplained=1)


def test_doctor_warns_of_it_where_there_is_no_kvm():
    old, new = SimpleNamespace(name="system", version="7.2.22"), SimpleNamespace(name="system", version="10.0.13")
    (check,) = _memory_check(old, kvm=False)
    assert (check.status, "switchover qemu fetch 10.0" in check.mend) == (Status.WARN, True)
    assert [each.status for each in _memory_check(new, kvm=False)] == [Status.OK]
    assert _memory_check(old, kvm=True) == _memory_check(None, kvm=False) == []
