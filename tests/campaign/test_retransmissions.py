"""Retransmissions on ten captures of real switchovers: ours and tshark's."""

from __future__ import annotations

import shutil

import pytest

from bench.retransmissions import count

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed: apt-get install tshark")
def test_tshark_finds_as_many(switchover, tmp_path):
    results = switchover("run", "tcp-none", "tcp-request-none", "--repeat", "5")
    found = {each["run_id"]: count(tmp_path / each["run_id"] / "capture" / "peer.pcapng") for each in results}
    assert len(found) == 10
    assert any(each.ours for each in found.values()), "a switchover that loses frames makes TCP send them again"
    assert [run for run, each in found.items() if not each.explained] == []
