"""The generator's account of what its interface's transmit queue dropped, beside that of `tc`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from harness.resources import image_resources

SCRIPT = """
ip link set lo up
ip link add v0 type veth peer name v1
ip address add 192.0.2.1/24 dev v0
ip link set v1 up
ip link set v0 up
ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev v0
tc qdisc add dev v0 root {qdisc}
"$1" run --out "$2" --wait --queue v0 --stream id=1,role=send,dst=192.0.2.2,port=9,size=1000,rate=1000,count=200 >"$2.log" &
until grep -q ready "$2.log"; do sleep 0.01; done
tc -s qdisc show dev v0
echo send >"$2/control"
until [ "$(grep -c . "$2/status")" -ge 2 ]; do sleep 0.01; done
sleep 0.5
echo stop >"$2/control"
echo end >"$2/control"
wait
tc -s qdisc show dev v0
"""


@pytest.fixture(scope="module")
def swgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swgen") / "swgen"
    subprocess.run(["make", "-s", "-C", image_resources() / "guest" / "swgen", f"OUT={out}", out], check=True)
    return out


@pytest.mark.parametrize(
    ("qdisc", "some"), [("tbf rate 400kbit burst 2k limit 5k", True), ("pfifo limit 1000", False)], ids=["too-slow", "wide-enough"]
)
def test_its_figure_is_that_of_tc(swgen, tmp_path, qdisc, some):
    run = subprocess.run(
        ["unshare", "--net", "sh", "-ec", SCRIPT.format(qdisc=qdisc), "sh", swgen, tmp_path / "out"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    before, after = (int(text) for text in re.findall(r"dropped (\d+),", run.stdout))
    summary = json.loads((tmp_path / "out.log").read_text().splitlines()[-1])
    assert summary["streams"][0]["sent"] + summary["streams"][0]["send_errors"] == 200
    assert summary["queue_drops"] == {"before": before, "after": after}
    assert (after > before) is some
