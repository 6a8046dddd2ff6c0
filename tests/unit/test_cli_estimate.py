"""`switchover estimate`: a log of a real ping, and what is none."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import UsageError

# As iputils' ping -D -O -i 0.01 prints it: three requests lost in the middle.
LOG = "PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data.\n" + "".join(
    f"[170000000{n // 100}.{n % 100 * 10_000:06d}] "
    + (f"no answer yet for icmp_seq={n}\n" if 40 < n <= 43 else f"64 bytes from 10.77.0.2: icmp_seq={n} ttl=64 time=0.500 ms\n")
    for n in range(1, 100)
    if n != 40
)


def test_the_table_names_every_formula(tmp_path):
    (tmp_path / "log").write_text(LOG)
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "log"), "--interval-s", "0.01"])
    assert result.exit_code == 0, result.output
    for name in ("lost-times-interval", "lost-plus-one", "longest-single-gap", "largest-reply-gap", "switchover"):
        assert name in result.output


def test_json_holds_the_same(tmp_path):
    (tmp_path / "log").write_text(LOG)
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "log"), "--interval-s", "0.01", "--json"])
    found = json.loads(result.output)
    values = {each["name"]: each["downtime_ns"] for each in found["estimates"]}
    assert found["lost"] == 4
    assert values["lost-times-interval"] == 40_000_000
    assert values["lost-plus-one"] == 50_000_000


@pytest.mark.parametrize(("text", "interval"), [("nothing of ping's\n", "0.01"), (LOG, "0"), (LOG, "-1"), (LOG, "nan")])
def test_what_can_not_be_meant_is_refused(tmp_path, text, interval):
    (tmp_path / "log").write_text(text)
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "log"), f"--interval-s={interval}"])
    assert isinstance(result.exception, UsageError)
